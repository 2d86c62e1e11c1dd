// The many-row products on Hopper: two warpgroups multiply from the stages of tensor_ring.cuh.
#pragma once

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
  template <int Blocks>
  __device__ void load(const Shared<Blocks>& s, int stage, int block) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128;
    const uint4* tile = reinterpret_cast<const uint4*>(s.w[stage] + ((group * Blocks + block) * 4 + warp) * kChunkRun) + lane;
#pragma unroll
    for (int c = 0; c < 4; ++c) chunks[c] = tile[32 * c];
  }
};

template <int Blocks>
__device__ inline void release(Shared<Blocks>& s, int stage) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(&s.empty[stage]);
}

// sum = the products of the item, FP8. Sums are scaled while the other warpgroup multiplies; where the registers allow it the
// rows of x go in two halves, and one is scaled while the other is multiplied. PairScales: rows 0-7 and 8-15 of a tile have
// scales of their own (gate, up), which take those registers.
template <int N, bool PairScales, int Blocks>
__device__ void multiply_fp8(const TensorGemmArgs& args, Shared<Blocks>& s, Position& at, const KRange& range,
                             const WeightScales& scales, Sums<N, Blocks>& sum) {
  constexpr int kParts = N >= 64 && !PairScales ? 2 : 1, kPart = N / kParts;
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int b = 0; b < Blocks; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  float part[kParts][kPart / 2];
  Operand a;
  const auto multiply = [&](int stage) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) pin(part[p]);
    wgmma_fence();
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const uint64_t b = swizzled_operand(s.x[stage] + p * kPart * 128);
#pragma unroll
      for (int c = 0; c < 4; ++c) wgmma_fp8<kPart>(part[p], a.chunks[c], b + 2 * c, c > 0);
      wgmma_commit();
    }
  };
  const auto promote = [&](int stage, int p, float* to, float2 scale) {
    pin(part[p]);
    const float* x_scales = s.x_scales[stage] + p * kPart + 2 * q;
    to += p * (kPart / 2);
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
      const float2 x = *reinterpret_cast<const float2*>(x_scales + 8 * j);
      const float low = x.x * scale.x, low_odd = x.y * scale.x;
      to[4 * j] += part[p][4 * j] * low;
      to[4 * j + 1] += part[p][4 * j + 1] * low_odd;
      to[4 * j + 2] += part[p][4 * j + 2] * (PairScales ? x.x * scale.y : low);
      to[4 * j + 3] += part[p][4 * j + 3] * (PairScales ? x.y * scale.y : low_odd);
    }
  };
  float2 scale = scales.of_block(args.weight, range.begin);
  barrier_wait(&s.full[at.stage], at.parity);
  a.load(s, at.stage, 0);
  for (int kb = range.begin; kb < range.end; ++kb) {
    const int stage = at.stage;
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
      multiply(stage);
      if constexpr (kParts == 2) {
        wgmma_wait<1>();
        promote(stage, 0, sum[block], scale);
      }
      wgmma_wait<0>();
      if (block + 1 < Blocks) {
        a.load(s, stage, block + 1);
      } else {
        at.next();
        if (kb + 1 < range.end) {
          barrier_wait(&s.full[at.stage], at.parity);
          a.load(s, at.stage, 0);
        }
      }
      promote(stage, kParts - 1, sum[block], scale);
    }
    release(s, stage);
    scale = scales.of_block(args.weight, min(kb + 1, range.end - 1));
  }
}

// The same in BF16: the tensor core's own float32 sums are the result.
template <int N, int Blocks>
__device__ void multiply_bf16(Shared<Blocks>& s, Position& at, const KRange& range, Sums<N, Blocks>& sum) {
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
    at.next();
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

// sum = the products of the item, with all scales.
template <WeightFormat F, bool PairScales, int N, int Blocks>
__device__ void multiply(const TensorGemmArgs& args, Shared<Blocks>& s, Position& at, const Item& item, const KRange& range,
                         Sums<N, Blocks>& sum) {
  if constexpr (F == WeightFormat::fp8) {
    const int first_tile = item.weight_tile + threadIdx.x / 128 * Blocks * 4;
    const float* scales = weight_of(args, item.rows.expert).scales;
    WeightScales weight_scales;
    weight_scales.start(args, scales, first_tile);
    multiply_fp8<N, PairScales>(args, s, at, range, weight_scales, sum);
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
