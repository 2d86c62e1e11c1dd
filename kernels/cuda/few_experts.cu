// The experts of one row, FP8, on Hopper: gate-up with SwiGLU, then down with the weighted sum over all experts and the
// residual.
//
// Bound: memory, the bytes of nine experts. Every block makes the router's choice for itself from the logits: a microsecond of
// dependent steps, and no kernel between. Gate-up: blocks of the shared expert, whose weights are known, ask for them before
// the logits exist; others ask for activations and tables meanwhile. Four warps have a slice of k each of two tiles of 16 rows,
// and ask for a chunk of the next group as soon as the last one's is used. Down: a block has 16 columns of the output and a
// warp for each expert, so that the sum over experts, in their order, stays in the block. All its 144 KB of weights are asked
// for before the wait for gate-up: six groups of a warp's eight in shared memory, the first two of them expanded to registers
// at once, a seventh in their place and the eighth in registers.
//
// k is cut and added up as gemm.cu does: the bits are the same.
#include "cuda/bulk_copy.cuh"
#include "cuda/few_gate_up.cuh"
#include "cuda/gemm_tile.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

constexpr WeightFormat kFormat = WeightFormat::fp8;
using S = Stream<kFormat>;
constexpr int kSlots = kActive + 1;  // the shared expert is the last
[[maybe_unused]] constexpr int kGroupBytes = 16 * kGroup, kGroupVectors = kGroupBytes / 16;

// Gate-up: D 4096 to F.
[[maybe_unused]] constexpr int kUpWarps = 4, kTiles = 2, kUpGroups = 32, kSliceGroups = kUpGroups / kUpWarps,
                               kWidth = kUpGroups * kGroup;
static_assert(kWidth == limits::few::kWidth && slices_for(kUpGroups) == kUpWarps && kUpWarps * 32 == kScoringThreads);

__global__ void __launch_bounds__(kUpWarps * 32, 5) few_gate_up_kernel(const __grid_constant__ FewExperts args) {
#if __CUDA_ARCH__ >= 900
  __shared__ __align__(16) __nv_bfloat16 x[kWidth];
  __shared__ __align__(16) ExpertTiles table[kExperts];
  __shared__ Choice choice;
  __shared__ float partial[kUpWarps][kTiles][16];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const WeightView& w = args.gate_up;  // the shared expert's shape too
  const int blocks_of_slot = w.n_tiles / kTiles;
  const int order = blockIdx.x / blocks_of_slot, first_tile = blockIdx.x % blocks_of_slot * kTiles;
  const bool shared = order == 0;
  const int slot = shared ? kActive : order - 1;

  uint4 weights[kTiles][S::kChunks];
  float scale = 0.0f;  // lane (m, h, i): of tile m, its gate rows or its up rows, group i of the slice
  const uint4* source;
  const auto start = [&](const ExpertTiles& expert) {
    source = expert.tiles + (static_cast<size_t>(first_tile) * kUpGroups + warp * kSliceGroups) * kGroupVectors +
             vector_of<kFormat>(lane);
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) weights[m][c] = load_once(source + m * kUpGroups * kGroupVectors + c * 32);
    const int row = max(row_in_tile(w, first_tile + lane / 16, lane / 8 % 2 * 8), 0);
    scale = expert.scales[static_cast<size_t>(row >> w.row_shift) * w.scale_columns +
                          ((warp * kSliceGroups + lane % 8) * kGroup >> w.k_shift)];
  };
  float bias[2];
  if (shared)
    start({args.shared_gate_up.tiles, args.shared_gate_up.scales});
  else
    load_tables(args, bias, table);
  take_row_and_choose(args, shared, slot, bias, x, choice);
  if (!shared) start(table[choice.ids[0]]);

  const __nv_bfloat16* own = x + warp * kSliceGroups * kGroup + q * S::kLaneK;
  float sum[kTiles][4] = {};
#pragma unroll 1
  for (int i = 0; i < kSliceGroups; ++i) {
    float unscaled[kTiles][4] = {};
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      uint32_t b[S::kLaneK / 2] = {};
      if (g == 0) load_x<S::kLaneK>(own, i * kGroup + c * chunk_k(kFormat), 0, true, b);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        uint32_t a[S::kProducts][4];
        unpack<kFormat>(chunk_of<kFormat>(weights[m], c), a);
        if (i + 1 < kSliceGroups)
#pragma unroll
          for (int s = 0; s < S::kChunks; ++s)
            if (frees<kFormat>(c, s)) weights[m][s] = load_once(source + (m * kUpGroups + i + 1) * kGroupVectors + s * 32);
        multiply<kFormat>(unscaled[m], a, b);
      }
    }
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
  static_cast<__nv_bfloat16*>(args.inner)[slot * (w.n / 2) + (first_tile + m) * 8 + row] =
      __float2bfloat16_rn(low / (1.0f + __expf(-low)) * high);
#endif
}

// Down: F 1024 to D.
[[maybe_unused]] constexpr int kDownGroups = 8, kInner = kDownGroups * kGroup, kHeldGroups = 2, kStagedGroups = 6;
constexpr int kWarpBytes = kStagedGroups * kGroupBytes;
static_assert(kInner == limits::few::kInner && slices_for(kDownGroups) == 1 && kInner * 2 <= kGroupBytes);

struct DownShared {
  alignas(128) std::byte weights[kSlots][kWarpBytes];
  Choice choice;
  float out[kSlots][16];
  uint64_t arrived[kSlots][3];
};

