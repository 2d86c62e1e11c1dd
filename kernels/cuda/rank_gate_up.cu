// Gate-up with SwiGLU of one row on one of several ranks, on Hopper: as few_experts.cu, of a part of each expert's width, or of
// those experts alone that the rank has, in FP8 or BF16.
//
// Bound: memory, the bytes of the rank's parts of nine experts. The choice and the walk are those of few_experts.cu; a block
// takes kTiles tiles of 16 rows with kDepth groups of each on their way, because narrower experts are fewer blocks. k is cut
// and added up as gemm_few.cu does: the bits are the same.
#include <cstdlib>

#include "cuda/rank_part.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

[[maybe_unused]] constexpr int kUpWarps = 4, kUpGroups = kRankWidth / kGroup, kSliceGroups = kUpGroups / kUpWarps;
static_assert(slices_for(kUpGroups) == kUpWarps && kUpWarps * 32 == kScoringThreads);

// Blocks of gate-up on an SM, by what their warps have on the way: no more than registers allow.
template <typename P, int kTiles, int kDepth>
constexpr int kUpBlocks = (P::kFormat == WeightFormat::bf16 ? 2 : 1) * kTiles* kDepth == 1   ? 7
                          : (P::kFormat == WeightFormat::bf16 ? 2 : 1) * kTiles* kDepth == 2 ? 5
                                                                                             : 4;

template <typename P, int kTiles, int kDepth>
__global__ void __launch_bounds__(kUpWarps * 32, kUpBlocks<P, kTiles, kDepth>)
    rank_gate_up_kernel(const __grid_constant__ FewExperts args) {
#if __CUDA_ARCH__ >= 900
  constexpr WeightFormat kFormat = P::kFormat;
  using S = Stream<kFormat>;
  constexpr int kGroupVectors = kBytesOfGroup<kFormat> / 16, kSharedBlocks = P::kShared / 8 / kTiles;
  static_assert(kTiles <= 2 && kSliceGroups % kDepth == 0);
  __shared__ __align__(16) __nv_bfloat16 x[kRankWidth];
  __shared__ __align__(16) ExpertTiles table[kExperts];
  __shared__ Choice choice;
  __shared__ float partial[kUpWarps][kTiles][16];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int block = blockIdx.x;
  const bool shared = block < kSharedBlocks;
  constexpr int kRoutedBlocks = P::kRouted / 8 / kTiles;  // of a slot
  const int slot = shared ? kActive : (block - kSharedBlocks) / kRoutedBlocks;
  const int first_tile = (shared ? block : (block - kSharedBlocks) % kRoutedBlocks) * kTiles;
  const WeightView& w = shared ? args.shared_gate_up : args.gate_up;

  uint4 weights[kDepth][kTiles][S::kChunks];
  float scale = 1.0f;  // lane (m, h, i): of tile m, its gate rows or its up rows, group i of the slice
  const uint4* source;
  const auto load_group = [&](int d, int group) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
        weights[d][m][c] = load_once(source + (m * kUpGroups + group) * kGroupVectors + c * 32);
  };
  const auto start = [&](const ExpertTiles& expert) {
    source = expert.tiles + (static_cast<size_t>(first_tile) * kUpGroups + warp * kSliceGroups) * kGroupVectors + lane;
#pragma unroll
    for (int d = 0; d < kDepth; ++d) load_group(d, d);
    if constexpr (S::kScaled) {
      const int row = row_in_tile(w, first_tile + min(lane / 16, kTiles - 1), lane / 8 % 2 * 8);
      scale = expert.scales[static_cast<size_t>(row >> w.row_shift) * w.scale_columns +
                            ((warp * kSliceGroups + lane % 8) * kGroup >> w.k_shift)];
    }
  };
  float bias[2];
  if (shared) {
    start({args.shared_gate_up.tiles, args.shared_gate_up.scales});
  } else {
    load_bias(args.bias, bias);
    for (int e = threadIdx.x; e < kExperts; e += kUpWarps * 32) copy_16_bytes(table + e, args.gate_up_tiles + e);
  }
  wait_for_previous();
  let_next_start();
  for (int i = threadIdx.x; i < kRankWidth / 8; i += kUpWarps * 32)
    copy_16_bytes(x + 8 * i, static_cast<const __nv_bfloat16*>(args.normed) + 8 * i);
  if (!shared) {
    score_experts(args.partial, bias, choice);
    __syncthreads();
    if (warp == block % kUpWarps) {
      const int chosen = choose_experts(choice, slot + 1);
      if (lane == slot) choice.ids[0] = chosen;
    }
  }
  wait_for_copies();
  __syncthreads();
  if (!shared) {
    const ExpertTiles expert = table[choice.ids[0]];
    if (!expert.tiles) return;  // another rank has it
    start(expert);
  }

  const __nv_bfloat16* own = x + warp * kSliceGroups * kGroup + q * S::kLaneK;
  float sum[kTiles][4] = {};
