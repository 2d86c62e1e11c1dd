// y = x W^T for 32 rows of x at a time and two tiles of W per warp, each warp copying its own activations a group ahead. Bound:
// memory, the bytes of W. See gemm_walk.cuh.
#include "cuda/gemm_walk.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kWideTiles = 2;   // per warp
constexpr int kWideBlocks = 4;  // token blocks of 8
constexpr int kWideTokens = 8 * kWideBlocks;
constexpr int kWideStride = kGroup + 32;  // elements of a token in a warp's buffer
constexpr int kWideBuffer = kWideTokens * kWideStride;
constexpr size_t kWideBytes = sizeof(__nv_bfloat16) * kWarps * 2 * kWideBuffer;

template <WeightFormat F>
__global__ void __launch_bounds__(kWarps * 32, 2) wide_kernel(const __grid_constant__ GemmArgs args) {
  extern __shared__ __align__(16) __nv_bfloat16 buffers[];  // per warp two groups of activations, (tokens, kWideStride) each
  __shared__ float partial[kWarps][kWideBlocks * 4][32];
  __shared__ int64_t row_at[kWideTokens];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  if (args.mode != GemmMode::gate_up) let_next_start();
  Work work;
  if (!work.find(args, kWideTokens)) return;
  const WeightView& w = work.w;
  const int side = kWarps / work.slices, first_tile = work.row_block * side * kWideTiles, slice = warp % work.slices;
  const int begin = w.n_groups * slice / work.slices, end = w.n_groups * (slice + 1) / work.slices;
  const auto tile_of = [&](int m) { return min(first_tile + m * side + warp / work.slices, w.n_tiles - 1); };
  constexpr int kDepth = Stream<F>::kDepth;
  TileWalk<F, kDepth> walks[kWideTiles];
#pragma unroll
  for (int m = 0; m < kWideTiles; ++m) {
    walks[m].start(w, tile_of(m), begin, end);
    walks[m].prefetch();
  }
  if (work.dense || args.mode == GemmMode::down) wait_for_previous();
  if (args.mode == GemmMode::gate_up) let_next_start();

  __nv_bfloat16* own = buffers + warp * 2 * kWideBuffer;
  for (int first = work.token_begin; first < work.token_end; first += kWideTokens) {
    const int n_here = min(kWideTokens, work.token_end - first), n_used = (n_here + 7) / 8;
    if (first > work.token_begin)
#pragma unroll
      for (int m = 0; m < kWideTiles; ++m) walks[m].prefetch();
    __syncthreads();                                 // the last round is over
    if (static_cast<int>(threadIdx.x) < n_used * 8)  // rows past the last repeat it; nobody writes their results
      row_at[threadIdx.x] = work.input_row(args, first + min(static_cast<int>(threadIdx.x), n_here - 1)) * w.k;
    __syncthreads();
    const auto copy_group = [&](int group) {
      __nv_bfloat16* to = own + group % 2 * kWideBuffer;
      for (int piece = lane; piece < n_used * 8 * 16; piece += 32) {
        const int t = piece / 16, k = group * kGroup + piece % 16 * 8;
        const __nv_bfloat16* row = static_cast<const __nv_bfloat16*>(work.dense ? args.dense_x : args.routed_x) + row_at[t];
        __nv_bfloat16* at = to + t * kWideStride + piece % 16 * 8;
        if (w.k % 8 == 0 && k + 8 <= w.k)
          copy_16_bytes(at, row + k);
        else
          for (int i = 0; i < 8; ++i) at[i] = k + i < w.k ? row[k + i] : __ushort_as_bfloat16(0);
      }
      commit_copies();
    };
    float sum[kWideTiles][kWideBlocks][4] = {};
    if (begin < end) copy_group(begin);
    walk_groups<F, kDepth, kWideTiles, kWideBlocks>(
        walks, n_used,
        [&](int j, int group, int chunk, uint32_t* x) {
          load_x<Stream<F>::kLaneK>(own + group % 2 * kWideBuffer + (8 * j + g) * kWideStride + q * Stream<F>::kLaneK,
                                    chunk * chunk_k(F), 0, true, x);
        },
        [&](int group) {  // this group has arrived, and the next is on its way into the buffer that everyone has left
          __syncwarp();
          if (group + 1 < end)
            copy_group(group + 1);
          else
            commit_copies();
          wait_for_copies_but_last();
          __syncwarp();
        },
        sum);
#pragma unroll
    for (int m = 0; m < kWideTiles; ++m) {
      __syncthreads();
      keep(partial, sum[m], n_used);
      __syncthreads();
      work.reduce<kWideBlocks>(args, partial, first_tile + m * side, first, n_used);
    }
  }
}

template <WeightFormat F>
void launch_format(const Queue& queue, GemmArgs& args) {
  launch(queue, wide_kernel<F>, plan_blocks(args, kWideTiles, kWideTokens), kWarps * 32, kWideBytes, args);
}

}  // namespace

void launch_wide(const Queue& queue, GemmArgs& args) {
  switch (args.dense.tiles ? args.dense.format : args.routed.format) {
    case WeightFormat::f32: return launch_format<WeightFormat::f32>(queue, args);
    case WeightFormat::bf16: return launch_format<WeightFormat::bf16>(queue, args);
    case WeightFormat::fp8: return launch_format<WeightFormat::fp8>(queue, args);
    case WeightFormat::int4: return launch_format<WeightFormat::int4>(queue, args);
    case WeightFormat::int8: return launch_format<WeightFormat::int8>(queue, args);
  }
}

}  // namespace sigmoe::cuda
