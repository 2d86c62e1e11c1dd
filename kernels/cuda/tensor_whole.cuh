// FP8 products with one tensor-core product per 64 rows of W and k block: all rows of x at once, into one set of sums.
//
// A warpgroup alone leaves the tensor cores idle while it adds a product's sums to its own; the other warpgroup's product fills
// that time, if the two are out of step. Nothing keeps them so but their turns (Turns): one starts when the other's product has
// come to its last quarter. Without a second set of sums the compiler cannot put off the additions, either.
#pragma once

#include "cuda/tensor_tile.cuh"

namespace sigmoe::cuda {

// deep: whole, with one more stage of down in place of most of the room for its results. none: operands arrive and are let go,
// to time them alone.
enum class Loop { parts, whole, turns, deep, none };

constexpr int kFirstTurn = 5;  // barrier of warpgroup 0, then of 1

__device__ inline void take_turn(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(kFirstTurn + group), "n"(kGroups * 128) : "memory");
}
__device__ inline void pass_turn(int group) {
  asm volatile("bar.arrive %0, %1;" ::"r"(kFirstTurn + 1 - group), "n"(kGroups * 128) : "memory");
}

template <int N, bool PairScales, bool BlockScales, bool Turns, bool Pairs, class S>
__device__ void multiply_fp8_whole(S& s, Position& at, const KRange& range, Sums<N, S::kBlocks>& sum) {
  static_assert(S::kBlocks == 2 && kGroups == 2);
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
    if constexpr (Turns) take_turn(group);
    pin(part);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < 3; ++c) wgmma_fp8<N>(part, a.chunks[c], b + 2 * c, c > 0);
    if constexpr (Turns) wgmma_commit();
    wgmma_fp8<N>(part, a.chunks[3], b + 6, true);
    wgmma_commit();
  };
  const auto finish = [&] {
    if constexpr (Turns) {
      wgmma_wait<1>();
      pass_turn(group);
    }
    wgmma_wait<0>();
    pin(part);
  };
  const auto add = [&](float(&to)[N / 2], float2 scale) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      float2 low = {scale.x, scale.x}, high = {scale.y, scale.y};
      if constexpr (BlockScales) {
        low = {bf16_low(x_scales[j]) * scale.x, bf16_high(x_scales[j]) * scale.x};
        high = {bf16_low(x_scales[j]) * scale.y, bf16_high(x_scales[j]) * scale.y};
      }
      if constexpr (!PairScales) high = low;
      to[4 * j] += part[4 * j] * low.x;
      to[4 * j + 1] += part[4 * j + 1] * low.y;
      to[4 * j + 2] += part[4 * j + 2] * high.x;
      to[4 * j + 3] += part[4 * j + 3] * high.y;
    }
  };
  // All of them would not fit the registers while a product has W in its own.
  constexpr int kFirst = N >= 128 ? 8 : N / 8;
  const auto load_scales = [&](int stage, int begin, int end) {
    if constexpr (BlockScales) {
      const auto* pairs = reinterpret_cast<const uint32_t*>(s.x_scales[stage]) + q;
#pragma unroll
      for (int j = begin; j < end; ++j) x_scales[j] = pairs[4 * j];
    }
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
    finish();
    load_scales(stage, kFirst, N / 8);
    a.load(s, stage, 1);
    add(sum[0], scale);
    start(stage);
    at.next(S::kStages);
    load_scales(stage, 0, kFirst);
    finish();
    load_scales(stage, kFirst, N / 8);
    release<Pairs>(s, stage);
    if (kb + 1 == range.end) break;
    const float2 next_scale = arrive_at(at.stage);
    add(sum[1], scale);
    scale = next_scale;
    start(at.stage);
  }
  add(sum[1], scale);
}

}  // namespace sigmoe::cuda
