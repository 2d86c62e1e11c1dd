// The experts of one row on one of several ranks, on Hopper: as few_experts.cu, of a part of each expert's width, or of those
// experts alone that the rank has, in FP8 or BF16.
//
// Bound: memory, the bytes of the rank's parts of nine experts. The choice, the walk over gate-up and the meetings are those of
// few_experts.cu. Blocks of gate-up take kTiles tiles with kDepth groups of each on their way: narrower experts are fewer
// blocks. Down: a part of an expert is few groups of k, most of which lie in shared memory when gate-up is done and the rest in
// registers; the 16 sums of a block go to `partial`, and to the other ranks as they are made.
//
// k is cut and added up as gemm_few.cu does, slots as comm_reduce.cu does: the bits are the same.
#include <cstdlib>

#include "cuda/bulk_copy.cuh"
#include "cuda/few_choice.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/rank_row.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

constexpr int kSlots = kActive + 1;  // the shared expert is the last
constexpr int kUpWarps = 4, kUpGroups = kRankWidth / kGroup, kSliceGroups = kUpGroups / kUpWarps;
static_assert(slices_for(kUpGroups) == kUpWarps && kUpWarps * 32 == kScoringThreads);

template <WeightFormat F>
constexpr int kBytesOfGroup = 16 * kGroup*(F == WeightFormat::bf16 ? 2 : 1);

// F, the routed experts' width here, and that of the shared one.
template <WeightFormat Format, int Routed, int Shared>
struct Part {
  static constexpr WeightFormat kFormat = Format;
  static constexpr int kRouted = Routed, kShared = Shared;
};

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
          multiply<kFormat>(unscaled[m], a, b);
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if constexpr (S::kScaled)
            sum[m][e] += unscaled[m][e] * __shfl_sync(kAllLanes, scale, m * 16 + e / 2 * 8 + i);
          else
            sum[m][e] += unscaled[m][e];
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

struct DownArgs {
  FewExperts experts;
  float* partial;
  RowExchange push;
};

// What a block of down holds of an expert's part, in groups of k: `staged` in shared memory, of which `held` are expanded to
// registers before the wait, the rest in registers as they are.
template <typename P>
struct DownPlan {
  static constexpr int kBytes = kBytesOfGroup<P::kFormat>, kVectors = kBytes / 16;
  static constexpr int kGroups = P::kRouted / kGroup, kSharedGroups = P::kShared / kGroup;
  static constexpr int kStaged = kGroups < 8192 / kBytes ? kGroups : 8192 / kBytes;
  static constexpr int kRest = kGroups - kStaged;
  static constexpr int kHeld = P::kFormat == WeightFormat::fp8 && kRest == 0 ? 2 : 0;
  static_assert(P::kShared <= P::kRouted && kSharedGroups >= kHeld && slices_for(kGroups) == 1);
};

template <typename P>
struct DownShared {
  alignas(128) std::byte weights[kSlots][DownPlan<P>::kStaged * DownPlan<P>::kBytes];
  alignas(16) __nv_bfloat16 x[kSlots][P::kRouted];
  Choice choice;
  float out[kSlots][16];
  uint64_t arrived[kSlots][2];
};

