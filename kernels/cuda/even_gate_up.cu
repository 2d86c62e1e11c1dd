// Gate-up with SwiGLU of one row's nine experts, FP8, on Hopper, by one block per SM that stays for all of it.
//
// Bound: memory, 75 MB. Blocks share the 1152 tiles of 16 rows evenly (8 or 9 each) and end together. A block works on one tile
// at a time: each of its 16 warps has two of the tile's 32 groups of k, the same two of every tile, so that its activations
// stay where they are. Groups wait in a ring per warp which the copy engine fills, tiles ahead; a place is asked for again as
// soon as the warp has read it. The shared expert's tiles come first: they are on their way before the logits exist, and the
// choice of the experts hides behind them. Unscaled products of a tile's groups meet in shared memory; one warp, another for
// each tile, scales them and adds them up as gemm.cu does, group by group within four slices of k: the bits are the same.
#include <algorithm>

#include "cuda/bulk_copy.cuh"
#include "cuda/few_choice.cuh"
#include "cuda/few_plan.cuh"
#include "cuda/few_route.cuh"
#include "cuda/few_rows.h"
#include "cuda/few_stamps.cuh"
#include "cuda/gemm_tile.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

constexpr WeightFormat kFormat = WeightFormat::fp8;
using S = Stream<kFormat>;
[[maybe_unused]] constexpr int kSlots = kActive + 1, kWarps = 16, kThreads = kWarps * 32;
[[maybe_unused]] constexpr int kUpGroups = 32, kWidth = kUpGroups * kGroup, kGroupBytes = 16 * kGroup,
                               kGroupVectors = kGroupBytes / 16;
[[maybe_unused]] constexpr int kOwnGroups = kUpGroups / kWarps;  // of every tile, to a warp
[[maybe_unused]] constexpr int kSlices = 4, kSliceGroups = kUpGroups / kSlices;
constexpr int kMostTiles = 10, kMostRing = 6;
[[maybe_unused]] constexpr int kDownGroups = 8;
static_assert(slices_for(kUpGroups) == kSlices);

struct UpShared {
  alignas(128) float scales[kMostTiles][2][kUpGroups];  // of gate rows, of up rows
  alignas(16) float parts[kMostTiles][kUpGroups][16];   // unscaled products
  alignas(16) ExpertTiles table[kExperts];
  Choice choice;
  const uint4* tiles[kMostTiles];
  int out[kMostTiles];  // where the tile's eight results go
  uint64_t arrived[kWarps][kMostRing];
  uint64_t scales_arrived;
  uint64_t multiplied[kMostTiles];  // counts warps
};

// Then activations, unless registers hold them, then the rings.
template <bool kHeld>
constexpr int shared_bytes(int ring) {
  return (static_cast<int>(sizeof(UpShared)) + 127) / 128 * 128 + (kHeld ? 0 : kWidth * 2) + kWarps * ring * kGroupBytes;
}
static_assert(shared_bytes<true>(kMostRing) <= 227 << 10);

// The first of what block b has when n_blocks share `all` evenly.
__device__ __host__ inline int cut(int all, int b, int n_blocks) {
  return static_cast<int>(static_cast<int64_t>(all) * b / n_blocks);
}

// What a block has of the tiles: some of the shared expert's first, then some of the others', slot by slot.
struct Share {
  int n_tiles, shared_begin, n_shared, routed_begin, n;
};
[[maybe_unused]] __device__ inline Share share_of(int n_tiles, int b, int n_blocks) {
  const int shared_begin = cut(n_tiles, b, n_blocks), begin = cut(kSlots * n_tiles, b, n_blocks);
  return {n_tiles, shared_begin, cut(n_tiles, b + 1, n_blocks) - shared_begin, begin - shared_begin,
          cut(kSlots * n_tiles, b + 1, n_blocks) - begin};
}
// Tile i of them: of which slot, and which of it.
[[maybe_unused]] __device__ inline int slot_of(const Share& share, int i) {
  return i < share.n_shared ? kActive : (share.routed_begin + i - share.n_shared) / share.n_tiles;
}
[[maybe_unused]] __device__ inline int tile_of(const Share& share, int i) {
  return i < share.n_shared ? share.shared_begin + i : (share.routed_begin + i - share.n_shared) % share.n_tiles;
}

