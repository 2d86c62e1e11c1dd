// The many-row products on Hopper: two warpgroups multiply from the stages of tensor_ring.cuh.
#pragma once

#include "cuda/tensor_ring.cuh"

namespace sigmoe::cuda {

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

// sum = the products of the item, FP8, without x's scales: rows have one each.
//
// A k block is some units of 64 rows of W by all or half of the rows of x. While one is multiplied the sums of the one before
// are scaled and added; the other warpgroup fills what gaps are left.
template <int N, class S>
__device__ void multiply_fp8(S& s, Position& at, const KRange& range, Sums<N, S::kBlocks>& sum) {
  constexpr int Blocks = S::kBlocks, kParts = N >= 64 ? 2 : 1, kPart = N / kParts, kUnits = Blocks * kParts;
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
  const auto add = [&](int unit, float scale) {
    float(&from)[kPart / 2] = part[unit % 2];
    pin(from);
    float* to = sum[unit / kParts] + unit % kParts * (kPart / 2);
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) to[i] += from[i] * scale;
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) asm volatile("" : "+f"(to[i]));  // here, not after the next wait
  };
  for (int kb = range.begin; kb < range.end; ++kb) {
    const int stage = at.stage;
    barrier_wait(&s.full[stage], at.parity);
    a.load(s, stage, 0);
    const float scale = s.w_scales[stage][threadIdx.x / 128].x;
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
        } else {
          release(s, stage);
        }
      }
      add(unit, scale);
    }
    at.next(S::kStages);
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
      const int row = weight_row(args.weight, first_tile + block * 4 + warp, g + 8 * high);
      const float scale =
          row < args.weight.n ? scales[static_cast<size_t>(row >> args.weight.row_shift) * args.weight.scale_columns] : 0.0f;
#pragma unroll
      for (int i = 0; i < N / 2; i += 4) {
        sum[block][i + 2 * high] *= scale;
        sum[block][i + 2 * high + 1] *= scale;
      }
    }
}

// sum = the products of the item, with all scales of W. The experts' FP8 ones are those of tensor_whole.cuh.
template <WeightFormat F, int N, class S>
__device__ void multiply(const TensorGemmArgs& args, S& s, Position& at, int expert, int weight_tile, const KRange& range,
                         Sums<N, S::kBlocks>& sum) {
  if constexpr (F == WeightFormat::fp8) {
    multiply_fp8<N>(s, at, range, sum);
    if (!has_block_scales(args.weight))
      scale_rows<N>(args, weight_of(args, expert).scales, weight_tile + threadIdx.x / 128 * S::kBlocks * 4, sum);
  } else {
    multiply_bf16<N>(s, at, range, sum);
  }
}

int n_multiprocessors();
// tensor_split.cu: a linear layer of which several blocks divide k.
void launch_tensor_split(const Queue& queue, const TensorGemmArgs& args);

}  // namespace sigmoe::cuda
