// y = x W^T for 5 to 23 rows of x and FP8 weights of k 4096 or 2048 (qkv, attention out, and their halves on two GPUs): all of
// W in registers before x exists.
//
// Bound: memory, the bytes of W; but a kernel that is over in some microseconds spends as long again starting its stream. So
// the grid fits the device whole, and every warp asks for its 16 KB of W, 128 registers of each lane, before it waits for the
// kernel ahead: they arrive while that one works. Shared memory is free for x, all of it copied at once after the wait. Up to
// eight rows take three blocks to an SM, more rows one block whose tiles of 16 rows of W share x. early_linear.cu does the
// same for fewer rows with W in shared memory, where more rows of x would not fit.
//
// A warp has one of gemm_walk.cuh's slices of k, adds in its order and meets the others in its order: the bits are the same.
#include <algorithm>

#include "cuda/bulk_copy.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/held_linear.h"

namespace sigmoe::cuda {
namespace {

constexpr WeightFormat kFormat = WeightFormat::fp8;
using S = Stream<kFormat>;
using limits::held::kMostTokens, limits::held::kSliceGroups, limits::held::kSliceK, limits::held::kTokens;
[[maybe_unused]] constexpr int kSliceBytes = kSliceK * static_cast<int>(sizeof(__nv_bfloat16));
constexpr int kRowElements = kSliceK + 32;  // of a token: 64 bytes more, so that tokens lie in different banks
[[maybe_unused]] constexpr int kMostRounds = (kMostTokens + kTokens - 1) / kTokens;
constexpr int kXBytes = kTokens * kRowElements * static_cast<int>(sizeof(__nv_bfloat16));  // of a slice

struct HeldArgs {
  WeightView w;
  const __nv_bfloat16* x;
  const int32_t* row_ids;
  float* out;
  int n_tokens;
};

// Keeps the compiler from expanding what is held once for all rounds: BF16 would take twice the registers.
[[maybe_unused]] __device__ inline void keep_packed(uint4& w) { asm volatile("" : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w)); }

template <int Slices, int Warps>
__global__ void __launch_bounds__(Warps * 32, 12 / Warps) held_kernel(const __grid_constant__ HeldArgs args) {
#if __CUDA_ARCH__ >= 900
  static_assert(slices_for(Slices * kSliceGroups) == Slices);
  const int tiles = blockDim.x / (32 * Slices);  // of the block
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t arrived[Slices][kMostRounds];
  __shared__ float scale[Warps][kSliceGroups][16];
  __shared__ float partial[2][Warps][4][32];
  let_next_start();
  const WeightView& w = args.w;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int slice = warp % Slices, tile = min(static_cast<int>(blockIdx.x) * tiles + warp / Slices, w.n_tiles - 1);
  uint4 held[kSliceGroups][S::kChunks];
  const uint4* source = w.tiles +
                        (static_cast<size_t>(tile) * (Slices * kSliceGroups) + slice * kSliceGroups) * S::kChunks * 32 +
                        vector_of<kFormat>(lane);
#pragma unroll
  for (int i = 0; i < kSliceGroups; ++i)
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) held[i][c] = load_once(source + (i * S::kChunks + c) * 32);
  if (warp < Slices && lane == 0) {
    for (int round = 0; round < kMostRounds; ++round) barrier_init(&arrived[warp][round], 1);
    publish_barriers();
  }
  // Of rows g and g + 8; the lanes of a row share out its groups.
  for (const int row : {g, g + 8}) {
    const float* scales = w.scales + static_cast<size_t>(max(row_in_tile(w, tile, row), 0) >> w.row_shift) * w.scale_columns;
#pragma unroll
    for (int i = q; i < kSliceGroups; i += 4) scale[warp][i][row] = scales[(slice * kSliceGroups + i) * kGroup >> w.k_shift];
  }
  __syncthreads();
  wait_for_previous();