// A tile's sums over k, scaled, and the eight results of its gate and up rows, by one warp.
[[maybe_unused]] __device__ inline void finish_tile(const UpShared& shared, int i, __nv_bfloat16* inner) {
  const int lane = threadIdx.x % 32, row = lane % 16;
  float slice[2] = {};  // lanes 0 to 15 the first two, others the last two
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int k = 0; k < kSliceGroups; ++k) {
      const int group = (lane / 16 * 2 + s) * kSliceGroups + k;
      slice[s] += shared.parts[i][group][row] * shared.scales[i][row / 8][group];
    }
  const float third = __shfl_sync(kAllLanes, slice[0], row + 16), fourth = __shfl_sync(kAllLanes, slice[1], row + 16);
  float low = 0.0f;
  low += slice[0], low += slice[1], low += third, low += fourth;
  const float high = __shfl_sync(kAllLanes, low, lane % 8 + 8);
  if (lane < 8) inner[shared.out[i] + lane] = __float2bfloat16_rn(low / (1.0f + __expf(-low)) * high);
}

// kHeld: activations in registers. Else they wait in shared memory, and registers are no more than 56 (what two blocks of 18
// warps would have), so that a block of down finds room beside this one.
template <bool kHeld, bool kRoutes>
__global__ void __launch_bounds__(kHeld ? kThreads : 576, kHeld ? 1 : 2)
    even_gate_up_kernel(const __grid_constant__ FewExperts args, int ring) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte raw[];
  UpShared& shared = *reinterpret_cast<UpShared*>(raw);
  FewStamps stamps(args.variant.stamps, StampOf::gate_up);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const WeightView& w = args.gate_up;  // the shared expert's shape too
  const Share share = share_of(w.n_tiles, blockIdx.x, gridDim.x);
  const int n_units = share.n * kOwnGroups;  // of this warp
  std::byte* own = raw + shared_bytes<kHeld>(0) + warp * ring * kGroupBytes;
  uint64_t* arrived = shared.arrived[warp];

  if (threadIdx.x == 0) {
    for (int i = 0; i < share.n; ++i) barrier_init(&shared.multiplied[i], kWarps);
    barrier_init(&shared.scales_arrived, 1);
  }
  int asked = 0, asked_place = 0;            // units, and the place in the ring of the next
  const auto ask = [&](const uint4* tile) {  // by lane 0
    const uint4* from = tile + (warp * kOwnGroups + asked % kOwnGroups) * kGroupVectors;
    barrier_expect(&arrived[asked_place], kGroupBytes);
    if (args.variant.hint)
      bulk_copy_once(own + asked_place * kGroupBytes, from, kGroupBytes, &arrived[asked_place]);
    else
      bulk_copy(own + asked_place * kGroupBytes, from, kGroupBytes, &arrived[asked_place]);
  };
  const auto advance = [&] {
    ++asked;
    if (++asked_place == ring) asked_place = 0;
  };
  if (lane == 0) {
    for (int i = 0; i < ring; ++i) barrier_init(&arrived[i], 1);
    publish_barriers();
  }
  const size_t tile_vectors = static_cast<size_t>(kUpGroups) * kGroupVectors;
