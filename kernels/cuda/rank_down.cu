// Down of one row's experts on one of several ranks, on Hopper, with the sum over them: as few_experts.cu, of a part of each
// expert's width, or of those experts alone that the rank has, in FP8 or BF16.
//
// Bound: memory, the bytes of the rank's parts of nine experts. A block has 16 columns and a warp for each expert, as there; a
// part of an expert is few groups of k, most of which lie in shared memory when gate-up is done and the rest in registers. The
// 16 sums go to `partial`, and to the other ranks as they are made. k is cut and added up as gemm_few.cu does, slots as
// comm_reduce.cu does: the bits are the same.
#include "cuda/bulk_copy.cuh"
#include "cuda/rank_part.cuh"
#include "cuda/rank_row.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

constexpr int kSlots = kRankSlots;

struct DownArgs {
  FewExperts experts;
  float* partial;
  RowExchange push;
};

// What a block of down holds of an expert's part, in groups of k: `staged` in shared memory, of which `held` are expanded to
// registers before the wait, the rest in registers as they are.
template <typename P>
struct DownPlan {
  static constexpr int kBytes = kBytesOfGroup<P::kFormat>;
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
    bulk_copy(own + first * Plan::kBytes, source + first * (Plan::kBytes / 16), n * Plan::kBytes, barrier);
  };
  const auto start = [&](const ExpertTiles& expert, const WeightView& w) {
    here = expert.tiles != nullptr;
    if (!here) return;
    const uint4* source = expert.tiles + static_cast<size_t>(tile) * n_groups * (Plan::kBytes / 16);
    if (lane == 0) {
      if (kHeld > 0) copy_groups(0, kHeld, &arrived[0], source);
      if (n_staged > kHeld) copy_groups(kHeld, n_staged - kHeld, &arrived[1], source);
    }
    if constexpr (kRest > 0) {
#pragma unroll
      for (int i = 0; i < kRest; ++i)
        if (kStaged + i < n_groups)
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c)
            rest[i][c] = load_once(source + (kStaged + i) * (Plan::kBytes / 16) + c * 32 + vector_of<kFormat>(lane));
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

  const auto staged = [&](int group, uint4(&stored)[S::kChunks]) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
      stored[c] = reinterpret_cast<const uint4*>(own)[(group * S::kChunks + c) * 32 + vector_of<kFormat>(lane)];
  };
  uint32_t held[kHeld > 0 ? kHeld : 1][S::kChunks][S::kProducts][4];
  if constexpr (kHeld > 0) {
    if (here) {
      barrier_wait(&arrived[0], 0);
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        uint4 stored[S::kChunks];
        staged(i, stored);
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) unpack<kFormat>(chunk_of<kFormat>(stored, c), held[i][c]);
      }
    }
  }
  wait_for_previous();

  float sum[4] = {};  // 0 and 2 count: of rows g and g + 8
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
      uint4 stored[S::kChunks];
      if (i >= kHeld && i < kStaged) staged(i, stored);
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        uint32_t b[S::kLaneK / 2] = {};
        if (g == 0) load_x<S::kLaneK>(shared.x[slot] + q * S::kLaneK, i * kGroup + c * chunk_k(kFormat), 0, true, b);
        if (i < kHeld) {
          multiply<kFormat>(S::kScaled ? unscaled : sum, held[i < kHeld ? i : 0][c], b);
        } else {
          uint32_t a[S::kProducts][4];
          unpack<kFormat>(chunk_of<kFormat>(i < kStaged ? stored : rest[i < kStaged ? 0 : i - kStaged], c), a);
          multiply<kFormat>(S::kScaled ? unscaled : sum, a, b);
        }
      }
      if constexpr (S::kScaled) {
        const float group_scale = __shfl_sync(kAllLanes, scale, i);
        sum[0] += unscaled[0] * group_scale;
        sum[2] += unscaled[2] * group_scale;
      }
    }
  }
  if (q == 0) shared.out[slot][g] = sum[0] * weight, shared.out[slot][g + 8] = sum[2] * weight;
  __syncthreads();
  if (threadIdx.x >= 16) return;
  float added = 0.0f;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) added += shared.out[s][threadIdx.x];
  hand_out(args.push, tile, args.partial, added, number);
#endif
}

}  // namespace

void launch_rank_down(const Queue& queue, const FewExperts& args, float* partial, const RowExchange* push) {
  const DownArgs down{args, partial, push ? *push : RowExchange{}};
  with_part(args.down.format, args.down.k, args.shared_down.k, [&](auto part) {
    using P = decltype(part);
    launch(queue, rank_down_kernel<P>, args.down.n_tiles, kSlots * 32, sizeof(DownShared<P>), down);
  });
}

}  // namespace sigmoe::cuda