template <typename P>
__global__ void __launch_bounds__(kSlots * 32, 2) rank_down_kernel(const __grid_constant__ DownArgs args) {
#if __CUDA_ARCH__ >= 900
  constexpr WeightFormat kFormat = P::kFormat;
  using S = Stream<kFormat>;
  using Plan = DownPlan<P>;
  constexpr int kHeld = Plan::kHeld, kStaged = Plan::kStaged, kRest = Plan::kRest;
  extern __shared__ __align__(128) std::byte raw[];
  auto& shared = *reinterpret_cast<DownShared<P>*>(raw);
  let_next_start();
  const int lane = threadIdx.x % 32, slot = threadIdx.x / 32, g = lane / 4, q = lane % 4, tile = blockIdx.x;
  const FewExperts& experts = args.experts;
  const int n_groups = slot == kActive ? Plan::kSharedGroups : Plan::kGroups;
  const int n_staged = min(n_groups, kStaged);
  std::byte* own = shared.weights[slot];
  uint64_t* arrived = shared.arrived[slot];
  if (lane == 0) {
    barrier_init(&arrived[0], 1);
    barrier_init(&arrived[1], 1);
    publish_barriers();
  }
  uint4 rest[kRest > 0 ? kRest : 1][S::kChunks];
  float scale = 1.0f;  // lane i: of group i
  bool here = true;    // whether this rank has the expert
  const auto copy_groups = [&](int first, int n, uint64_t* barrier, const uint4* source) {
    barrier_expect(barrier, n * Plan::kBytes);
    bulk_copy(own + first * Plan::kBytes, source + first * Plan::kVectors, n * Plan::kBytes, barrier);
  };
  const auto start = [&](const ExpertTiles& expert, const WeightView& w) {
    here = expert.tiles != nullptr;
    if (!here) return;
    const uint4* source = expert.tiles + static_cast<size_t>(tile) * n_groups * Plan::kVectors;
    if (lane == 0) {
      if (kHeld > 0) copy_groups(0, kHeld, &arrived[0], source);
      if (n_staged > kHeld) copy_groups(kHeld, n_staged - kHeld, &arrived[1], source);
    }
    if constexpr (kRest > 0) {
#pragma unroll
      for (int i = 0; i < kRest; ++i)
        if (kStaged + i < n_groups)
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) rest[i][c] = load_once(source + (kStaged + i) * Plan::kVectors + c * 32 + lane);
    }
    if constexpr (S::kScaled)
      scale = expert.scales[static_cast<size_t>(tile * 16 >> w.row_shift) * w.scale_columns +
                            (lane % n_groups * kGroup >> w.k_shift)];
  };
  // The logits are there: gate-up lets this kernel start only after waiting for them itself.
  float weight = 1.0f;
  if (slot == kActive) start({experts.shared_down.tiles, experts.shared_down.scales}, experts.shared_down);
  if (threadIdx.x < kScoringThreads) {
    float bias[2];
    load_bias(experts.bias, bias);
    score_experts(experts.partial, bias, shared.choice);
  }
  const uint32_t number = args.push.peers.world > 1 ? next_number(row_counter(args.push, tile)) : 0;
  __syncthreads();
  if (slot < kActive) {
    const int chosen = choose_experts(shared.choice, kActive);
    start(experts.down_tiles[__shfl_sync(kAllLanes, chosen, slot)], experts.down);
    weight = __shfl_sync(kAllLanes, weigh_expert(shared.choice, chosen, experts.normalise, experts.scaling), slot);
  }
  __syncwarp();

  const auto staged = [&](int group, int chunk) {
    return reinterpret_cast<const uint4*>(own)[(group * S::kChunks + chunk) * 32 + lane];
  };
  uint32_t held[kHeld > 0 ? kHeld : 1][S::kChunks][S::kProducts][4];
  if constexpr (kHeld > 0) {
    if (here) {
      barrier_wait(&arrived[0], 0);
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) unpack<kFormat>(staged(i, c), held[i][c]);
    }
  }
  wait_for_previous();

  float sum[2] = {};
  if (here) {
    const auto* inner = static_cast<const __nv_bfloat16*>(experts.inner) + slot * P::kRouted;
    for (int i = lane; i < n_groups * kGroup / 8; i += 32) copy_16_bytes(shared.x[slot] + 8 * i, inner + 8 * i);
    wait_for_copies();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Plan::kGroups; ++i) {
      if (i >= n_groups) break;
      if (i == kHeld && n_staged > kHeld) barrier_wait(&arrived[1], 0);
      float unscaled[4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        uint32_t b[S::kLaneK / 2] = {};
        if (g == 0) load_x<S::kLaneK>(shared.x[slot] + q * S::kLaneK, i * kGroup + c * chunk_k(kFormat), 0, true, b);
        if (i < kHeld) {
          multiply<kFormat>(unscaled, held[i < kHeld ? i : 0][c], b);
        } else {
          uint32_t a[S::kProducts][4];
          unpack<kFormat>(i < kStaged ? staged(i, c) : rest[i < kStaged ? 0 : i - kStaged][c], a);
          multiply<kFormat>(unscaled, a, b);
        }
      }
      if constexpr (S::kScaled) {
        const float group_scale = __shfl_sync(kAllLanes, scale, i);
        sum[0] += unscaled[0] * group_scale;
        sum[1] += unscaled[2] * group_scale;
      } else {
        sum[0] += unscaled[0];
        sum[1] += unscaled[2];
      }
    }
  }
  if (q == 0) shared.out[slot][g] = sum[0] * weight, shared.out[slot][g + 8] = sum[1] * weight;
  __syncthreads();
  if (threadIdx.x >= 16) return;
  float added = 0.0f;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) added += shared.out[s][threadIdx.x];
  hand_out(args.push, tile, args.partial, added, number);