#pragma unroll 1
  while (asked < share.n_shared * kOwnGroups && asked < ring) {
    if (lane == 0) ask(args.shared_gate_up.tiles + (share.shared_begin + asked / kOwnGroups) * tile_vectors);
    advance();
  }
  float bias[2] = {};
  if (threadIdx.x < kScoringThreads) load_bias(args.bias, bias);
  if (threadIdx.x < kExperts) copy_16_bytes(shared.table + threadIdx.x, args.gate_up_tiles + threadIdx.x);
  static_assert(sizeof(RouteShared) <= sizeof(shared.parts));  // which are needed later
  [[maybe_unused]] RouteShared& route_shared = reinterpret_cast<RouteShared&>(shared.parts);
  [[maybe_unused]] RoutePart part = {static_cast<int>(blockIdx.x) % kRouteTiles, static_cast<int>(blockIdx.x) / kRouteTiles};
  [[maybe_unused]] const RouteArgs route = {args.residual,
                                            args.norm_weight,
                                            args.eps,
                                            args.gate,
                                            const_cast<float*>(args.partial),
                                            static_cast<__nv_bfloat16*>(const_cast<void*>(args.normed))};
  [[maybe_unused]] const bool routes = blockIdx.x < kRouteParts;
  if constexpr (kRoutes)
    if (routes && threadIdx.x < kRouteThreads) part.start(route, route_shared);
  const auto* normed = static_cast<const __nv_bfloat16*>(args.normed);
  auto* x = reinterpret_cast<__nv_bfloat16*>(raw + shared_bytes<true>(0));
  const int n_chosen = min(kActive, slot_of(share, share.n - 1) + 1);  // no more than this block needs; the last one needs all
  uint4 held[kHeld ? kOwnGroups : 1][kHeld ? S::kChunks : 1] = {};
#pragma unroll 1
  for (int pass = args.variant.reh & 1 ? 0 : 1; pass < 2; ++pass) {  // pass 0 is a rehearsal: what it finds is not used
    const bool real = pass == 1;
    if (real) {
      wait_for_previous();
      stamps.waited();
      if constexpr (kRoutes) {  // down may read the logits as soon as it starts
        if (routes && threadIdx.x < kRouteThreads) part.finish(route, route_shared);
        meet_blocks(args.meeting, kRouteParts, routes);
      }
      if (args.variant.eu == 0) let_next_start();
    }

    // The choice; activations meanwhile: of this warp's two groups, 16 bytes to a lane of the first row of lanes.
    if constexpr (kHeld) {
      if (g == 0)
#pragma unroll
        for (int u = 0; u < kOwnGroups; ++u)
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c)
            held[u][c] = __ldcg(reinterpret_cast<const uint4*>(normed + (warp * kOwnGroups + u) * kGroup +
                                                               c * chunk_k(kFormat) + q * S::kLaneK));
    } else {
      copy_16_bytes(x + 8 * threadIdx.x, normed + 8 * threadIdx.x);
    }
    if (threadIdx.x < kScoringThreads) score_experts(args.partial, bias, shared.choice);
    wait_for_copies();
    __syncthreads();
    if (warp == 0) {
      const int chosen = choose_experts(shared.choice, n_chosen);
      if (lane < kActive) shared.choice.ids[lane] = chosen;
      const int slot = lane < share.n ? slot_of(share, lane) : kActive, tile = lane < share.n ? tile_of(share, lane) : 0;
      const int id = __shfl_sync(kAllLanes, chosen, slot % kActive);
      const ExpertTiles expert =
          slot == kActive ? ExpertTiles{args.shared_gate_up.tiles, args.shared_gate_up.scales} : shared.table[id];
      if (real && lane == 0) barrier_expect(&shared.scales_arrived, share.n * 2 * kUpGroups * static_cast<int>(sizeof(float)));
      __syncwarp();
      if (real && lane < share.n) {
        shared.tiles[lane] = expert.tiles + tile * tile_vectors;
        shared.out[lane] = slot * (w.n / 2) + tile * 8;
#pragma unroll
        for (int h = 0; h < 2; ++h)
          bulk_copy(shared.scales[lane][h],
                    expert.scales + static_cast<size_t>(row_in_tile(w, tile, h * 8) >> w.row_shift) * w.scale_columns,
                    kUpGroups * static_cast<int>(sizeof(float)), &shared.scales_arrived);
      }
    }
    __syncthreads();
  }
