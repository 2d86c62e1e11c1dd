// The many-row products on Hopper: two warpgroups multiply from the stages of tensor_ring.cuh.
#pragma once

#include <type_traits>

#include "cuda/tensor_ring.cuh"

namespace sigmoe::cuda {

// The scales of a warpgroup's rows of W: of rows 0-7 and of rows 8-15 of its tiles (gate and up differ) per k block, or of each
// row, when one covers all of k: then they wait for the end.
struct WeightScales {
  const float* low = nullptr;
  const float* high = nullptr;
  bool per_block = false;

  __device__ void start(const TensorGemmArgs& args, const float* scales, int first_tile) {
    const WeightView& w = args.weight;
    per_block = scales && w.k_shift < 30;
    if (!per_block) return;
    const int row = max(row_of(w, first_tile, 0), 0), other = max(row_of(w, first_tile, 8), 0);
    low = scales + static_cast<size_t>(row >> w.row_shift) * w.scale_columns;
    high = scales + static_cast<size_t>(other >> w.row_shift) * w.scale_columns;
  }
  __device__ float2 of_block(const WeightView& w, int kb) const {
    if (!per_block) return {1.0f, 1.0f};
    const int column = kb * kGroup >> w.k_shift;
    return {__ldg(low + column), __ldg(high + column)};
  }
  static __device__ int row_of(const WeightView& w, int tile, int row) {
    if (tile >= w.n_tiles) tile = w.n_tiles - 1;
    return w.gate_up ? tile * 8 + row % 8 + (row < 8 ? 0 : w.n / 2) : tile * 16 + row;
  }
};

template <int N, int Blocks>
using Sums = float[Blocks][N / 2];  // by block of 64 rows of W

// The lane's part of a stage's 64 rows of W.
struct Operand {
  uint4 chunks[4];
  template <class S>
  __device__ void load(const S& s, int stage, int block) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128;
    const uint4* tile =
        reinterpret_cast<const uint4*>(s.w[stage] + ((group * S::kBlocks + block) * 4 + warp) * kChunkRun) + lane;
#pragma unroll
    for (int c = 0; c < 4; ++c) chunks[c] = tile[32 * c];
  }
};

template <class S>
__device__ inline void release(S& s, int stage) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(&s.empty[stage]);
}

// sum = the products of the item, FP8, without x's scales when rows have one each; BlockScales: they have one per 128 of k.
// PairScales: rows 0-7 and 8-15 of a tile of W have scales of their own (gate, up).
//
// A k block is some units of 64 rows of W by all or half of the rows of x. While one is multiplied the sums of the one before
// are scaled and added; the other warpgroup fills what gaps are left.
template <int N, bool PairScales, bool BlockScales, class S>
__device__ void multiply_fp8(const TensorGemmArgs& args, S& s, Position& at, const KRange& range, const WeightScales& scales,
                             Sums<N, S::kBlocks>& sum) {
  constexpr int Blocks = S::kBlocks, kParts = N >= 64 || Blocks == 1 ? 2 : 1, kPart = N / kParts, kUnits = Blocks * kParts;
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int b = 0; b < Blocks; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  float part[2][kPart / 2];
  Operand a;  // a second one would not fit the registers
  const auto start = [&](int stage, int unit) {
    float(&to)[kPart / 2] = part[unit % 2];
    const uint64_t b = swizzled_operand(s.x[stage] + unit % kParts * kPart * 128);
    pin(to);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < 4; ++c) wgmma_fp8<kPart>(to, a.chunks[c], b + 2 * c, c > 0);
    wgmma_commit();
  };
  const auto add = [&](int stage, int unit, float2 scale) {
    float(&from)[kPart / 2] = part[unit % 2];
    pin(from);
    const float* x_scales = s.x_scales[stage] + unit % kParts * kPart + 2 * q;
    float* to = sum[unit / kParts] + unit % kParts * (kPart / 2);
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
      float2 low = {scale.x, scale.x}, high = {scale.y, scale.y};
      if constexpr (BlockScales) {
        const float2 x = *reinterpret_cast<const float2*>(x_scales + 8 * j);
        low = {x.x * scale.x, x.y * scale.x};
        high = {x.x * scale.y, x.y * scale.y};
      }
      if constexpr (!PairScales) high = low;
      to[4 * j] += from[4 * j] * low.x;
      to[4 * j + 1] += from[4 * j + 1] * low.y;
      to[4 * j + 2] += from[4 * j + 2] * high.x;
      to[4 * j + 3] += from[4 * j + 3] * high.y;
    }
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) asm volatile("" : "+f"(to[i]));  // here, not after the next wait
  };
  float2 scale = scales.of_block(args.weight, range.begin);
  for (int kb = range.begin; kb < range.end; ++kb) {
    const int stage = at.stage;
    const float2 next_scale = scales.of_block(args.weight, min(kb + 1, range.end - 1));
    barrier_wait(&s.full[stage], at.parity);
    a.load(s, stage, 0);
    start(stage, 0);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      if (unit + 1 < kUnits && (unit + 1) % kParts != 0) {
        start(stage, unit + 1);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
        if (unit + 1 < kUnits) {
          a.load(s, stage, (unit + 1) / kParts);
          start(stage, unit + 1);
        } else if (!BlockScales) {
          release(s, stage);
        }
      }
      add(stage, unit, scale);
    }
    if (BlockScales) release(s, stage);
    at.next(S::kStages);
    scale = next_scale;
  }
}

