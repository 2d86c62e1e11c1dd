// The many-row products on Hopper: two warpgroups multiply from the stages of tensor_ring.cuh.
#pragma once

#include "cuda/tensor_ring.cuh"

namespace sigmoe::cuda {

template <int N, int Blocks>
using Sums = float[Blocks][N / 2];  // by block of 64 rows of W

// The lane's part of a stage's 64 rows of W.
struct Operand {
  uint4 chunks[4];
  template <int begin = 0, int end = 4, class S>
  __device__ void load(const S& s, int stage, int block) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128;
    const uint4* tile =
        reinterpret_cast<const uint4*>(s.w[stage] + ((group * S::kBlocks + block) * 4 + warp) * kChunkRun) + lane;
#pragma unroll
    for (int c = begin; c < end; ++c) chunks[c] = tile[32 * c];
  }
};

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
// add than a product takes. So nothing else may stand between two products: W comes to registers while the product before
// still runs, as soon as its first chunks have been read; so does the word that the next stage is full.
template <int N, class S>
__device__ void multiply_fp8(S& s, Position& at, const KRange& range, Sums<N, S::kBlocks>& sum) {
  constexpr int Blocks = S::kBlocks;
  const int group = threadIdx.x / 128;
#pragma unroll
  for (int b = 0; b < Blocks; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  float part[N / 2];
  Operand a;
  constexpr int kEarly = 3;  // chunks of W that come while the product before still runs
  const auto start = [&](int stage) {
    const uint64_t b = swizzled_operand(s.x[stage]);
    pin(part);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      wgmma_fp8<N>(part, a.chunks[c], b + 2 * c, c > 0);
      if (c + 1 == kEarly) wgmma_commit();
    }
    wgmma_commit();
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
  const auto finish = [&](int next_stage, int next_block) {
    wgmma_wait<1>();
    a.load<0, kEarly>(s, next_stage, next_block);
    wgmma_wait<0>();
    pin(part);
    a.load<kEarly, 4>(s, next_stage, next_block);
  };
  barrier_wait(&s.full[at.stage], at.parity);
  a.load(s, at.stage, 0);
  float2 scale = s.w_scales[at.stage][group];
  start(at.stage);
  for (int kb = range.begin;; ++kb) {
    const int stage = at.stage;
#pragma unroll
    for (int block = 0; block + 1 < Blocks; ++block) {
      finish(stage, block + 1);
      add(sum[block], scale);
      start(stage);
    }
    at.next(S::kStages);
    if (kb + 1 == range.end) {
      wgmma_wait<0>();
      pin(part);
      release(s, at, stage);
      break;
    }
    barrier_wait(&s.full[at.stage], at.parity);
    const float2 next_scale = s.w_scales[at.stage][group];
    finish(at.stage, 0);
    release(s, at, stage);
    add(sum[Blocks - 1], scale);
    scale = next_scale;
    start(at.stage);
  }
  add(sum[Blocks - 1], scale);
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