#pragma unroll 1
  while (asked < n_units && asked < ring) {
    if (lane == 0) ask(shared.tiles[asked / kOwnGroups]);
    advance();
  }
  if (args.plan && blockIdx.x == gridDim.x - 1 && warp == 1) write_plan(args, shared.choice, shared.choice.ids[lane % kActive]);
  // Tile `warp` of this block has the same number as two tiles of down: those are asked for in L2 at the end.
  const uint4* later = nullptr;
  if (args.variant.dpf > 0 && lane == 0 && warp < share.n) {
    const int slot = slot_of(share, warp);
    later = slot == kActive ? args.shared_down.tiles : args.down_tiles[shared.choice.ids[slot]].tiles;
    later += static_cast<size_t>(tile_of(share, warp)) * 2 * kDownGroups * kGroupVectors;
  }

  [[maybe_unused]] const __nv_bfloat16* from = x + warp * kOwnGroups * kGroup + q * S::kLaneK;
  auto* inner = static_cast<__nv_bfloat16*>(args.inner);
  const auto finish = [&](int i) {
    barrier_wait(&shared.multiplied[i], 0);
    barrier_wait(&shared.scales_arrived, 0);
    finish_tile(shared, i, inner);
  };
  int place = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int i = 0; i < share.n; ++i) {
#pragma unroll
    for (int u = 0; u < kOwnGroups; ++u) {
      barrier_wait(&arrived[place], parity);
      uint4 weights[S::kChunks];
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
        weights[c] = reinterpret_cast<const uint4*>(own + place * kGroupBytes)[c * 32 + lane];
      if (++place == ring) place = 0, parity ^= 1;
      __syncwarp();  // all lanes have read the place that is asked for again
      if (asked < n_units) {
        if (lane == 0) {
          release_to_copies();
          ask(shared.tiles[asked / kOwnGroups]);
        }
        advance();
        if (asked == n_units && later) prefetch_bulk(later, args.variant.dpf * 2 * kDownGroups * kGroupBytes / 8);
      }
      float unscaled[4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        uint32_t a[S::kProducts][4];
        unpack<kFormat>(weights[c], a);
        if constexpr (kHeld) {
          const uint32_t b[S::kLaneK / 2] = {held[u][c].x, held[u][c].y, held[u][c].z, held[u][c].w};
          multiply<kFormat>(unscaled, a, b);
        } else {
          uint32_t b[S::kLaneK / 2] = {};
          if (g == 0) load_x<S::kLaneK>(from, u * kGroup + c * chunk_k(kFormat), 0, true, b);
          multiply<kFormat>(unscaled, a, b);
        }
      }
      if (q == 0) {
        float* part = shared.parts[i][warp * kOwnGroups + u];
        part[g] = unscaled[0], part[g + 8] = unscaled[2];
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.multiplied[i]);
    if (args.variant.eu == 1 && asked == n_units) let_next_start();
    if (i > 0 && warp == i - 1) finish(i - 1);  // a tile late: the others are done with it
  }
  if (warp == share.n - 1) finish(share.n - 1);
  if (args.variant.stamps) {
    __syncthreads();
    stamps.done();
  }
#endif
}

int n_sms() {
  static const int known = [] {
    int device = 0, n = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
    return n;
  }();
  return known;
}

template <bool kHeld, bool kRoutes = false>
void launch_kernel(const Queue& queue, const FewExperts& args, int ring) {
  const auto kernel = even_gate_up_kernel<kHeld, kRoutes>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<kHeld>(ring)));
  launch(queue, kernel, n_sms(), kThreads, shared_bytes<kHeld>(ring), args, ring);
}

}  // namespace

bool takes_even_gate_up(const FewExperts& args) {
  const WeightView& w = args.gate_up;
  const int n_blocks = n_sms();
  return w.format == kFormat && w.k == kWidth && w.scale_columns == kUpGroups && w.k_shift == 7 && w.row_shift >= 3 &&
         w.n == w.n_tiles * 16 && w.n_tiles >= kWarps && (kSlots * w.n_tiles + n_blocks - 1) / n_blocks <= kMostTiles &&
         kSlots * w.n_tiles >= n_blocks && n_blocks >= few::kRouteParts;
}

void launch_even_gate_up(const Queue& queue, const FewExperts& args) {
  const int ring = std::clamp(args.variant.ring, 2, kMostRing);
  if (args.variant.up == 3 && !args.routes)
    launch_kernel<false>(queue, args, std::min(ring, 2));
  else if (args.routes)
    launch_kernel<true, true>(queue, args, ring);
  else
    launch_kernel<true>(queue, args, ring);
}

}  // namespace sigmoe::cuda
