// FP8 products of experts with one tensor-core product per 64 rows of W and k block: all rows of x at once, into one set of
// sums.
//
// Experts have some rows more or less than whole tiles, so x comes in any multiple of 16 rows: the tensor core has each of
// these widths, halves of them (as tensor_tile.cuh takes them for linear layers) it has not. A warpgroup alone leaves the
// tensor cores idle while it adds a product's sums to its own; the other one's products fill that time. Bits are those of
// tensor_tile.cuh.
#pragma once

#include "cuda/tensor_tile.cuh"

namespace sigmoe::cuda {

// sum = the products of the item but for scales of W that cover all of k. GateUp: rows 0-7 and 8-15 of a tile of W have scales
// of their own, and x's rows have one that waits for the end; else x has one per row and 128 of k.
template <int N, bool GateUp, class S>
__device__ void multiply_whole(S& s, Position& at, const KRange& range, Sums<N, S::kBlocks>& sum) {
  static_assert(S::kBlocks == 2);
  const int q = threadIdx.x % 4, group = threadIdx.x / 128;
#pragma unroll
  for (int b = 0; b < 2; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  float part[N / 2];
  uint32_t x_scales[N / 8];  // a pair of columns each
  Operand a;
  const auto start = [&](int stage) {
    const uint64_t b = swizzled_operand(s.x[stage]);
    pin(part);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < 4; ++c) wgmma_fp8<N>(part, a.chunks[c], b + 2 * c, c > 0);
    wgmma_commit();
  };
  const auto add = [&](float(&to)[N / 2], float2 scale) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      float2 low = {scale.x, scale.x}, high = {scale.y, scale.y};
      if constexpr (!GateUp) {
        low = {bf16_low(x_scales[j]) * scale.x, bf16_high(x_scales[j]) * scale.x};
        high = low;
      }
      to[4 * j] += part[4 * j] * low.x;
      to[4 * j + 1] += part[4 * j + 1] * low.y;
      to[4 * j + 2] += part[4 * j + 2] * high.x;
      to[4 * j + 3] += part[4 * j + 3] * high.y;
    }
  };
  // Read once a k block, for shared memory is what these products wait for; but not all of them fit the registers while a
  // product has W in its own.
  constexpr int kFirst = N >= 128 ? 5 : N / 8;
  const auto load_scales = [&](int stage, int begin, int end) {
    if constexpr (!GateUp) {
      const auto* pairs = reinterpret_cast<const uint32_t*>(s.x_scales[stage]) + q;
#pragma unroll
      for (int j = begin; j < end; ++j) x_scales[j] = pairs[4 * j];
    }
  };
  const auto finish = [&](int stage) {
    wgmma_wait<0>();
    pin(part);
    load_scales(stage, kFirst, N / 8);
  };
  const auto arrive_at = [&](int stage) {  // the first rows of W of a k block, and the block's scale
    barrier_wait(&s.full[stage], at.parity);
    a.load(s, stage, 0);
    return s.w_scales[stage][group];
  };
  float2 scale = arrive_at(at.stage);
  start(at.stage);
  for (int kb = range.begin;; ++kb) {
    const int stage = at.stage;
    load_scales(stage, 0, kFirst);
    finish(stage);
    a.load(s, stage, 1);
    add(sum[0], scale);
    start(stage);
    at.next(S::kStages);
    finish(stage);
    release(s, stage);
    if (kb + 1 == range.end) break;
    const float2 next_scale = arrive_at(at.stage);
    add(sum[1], scale);
    scale = next_scale;
    start(at.stage);
  }
  add(sum[1], scale);
}

}  // namespace sigmoe::cuda