#pragma unroll 1
  for (int first = 0; first < kSliceGroups; first += kDepth)
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int i = first + d;
      float unscaled[kTiles][4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        uint32_t b[S::kLaneK / 2] = {};
        if (g == 0) load_x<S::kLaneK>(own, i * kGroup + c * chunk_k(kFormat), 0, true, b);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          uint32_t a[S::kProducts][4];
          unpack<kFormat>(weights[d][m][c], a);
          if (i + kDepth < kSliceGroups)
            weights[d][m][c] = load_once(source + (m * kUpGroups + i + kDepth) * kGroupVectors + c * 32);
          multiply<kFormat>(S::kScaled ? unscaled[m] : sum[m], a, b);
        }
      }
      if constexpr (S::kScaled)
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[m][e] += unscaled[m][e] * __shfl_sync(kAllLanes, scale, m * 16 + e / 2 * 8 + i);
    }
  if (q == 0)
#pragma unroll
    for (int m = 0; m < kTiles; ++m) partial[warp][m][g] = sum[m][0], partial[warp][m][g + 8] = sum[m][2];
  __syncthreads();
  if (threadIdx.x >= kTiles * 8) return;
  const int m = threadIdx.x / 8, row = threadIdx.x % 8;
  float low = 0.0f, high = 0.0f;
#pragma unroll
  for (int s = 0; s < kUpWarps; ++s) low += partial[s][m][row], high += partial[s][m][row + 8];
  static_cast<__nv_bfloat16*>(args.inner)[slot * P::kRouted + (first_tile + m) * 8 + row] =
      __float2bfloat16_rn(low / (1.0f + __expf(-low)) * high);
#endif
}

// One scale for the 8 or 16 rows and 128 of k that a warp meets at once.
bool in_blocks(const WeightView& w) {
  return w.format == WeightFormat::bf16 || (w.format == WeightFormat::fp8 && w.row_shift >= 4 && w.k_shift >= 7);
}

template <typename P, int kTiles, int kDepth>
void launch_kernel(const Queue& queue, const FewExperts& args) {
  launch(queue, rank_gate_up_kernel<P, kTiles, kDepth>, (P::kShared + kActive * P::kRouted) / 8 / kTiles, kUpWarps * 32, 0,
         args);
}

}  // namespace

bool takes_rank_experts(const Queue& queue, const FewExperts& args) {
  static const bool built = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, rank_gate_up_kernel<Part<WeightFormat::fp8, 512, 512>, 1, 2>));
    return attributes.binaryVersion >= 90;
  }();
  const WeightView &up = args.gate_up, &down = args.down, &shared_up = args.shared_gate_up, &shared_down = args.shared_down;
  const auto pair = [](const WeightView& a, const WeightView& b) {
    return in_blocks(a) && in_blocks(b) && a.format == b.format && a.gate_up && a.k == kRankWidth && a.n == 2 * b.k &&
           b.n == kRankWidth;
  };
  return queue.overlap && built && pair(up, down) && pair(shared_up, shared_down) && up.format == shared_up.format &&
         with_part(up.format, down.k, shared_down.k, [](auto) {});
}

void launch_rank_gate_up(const Queue& queue, const FewExperts& args) {
  static const int variant = [] {  // tiles and depth
    const char* set = std::getenv("SIGMOE_RANK_UP");
    return set ? std::atoi(set) : 0;
  }();
  with_part(args.down.format, args.down.k, args.shared_down.k, [&](auto part) {
    using P = decltype(part);
    if constexpr (P::kFormat == WeightFormat::bf16) {
      launch_kernel<P, 1, 1>(queue, args);
    } else {
      if (variant == 11)
        launch_kernel<P, 1, 1>(queue, args);
      else if (variant == 21)
        launch_kernel<P, 2, 1>(queue, args);
      else
        launch_kernel<P, 1, 2>(queue, args);
    }
  });
}

}  // namespace sigmoe::cuda