__global__ void __launch_bounds__(kSlots * 32, 2) few_down_kernel(const __grid_constant__ FewExperts args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte raw[];
  DownShared& shared = *reinterpret_cast<DownShared*>(raw);
  let_next_start();
  const int lane = threadIdx.x % 32, slot = threadIdx.x / 32, g = lane / 4, q = lane % 4, tile = blockIdx.x;
  const WeightView& w = args.down;
  std::byte* own = shared.weights[slot];
  uint64_t* arrived = shared.arrived[slot];
  if (lane == 0) {
    for (int i = 0; i < 3; ++i) barrier_init(&arrived[i], 1);
    publish_barriers();
  }
  const uint4* source;
  uint4 last[S::kChunks];
  float scale;  // lane i: of group i
  const auto copy_groups = [&](int at, int first, int n, uint64_t* barrier) {
    barrier_expect(barrier, n * kGroupBytes);
    bulk_copy(own + at * kGroupBytes, source + first * kGroupVectors, n * kGroupBytes, barrier);
  };
  const auto start = [&](const ExpertTiles& expert) {
    source = expert.tiles + static_cast<size_t>(tile) * kDownGroups * kGroupVectors;
    if (lane == 0) {
      copy_groups(0, 0, kHeldGroups, &arrived[0]);
      copy_groups(kHeldGroups, kHeldGroups, kStagedGroups - kHeldGroups, &arrived[1]);
    }
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
      last[c] = load_once(source + (kDownGroups - 1) * kGroupVectors + c * 32 + vector_of<kFormat>(lane));
    scale = expert.scales[static_cast<size_t>(tile * 16 >> w.row_shift) * w.scale_columns +
                          (lane % kDownGroups * kGroup >> w.k_shift)];
  };
  // The logits are there: gate-up lets this kernel start only after waiting for them itself.
  float weight = 1.0f;
  if (slot == kActive) start({args.shared_down.tiles, args.shared_down.scales});
  if (threadIdx.x < kScoringThreads) {
    float bias[2];
    load_bias(args.bias, bias);
    score_experts(args.partial, bias, shared.choice);
  }
  __syncthreads();
  if (slot < kActive) {
    const int chosen = choose_experts(shared.choice, kActive);
    start(args.down_tiles[__shfl_sync(kAllLanes, chosen, slot)]);
    weight = __shfl_sync(kAllLanes, weigh_expert(shared.choice, chosen, args.normalise, args.scaling), slot);
  }
  float before = 0.0f;  // the residual is older than the logits
  if (threadIdx.x < 16) before = __ldcg(args.residual + tile * 16 + threadIdx.x);

  const auto staged = [&](int group, uint4(&stored)[S::kChunks]) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
      stored[c] = reinterpret_cast<const uint4*>(own)[(group * S::kChunks + c) * 32 + vector_of<kFormat>(lane)];
  };
  uint32_t held[kHeldGroups][S::kChunks][S::kProducts][4];
  barrier_wait(&arrived[0], 0);
#pragma unroll
  for (int i = 0; i < kHeldGroups; ++i) {
    uint4 stored[S::kChunks];
    staged(i, stored);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) unpack<kFormat>(chunk_of<kFormat>(stored, c), held[i][c]);
  }
  __syncwarp();
  if (lane == 0) {  // the sixth group takes the second one's place, activations take the first one's
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    copy_groups(1, kStagedGroups, 1, &arrived[2]);
  }
  wait_for_previous();

  auto* x = reinterpret_cast<__nv_bfloat16*>(own);
  const auto* inner = static_cast<const __nv_bfloat16*>(args.inner) + slot * kInner;
#pragma unroll
  for (int i = 0; i < kInner / 256; ++i) copy_16_bytes(x + 8 * (lane + 32 * i), inner + 8 * (lane + 32 * i));
  wait_for_copies();
  __syncwarp();
  float sum[2] = {};
#pragma unroll
  for (int i = 0; i < kDownGroups; ++i) {
    if (i == kHeldGroups) barrier_wait(&arrived[1], 0);
    if (i == kStagedGroups) barrier_wait(&arrived[2], 0);
    float unscaled[4] = {};
    uint4 stored[S::kChunks];
    if (i >= kHeldGroups && i < kDownGroups - 1) staged(i == kStagedGroups ? 1 : i, stored);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      uint32_t b[S::kLaneK / 2] = {};
      if (g == 0) load_x<S::kLaneK>(x + q * S::kLaneK, i * kGroup + c * chunk_k(kFormat), 0, true, b);
      if (i < kHeldGroups) {
        multiply<kFormat>(unscaled, held[i < kHeldGroups ? i : 0][c], b);
      } else {
        uint32_t a[S::kProducts][4];
        unpack<kFormat>(chunk_of<kFormat>(i == kDownGroups - 1 ? last : stored, c), a);
        multiply<kFormat>(unscaled, a, b);
      }
    }
    const float group_scale = __shfl_sync(kAllLanes, scale, i);
    sum[0] += unscaled[0] * group_scale;
    sum[1] += unscaled[2] * group_scale;
  }
  if (q == 0) shared.out[slot][g] = sum[0] * weight, shared.out[slot][g + 8] = sum[1] * weight;
  __syncthreads();
  if (threadIdx.x >= 16) return;
  float added = 0.0f;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) added += shared.out[s][threadIdx.x];
  args.residual[tile * 16 + threadIdx.x] = before + added;
#endif
}

}  // namespace

bool has_few_experts() {
  static const bool built = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, few_down_kernel));
    return attributes.binaryVersion >= 90;
  }();
  return built;
}

void launch_few_experts(const Queue& queue, const FewExperts& args) {
  launch(queue, few_gate_up_kernel, kSlots * args.gate_up.n_tiles / kTiles, kUpWarps * 32, 0, args);
  launch(queue, few_down_kernel, args.down.n_tiles, kSlots * 32, sizeof(DownShared), args);
}

}  // namespace sigmoe::cuda