#endif
}

bool built_for_hopper() {
  static const bool built = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, rank_down_kernel<Part<WeightFormat::fp8, 512, 512>>));
    return attributes.binaryVersion >= 90;
  }();
  return built;
}

// One scale for the 8 or 16 rows and 128 of k that a warp meets at once.
bool in_blocks(const WeightView& w) {
  return w.format == WeightFormat::bf16 || (w.format == WeightFormat::fp8 && w.row_shift >= 4 && w.k_shift >= 7);
}

template <typename P, int kTiles, int kDepth>
void launch_gate_up(const Queue& queue, const FewExperts& args) {
  launch(queue, rank_gate_up_kernel<P, kTiles, kDepth>, (P::kShared + kActive * P::kRouted) / 8 / kTiles, kUpWarps * 32, 0,
         args);
}

template <typename P>
void launch_part(const Queue& queue, const FewExperts& args, const DownArgs& down) {
  static const int variant = [] {
    const char* set = std::getenv("SIGMOE_RANK_UP");
    return set ? std::atoi(set) : 0;
  }();
  if constexpr (P::kFormat == WeightFormat::bf16) {
    variant == 12 ? launch_gate_up<P, 1, 2>(queue, args) : launch_gate_up<P, 1, 1>(queue, args);
  } else {
    if (variant == 11)
      launch_gate_up<P, 1, 1>(queue, args);
    else if (variant == 21)
      launch_gate_up<P, 2, 1>(queue, args);
    else
      launch_gate_up<P, 1, 2>(queue, args);
  }
  const auto kernel = rank_down_kernel<P>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(DownShared<P>)));
  launch(queue, kernel, args.down.n_tiles, kSlots * 32, sizeof(DownShared<P>), down);
}

using Launch = void (*)(const Queue&, const FewExperts&, const DownArgs&);

// The kernels for a pair of widths and a format; null where there are none.
Launch launch_of(WeightFormat format, int routed, int shared) {
  constexpr WeightFormat fp8 = WeightFormat::fp8, bf16 = WeightFormat::bf16;
  if (format == fp8 && routed == 512 && shared == 512) return launch_part<Part<fp8, 512, 512>>;
  if (format == fp8 && routed == 256 && shared == 256) return launch_part<Part<fp8, 256, 256>>;
  if (format == fp8 && routed == 1024 && shared == 512) return launch_part<Part<fp8, 1024, 512>>;
  if (format == fp8 && routed == 1024 && shared == 256) return launch_part<Part<fp8, 1024, 256>>;
  if (format == bf16 && routed == 512 && shared == 512) return launch_part<Part<bf16, 512, 512>>;
  if (format == bf16 && routed == 256 && shared == 256) return launch_part<Part<bf16, 256, 256>>;
  return nullptr;
}

}  // namespace

bool takes_rank_experts(const Queue& queue, const FewExperts& args) {
  const WeightView &up = args.gate_up, &down = args.down, &shared_up = args.shared_gate_up, &shared_down = args.shared_down;
  const auto pair = [](const WeightView& a, const WeightView& b) {
    return in_blocks(a) && in_blocks(b) && a.format == b.format && a.gate_up && a.k == kRankWidth && a.n == 2 * b.k &&
           b.n == kRankWidth;
  };
  return queue.overlap && built_for_hopper() && pair(up, down) && pair(shared_up, shared_down) &&
         up.format == shared_up.format && launch_of(up.format, down.k, shared_down.k);
}

void launch_rank_experts(const Queue& queue, const FewExperts& args, float* partial, const RowExchange* push) {
  const DownArgs down{args, partial, push ? *push : RowExchange{}};
  launch_of(args.down.format, args.down.k, args.shared_down.k)(queue, args, down);
}

}  // namespace sigmoe::cuda
