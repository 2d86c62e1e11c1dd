// y = x W^T for up to 8 rows of x at a time, whole in shared memory. Bound: memory, the bytes of W. See gemm_walk.cuh.
#include "cuda/gemm_walk.cuh"

namespace sigmoe::cuda {
namespace {

// Four activations of `row` from k on, as BF16.
__device__ inline uint2 four_bf16(const float* row, int k, int k_end) {
  if (k_end % 4 == 0) {
    if (k >= k_end) return {0, 0};
    const float4 v = *reinterpret_cast<const float4*>(row + k);
    return {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
  }
  const auto at = [&](int i) { return i < k_end ? row[i] : 0.0f; };
  return {pack_bf16(at(k), at(k + 1)), pack_bf16(at(k + 2), at(k + 3))};
}
__device__ inline uint2 four_bf16(const __nv_bfloat16* row, int k, int k_end) {
  uint32_t pairs[2];
  load_x<4>(row, k, k_end, k_end % 4 == 0 && k < k_end, pairs);
  return {pairs[0], pairs[1]};
}

template <WeightFormat F, typename X, int Tiles, int Depth>
__global__ void __launch_bounds__(kWarps * 32, Tiles* Depth > 2 ? 4 : 5) few_kernel(const __grid_constant__ GemmArgs args) {
  extern __shared__ __align__(16) __nv_bfloat16 staged[];  // (tokens, staged_stride)
  __shared__ float partial[kWarps][4][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  if (args.mode != GemmMode::gate_up) let_next_start();
  Work work;
  if (!work.find(args, args.few_tokens)) return;
  const WeightView& w = work.w;
  const int side = kWarps / work.slices, first_tile = work.row_block * side * Tiles, slice = warp % work.slices;
  const int begin = w.n_groups * slice / work.slices, end = w.n_groups * (slice + 1) / work.slices;
  const auto tile_of = [&](int m) { return min(first_tile + m * side + warp / work.slices, w.n_tiles - 1); };
  TileWalk<F, Depth> walks[Tiles];
#pragma unroll
  for (int m = 0; m < Tiles; ++m) {
    walks[m].start(w, tile_of(m), begin, end);
    walks[m].prefetch();
  }
  if (work.dense || args.mode == GemmMode::down) wait_for_previous();
  if (args.mode == GemmMode::gate_up) let_next_start();

  const int stride = staged_stride(w.n_groups), n_fours = w.n_groups * kGroup / 4;
  for (int first = work.token_begin; first < work.token_end; first += args.few_tokens) {
    const int n_here = min(args.few_tokens, work.token_end - first);
    if (first > work.token_begin) {
#pragma unroll
      for (int m = 0; m < Tiles; ++m) walks[m].prefetch();
      __syncthreads();  // the last round's activations and sums have been read
    }
    for (int t = 0; t < n_here; ++t) {
      const X* row = static_cast<const X*>(work.dense ? args.dense_x : args.routed_x) + work.input_row(args, first + t) * w.k;
      if (sizeof(X) == 2 && w.k % kGroup == 0) {
        for (int i = threadIdx.x; i < w.k / 8; i += kWarps * 32) copy_16_bytes(staged + t * stride + 8 * i, row + 8 * i);
      } else {
#pragma unroll 8
        for (int i = threadIdx.x; i < n_fours; i += kWarps * 32)
          *reinterpret_cast<uint2*>(staged + t * stride + 4 * i) = four_bf16(row, 4 * i, w.k);
      }
    }
    wait_for_copies();
    __syncthreads();
    float sum[Tiles][1][4] = {};
    const __nv_bfloat16* own = staged + (g < n_here ? g : 0) * stride + q * Stream<F>::kLaneK;
    walk_groups<F, Depth, Tiles, 1>(
        walks, 1,
        [&](int, int group, int chunk, uint32_t* x) {
          if (g < n_here)
            load_x<Stream<F>::kLaneK>(own, group * kGroup + chunk * chunk_k(F), 0, true, x);
          else
#pragma unroll
            for (int i = 0; i < Stream<F>::kLaneK / 2; ++i) x[i] = 0;
        },
        [](int) {}, sum);
#pragma unroll
    for (int m = 0; m < Tiles; ++m) {
      if (m > 0) __syncthreads();
      keep(partial, sum[m], 1);
      __syncthreads();
      work.reduce<1>(args, partial, first_tile + m * side, first, 1);
    }
  }
}

constexpr int kPlentyOfBlocks = 800;  // more than run at once

template <WeightFormat F, typename X, int Tiles, int Depth>
void launch_few_tiles(const Queue& queue, GemmArgs& args, int n_blocks) {
  const int n_groups = std::max(args.dense.tiles ? args.dense.n_groups : 0, args.routed.n > 0 ? args.routed.n_groups : 0);
  const size_t bytes = sizeof(__nv_bfloat16) * args.few_tokens * staged_stride(n_groups);
  const auto kernel = few_kernel<F, X, Tiles, Depth>;
  launch(queue, kernel, n_blocks, kWarps * 32, bytes, args);
}

template <WeightFormat F, typename X>
void launch_typed(const Queue& queue, GemmArgs& args) {
  // Expert lists of small steps are short: less shared memory per block then lets more blocks run.
  args.few_tokens =
      args.routed.n > 0 && args.n_tokens <= 32 ? std::min(args.n_tokens, kFewTokens / 2) : std::min(args.n_tokens, kFewTokens);
  const int n_blocks = plan_blocks(args, 1, args.few_tokens);
  // A block of one-byte weights is soon over: where there are plenty, each takes twice the rows. With many tokens shared memory
  // limits how many blocks run, and each keeps more loads in flight.
  if constexpr (chunk_k(F) >= 32)
    if (n_blocks > kPlentyOfBlocks) {
      const int n_fewer = plan_blocks(args, 2, args.few_tokens);
      if (args.n_tokens <= 4) return launch_few_tiles<F, X, 2, 1>(queue, args, n_fewer);
      return launch_few_tiles<F, X, 2, 2>(queue, args, n_fewer);
    }
  launch_few_tiles<F, X, 1, Stream<F>::kDepth>(queue, args, n_blocks);
}

template <WeightFormat F>
void launch_format(const Queue& queue, GemmArgs& args, bool x_is_float) {
  if (x_is_float)
    launch_typed<F, float>(queue, args);
  else
    launch_typed<F, __nv_bfloat16>(queue, args);
}

}  // namespace

void launch_few(const Queue& queue, GemmArgs& args, bool x_is_float) {
  switch (args.dense.tiles ? args.dense.format : args.routed.format) {
    case WeightFormat::f32: return launch_format<WeightFormat::f32>(queue, args, x_is_float);
    case WeightFormat::bf16: return launch_format<WeightFormat::bf16>(queue, args, x_is_float);
    case WeightFormat::fp8: return launch_format<WeightFormat::fp8>(queue, args, x_is_float);
    case WeightFormat::int4: return launch_format<WeightFormat::int4>(queue, args, x_is_float);
    case WeightFormat::int8: return launch_format<WeightFormat::int8>(queue, args, x_is_float);
  }
}

}  // namespace sigmoe::cuda
