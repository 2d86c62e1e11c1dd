// Gate-up with SwiGLU of one row on one of several ranks, on Hopper: as few_experts.cu, of a part of each expert's width, or of
// those experts alone that the rank has, in FP8 or BF16.
//
// Bound: memory, the bytes of the rank's parts of nine experts. The choice and the walk are those of few_experts.cu; a block
// takes one tile of 16 rows instead of two, because narrower experts are fewer blocks, and has 8 KB of it on their way. k is
// cut and added up as gemm_few.cu does: the bits are the same.
#include "cuda/few_gate_up.cuh"
#include "cuda/rank_part.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

[[maybe_unused]] constexpr int kUpWarps = 4, kUpGroups = kRankWidth / kGroup, kSliceGroups = kUpGroups / kUpWarps,
                               kUpBlocks = 5;  // on an SM: no more than registers allow
static_assert(slices_for(kUpGroups) == kUpWarps && kUpWarps * 32 == kScoringThreads);

// Groups that a warp has on their way.
template <WeightFormat F>
constexpr int kDepth = F == WeightFormat::bf16 ? 1 : 2;

template <typename P>
__global__ void __launch_bounds__(kUpWarps * 32, kUpBlocks) rank_gate_up_kernel(const __grid_constant__ FewExperts args) {
#if __CUDA_ARCH__ >= 900
  constexpr WeightFormat kFormat = P::kFormat;
  using S = Stream<kFormat>;
  constexpr int kGroupVectors = kBytesOfGroup<kFormat> / 16, kDeep = kDepth<kFormat>;
  constexpr int kSharedTiles = P::kShared / 8, kRoutedTiles = P::kRouted / 8;  // of a slot, a block each
  static_assert(kSliceGroups % kDeep == 0);
  __shared__ __align__(16) __nv_bfloat16 x[kRankWidth];
  __shared__ __align__(16) ExpertTiles table[kExperts];
  __shared__ Choice choice;
  __shared__ float partial[kUpWarps][16];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int block = blockIdx.x;
  const bool shared = block < kSharedTiles;
  const int slot = shared ? kActive : (block - kSharedTiles) / kRoutedTiles;
  const int tile = shared ? block : (block - kSharedTiles) % kRoutedTiles;
  const WeightView& w = shared ? args.shared_gate_up : args.gate_up;

  uint4 weights[kDeep][S::kChunks];
  float scale = 1.0f;  // lane (h, i): of the tile's gate rows or its up rows, group i of the slice
  const uint4* source;
  const auto load_group = [&](int d, int group) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) weights[d][c] = load_once(source + group * kGroupVectors + c * 32);
  };
  const auto start = [&](const ExpertTiles& expert) {
    source =
        expert.tiles + (static_cast<size_t>(tile) * kUpGroups + warp * kSliceGroups) * kGroupVectors + vector_of<kFormat>(lane);
#pragma unroll
    for (int d = 0; d < kDeep; ++d) load_group(d, d);
    if constexpr (S::kScaled) {
      const int row = row_in_tile(w, tile, lane / 8 % 2 * 8);
      scale = expert.scales[static_cast<size_t>(row >> w.row_shift) * w.scale_columns +
                            ((warp * kSliceGroups + lane % 8) * kGroup >> w.k_shift)];
    }
  };
  float bias[2];
  if (shared)
    start({args.shared_gate_up.tiles, args.shared_gate_up.scales});
  else
    load_tables(args, bias, table);
  take_row_and_choose(args, shared, slot, bias, x, choice);
  if (!shared) {
    const ExpertTiles expert = table[choice.ids[0]];
    if (!expert.tiles) return;  // another rank has it
    start(expert);
  }

  const __nv_bfloat16* own = x + warp * kSliceGroups * kGroup + q * S::kLaneK;
  float sum[4] = {};  // 0 and 2 count: of rows g and g + 8
#pragma unroll 1
  for (int first = 0; first < kSliceGroups; first += kDeep)
#pragma unroll
    for (int d = 0; d < kDeep; ++d) {
      const int i = first + d;
      float unscaled[4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        uint32_t b[S::kLaneK / 2] = {};
        if (g == 0) load_x<S::kLaneK>(own, i * kGroup + c * chunk_k(kFormat), 0, true, b);
        uint32_t a[S::kProducts][4];
        unpack<kFormat>(chunk_of<kFormat>(weights[d], c), a);
        if (i + kDeep < kSliceGroups)
#pragma unroll
          for (int s = 0; s < S::kChunks; ++s)
            if (frees<kFormat>(c, s)) weights[d][s] = load_once(source + (i + kDeep) * kGroupVectors + s * 32);
        multiply<kFormat>(S::kScaled ? unscaled : sum, a, b);
      }
      if constexpr (S::kScaled) {
        sum[0] += unscaled[0] * __shfl_sync(kAllLanes, scale, i);
        sum[2] += unscaled[2] * __shfl_sync(kAllLanes, scale, 8 + i);
      }
    }
  if (q == 0) partial[warp][g] = sum[0], partial[warp][g + 8] = sum[2];
  __syncthreads();
  if (threadIdx.x >= 8) return;
  const int row = threadIdx.x;
  float low = 0.0f, high = 0.0f;
#pragma unroll
  for (int s = 0; s < kUpWarps; ++s) low += partial[s][row], high += partial[s][row + 8];
  static_cast<__nv_bfloat16*>(args.inner)[slot * P::kRouted + tile * 8 + row] =
      __float2bfloat16_rn(low / (1.0f + __expf(-low)) * high);
#endif
}

}  // namespace

void launch_rank_gate_up(const Queue& queue, const FewExperts& args) {
  with_part(args.down.format, args.down.k, args.shared_down.k, [&](auto part) {
    using P = decltype(part);
    launch(queue, rank_gate_up_kernel<P>, (P::kShared + kActive * P::kRouted) / 8, kUpWarps * 32, 0, args);
  });
}

}  // namespace sigmoe::cuda
