// The many-row products on Hopper: two warpgroups multiply from the stages of tensor_ring.cuh.
#pragma once

#include "cuda/tensor_ring.cuh"

namespace sigmoe::cuda {

template <int N, int Blocks>
using Sums = float[Blocks][N / 2];  // by block of 64 rows of W

template <class S>
__device__ inline void release(S& s, const Position& at, int stage) {
  __syncwarp();
  const int lane = threadIdx.x % 32;
  if (at.n_paired == 1) {
    if (lane == 0) barrier_arrive(&s.empty[stage]);
  } else if (lane < 2) {
    barrier_arrive_at(&s.empty[stage], lane);
  }
}

// sum = the products of the item in FP8, but for scales that cover all of k. Rows 0-7 and 8-15 of a tile of W have scales of
// their own, as gate and up differ.
//
// One tensor-core product per 64 rows of W and k block: all rows of x at once, into one set of sums, which are then scaled and
// added to float32. For that time a warpgroup leaves the tensor cores to the other one: they wait only if both take longer to
// add than a product takes. So nothing else may stand between two products: both operands come from shared memory, which
// leaves the registers to sums, and the word that the next stage is full is read while the product before runs.
template <int N, class S>
__device__ void multiply_fp8(S& s, Position& at, const KRange& range, Sums<N, S::kBlocks>& sum) {
  constexpr int Blocks = S::kBlocks;
  const int group = __shfl_sync(kAllLanes, threadIdx.x / 128, 0);  // which the compiler then knows to be the warp's
#pragma unroll
  for (int b = 0; b < Blocks; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  float part[N / 2];
  const uint64_t first_w = weight_operand(s.w[0] + group * Blocks * 4 * kChunkRun), first_x = swizzled_operand(s.x[0]);
  const auto start = [&](int stage, int block) {
    const uint64_t a = first_w + (stage * static_cast<int>(sizeof(s.w[0])) + block * 4 * kChunkRun) / 16;
    const uint64_t b = first_x + stage * static_cast<int>(sizeof(s.x[0])) / 16;
    pin(part);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < 4; ++c) wgmma_fp8<N>(part, a + (c / 2 * 512 + c % 2 * 32) / 16, b + 2 * c, c > 0);
    wgmma_commit();
  };
  const auto finish = [&] {
    wgmma_wait<0>();
    pin(part);
  };
  const auto add = [&](float(&to)[N / 2], float2 scale) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      to[4 * j] += part[4 * j] * scale.x;
      to[4 * j + 1] += part[4 * j + 1] * scale.x;
      to[4 * j + 2] += part[4 * j + 2] * scale.y;
      to[4 * j + 3] += part[4 * j + 3] * scale.y;
    }
  };
  barrier_wait(&s.full[at.stage], at.parity);
  float2 scale = s.w_scales[at.stage][group];
  start(at.stage, 0);
  for (int kb = range.begin;; ++kb) {
    const int stage = at.stage;
#pragma unroll
    for (int block = 0; block + 1 < Blocks; ++block) {
      finish();
      add(sum[block], scale);
      start(stage, block + 1);
    }
    at.next(S::kStages);
    if (kb + 1 == range.end) {
      finish();
      release(s, at, stage);
      break;
    }
    barrier_wait(&s.full[at.stage], at.parity);
    const float2 next_scale = s.w_scales[at.stage][group];
    finish();
    release(s, at, stage);
    add(sum[Blocks - 1], scale);
    scale = next_scale;
    start(at.stage, 0);
  }
  add(sum[Blocks - 1], scale);
}

// The same in BF16, W from registers: the tensor core's own float32 sums are the result.
template <int N, class S>
__device__ void multiply_bf16(S& s, Position& at, const KRange& range, Sums<N, S::kBlocks>& sum) {
  constexpr int Blocks = S::kBlocks;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
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
      const uint4* tile =
          reinterpret_cast<const uint4*>(s.w[stage] + ((group * Blocks + block) * 4 + warp) * kChunkRun) + threadIdx.x % 32;
      uint4 a[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) a[c] = tile[32 * c];
      pin(sum[block]);
      wgmma_fence();
#pragma unroll
      for (int c = 0; c < 4; ++c) wgmma_bf16<N>(sum[block], a[c], b + 2 * c, true);
      wgmma_commit();
      wgmma_wait<0>();
      pin(sum[block]);
    }
    release(s, at, stage);
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

// sum = the products of the item, with all scales of W.
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