// The same in BF16: the tensor core's own float32 sums are the result.
template <int N, class S>
__device__ void multiply_bf16(S& s, Position& at, const KRange& range, Sums<N, S::kBlocks>& sum) {
  constexpr int Blocks = S::kBlocks;
#pragma unroll
  for (int b = 0; b < Blocks; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  for (int kb = range.begin; kb < range.end; ++kb) {
    const int stage = at.stage;
    barrier_wait(&s.full[stage], at.parity);
    const uint64_t b = swizzled_operand(s.x[stage]);
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
      Operand a;
      a.load(s, stage, block);
      pin(sum[block]);
      wgmma_fence();
#pragma unroll
      for (int c = 0; c < 4; ++c) wgmma_bf16<N>(sum[block], a.chunks[c], b + 2 * c, true);
      wgmma_commit();
      wgmma_wait<0>();
      pin(sum[block]);
    }
    release(s, stage);
    at.next(S::kStages);
  }
}

// Scales that cover all of k.
template <int N, int Blocks>
__device__ void scale_rows(const TensorGemmArgs& args, const float* scales, int first_tile, Sums<N, Blocks>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, g = lane / 4;
#pragma unroll
  for (int block = 0; block < Blocks; ++block)
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = WeightScales::row_of(args.weight, first_tile + block * 4 + warp, g + 8 * high);
      const float scale =
          row < args.weight.n ? scales[static_cast<size_t>(row >> args.weight.row_shift) * args.weight.scale_columns] : 0.0f;
#pragma unroll
      for (int i = 0; i < N / 2; i += 4) {
        sum[block][i + 2 * high] *= scale;
        sum[block][i + 2 * high + 1] *= scale;
      }
    }
}

// sum = the products of the item, with all scales of W, and those of x if it has BlockScales.
template <WeightFormat F, bool PairScales, int N, bool BlockScales = false, class S>
__device__ void multiply(const TensorGemmArgs& args, S& s, Position& at, const Item& item, const KRange& range,
                         Sums<N, S::kBlocks>& sum) {
  if constexpr (F == WeightFormat::fp8) {
    const int first_tile = item.weight_tile + threadIdx.x / 128 * S::kBlocks * 4;
    const float* scales = weight_of(args, item.rows.expert).scales;
    WeightScales weight_scales;
    weight_scales.start(args, scales, first_tile);
    multiply_fp8<N, PairScales, BlockScales>(args, s, at, range, weight_scales, sum);
    if (!weight_scales.per_block) scale_rows<N>(args, scales, first_tile, sum);
  } else {
    multiply_bf16<N>(s, at, range, sum);
  }
}

int n_multiprocessors();
// tensor_split.cu: blocks that divide k of a linear layer, 1 for none; and the launch when there are several.
int tensor_splits(const WeightView& weight, int n_rows);
void launch_tensor_split(const Queue& queue, const TensorGemmArgs& args);

}  // namespace sigmoe::cuda