  // The first warp that has a slice copies the rows' parts of it.
  const int n_rounds = (args.n_tokens + kTokens - 1) / kTokens;
  if (warp < Slices)
    for (int round = 0; round < n_rounds; ++round) {
      const int t = round * kTokens + lane, n_here = min(kTokens, args.n_tokens - round * kTokens);
      if (lane == 0) barrier_expect(&arrived[slice][round], n_here * kSliceBytes);
      __syncwarp();
      if (lane < n_here)
        bulk_copy(shared + (round * Slices + slice) * kXBytes + lane * kRowElements * sizeof(__nv_bfloat16),
                  args.x + static_cast<int64_t>(args.row_ids ? args.row_ids[t] : t) * w.k + slice * kSliceK, kSliceBytes,
                  &arrived[slice][round]);
    }
  for (int round = 0; round < n_rounds; ++round) {
    const int first = round * kTokens;
    const bool real = g < args.n_tokens - first;
    const auto* x =
        reinterpret_cast<const __nv_bfloat16*>(shared + (round * Slices + slice) * kXBytes) + g * kRowElements + q * S::kLaneK;
    barrier_wait(&arrived[slice][round], 0);
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kSliceGroups; ++i) {
      float unscaled[4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) keep_packed(held[i][c]);
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        uint32_t a[S::kProducts][4], b[S::kLaneK / 2] = {};
        if (real) load_x<S::kLaneK>(x, i * kGroup + c * chunk_k(kFormat), 0, true, b);
        unpack<kFormat>(chunk_of<kFormat>(held[i], c), a);
        multiply<kFormat>(unscaled, a, b);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] += unscaled[e] * scale[warp][i][g + e / 2 * 8];
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) partial[round % 2][warp][e][lane] = sum[e];
    __syncthreads();
    // A thread per pair of sums, rows g and g + 8 of a token.
    if (static_cast<int>(threadIdx.x) >= tiles * 64) continue;
    const int local = warp / 2, column = warp % 2, t = first + 2 * q + column;
    const int own_tile = blockIdx.x * tiles + local, n = own_tile * 16 + g;
    if (t >= args.n_tokens) continue;
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int s = 0; s < Slices; ++s) {
      low += partial[round % 2][local * Slices + s][column][lane];
      high += partial[round % 2][local * Slices + s][column + 2][lane];
    }
    float* out = args.out + static_cast<int64_t>(t) * w.n;
    if (n < w.n) out[n] = low;
    if (n + 8 < w.n) out[n + 8] = high;
  }
#endif
}

template <int Slices, int Warps>
void launch_blocks(const Queue& queue, const GemmArgs& gemm, int tiles) {
  const auto kernel = held_kernel<Slices, Warps>;
  const int bytes = divide_up(gemm.n_tokens, kTokens) * Slices * kXBytes;
  launch(queue, kernel, divide_up(gemm.dense.n_tiles, tiles), tiles * Slices * 32, bytes,
         HeldArgs{gemm.dense, static_cast<const __nv_bfloat16*>(gemm.dense_x), gemm.row_ids,
                  static_cast<float*>(gemm.dense_out), gemm.n_tokens});
}

template <int Slices>
void launch_slices(const Queue& queue, const GemmArgs& gemm, const HeldBlocks& blocks) {
  if (blocks.warps == 4)
    launch_blocks<Slices, 4>(queue, gemm, blocks.tiles);
  else
    launch_blocks<Slices, 12>(queue, gemm, blocks.tiles);
}

}  // namespace

bool has_held_linear() {
  static const bool known = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, held_kernel<4, 12>));
    return attributes.binaryVersion >= 90 && attributes.ptxVersion != 80;  // 80: sm_80 code, compiled by the driver
  }();
  return known;
}

void launch_held_linear(const Queue& queue, const GemmArgs& gemm, const HeldBlocks& blocks) {
  if (gemm.dense.k == 4 * kSliceK)
    launch_slices<4>(queue, gemm, blocks);
  else
    launch_slices<2>(queue, gemm, blocks);
}

}  // namespace sigmoe::cuda
