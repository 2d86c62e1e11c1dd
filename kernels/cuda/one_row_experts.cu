// The nine experts of one row, FP8, on Hopper, in one kernel that streams every byte once: gate-up with SwiGLU, then down with
// the weighted sum over all experts and the residual.
//
// Bound: memory, 113 MB; a kernel that reads them and does nothing takes 27 us behind a small one. One block per SM stays for
// all of it. Its sixteen warps each take a sixteenth of every tile, in units of 2 KB, from a ring of their own that the copy
// engine keeps full; the order of units is fixed before the first, so that the stream never stops for what a unit needs.
// There is no meeting of blocks between the two products: tiles of gate-up go over the blocks expert by expert, and so do
// those of down, so that what down reads of an expert was finished a whole product earlier. A count for each expert says so.
// The shared expert is first: its bytes are on their way before the logits exist, and every block makes the router's choice
// for itself meanwhile. Two more warps do what would hold the stream up: one scales, adds up and writes what the sixteen
// multiplied, the other fetches what they multiply by.
//
// k is cut and added up as gemm.cu does: the bits are the same.
#include <algorithm>

#include "cuda/bulk_copy.cuh"
#include "cuda/few_choice.cuh"
#include "cuda/few_half.cuh"
#include "cuda/few_rows.h"
#include "cuda/few_stamps.cuh"
#include "cuda/gemm_tile.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

constexpr WeightFormat kFormat = WeightFormat::fp8;
using S = Stream<kFormat>;
// Slots count in the order of the work here: the shared expert is slot 0, the chosen ones 1 to 8.
constexpr int kSlots = kActive + 1, kWarps = 16, kThreads = (kWarps + 4) * 32;
[[maybe_unused]] constexpr int kFinisher = kWarps, kAsker = kWarps + 1, kFetcher = kWarps + 2, kFetchers = 2;  // warps
constexpr int kUpGroups = 32, kWidth = kUpGroups * kGroup, kGroupBytes = 16 * kGroup, kGroupVectors = kGroupBytes / 16;
[[maybe_unused]] constexpr int kHalves = kUpGroups / kWarps, kUnitBytes = kWarps * kGroupBytes;  // a unit is a half of a tile of gate-up
constexpr int kSlices = 4, kSliceGroups = kUpGroups / kSlices;
constexpr int kDownGroups = 8, kInner = kDownGroups * kGroup;
constexpr int kUpTiles = 2 * kInner / 16, kDownTiles = kWidth / 16;
constexpr int kMostDown = kWarps / kDownGroups;  // of down, to a block: a warp has one group of one
constexpr int kMostTiles = 9, kMostPlaces = 5;
static_assert(slices_for(kUpGroups) == kSlices && slices_for(kDownGroups) == 1 && kWidth == limits::few::kWidth &&
              kInner == limits::few::kInner);

struct Shared {
  alignas(128) float up_scales[kMostTiles][2][kUpGroups];  // of gate rows, of up rows
  alignas(16) float up_parts[kMostTiles][kUpGroups][16];   // unscaled products
  alignas(16) float down_parts[kSlots][kWarps][16];
  alignas(16) __nv_bfloat16 normed[kWidth];
  alignas(16) __nv_bfloat16 inner[kSlots][kInner];
  alignas(16) ExpertTiles table[kExperts];
  float down_scales[kSlots][kWarps];
  float slot_weights[kSlots];
  float up_inverse[kUpGroups], down_inverse[kSlots][kDownGroups];  // of what activations were multiplied by; 0: they are BF16
  Choice choice;
  const uint4* up_tiles[kMostTiles];
  const uint4* down_tiles[kSlots];
  uint64_t arrived[kMostPlaces], read[kMostPlaces];  // read counts warps
  uint64_t up_multiplied[kMostTiles], down_multiplied[kSlots];  // count warps
  uint64_t up_scales_arrived, down_known, inner_arrived[kSlots];
};
constexpr int kRingAt = (static_cast<int>(sizeof(Shared)) + 127) / 128 * 128;
constexpr int shared_bytes(int places) { return kRingAt + places * kUnitBytes; }
static_assert(shared_bytes(kMostPlaces) <= 227 << 10);

// How many tiles the blocks have of each product: the first `more` of them one more than the others.
struct Shares {
  int up, up_more, down, down_more;
};

#if __CUDA_ARCH__ >= 900
// Tile i of block b: every slot's tiles lie next to each other over the blocks.
struct UpTile {
  int slot, tile;
  __device__ explicit UpTile(int i) {
    const unsigned at = i * gridDim.x + blockIdx.x;
    slot = at / kUpTiles, tile = at % kUpTiles;
  }
};

// Its sums over k, scaled, and the eight results of its gate and up rows, by one warp.
__device__ inline void finish_up(const Shared& shared, int i, unsigned long long* to) {
  const int lane = threadIdx.x % 32, row = lane % 16;
  float slice[2] = {};  // lanes 0 to 15 the first two, others the last two
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int k = 0; k < kSliceGroups; ++k) {
      const int group = (lane / 16 * 2 + s) * kSliceGroups + k;
      slice[s] += shared.up_parts[i][group][row] * (shared.up_scales[i][row / 8][group] * or_one(shared.up_inverse[group]));
    }
  const float third = __shfl_sync(kAllLanes, slice[0], row + 16), fourth = __shfl_sync(kAllLanes, slice[1], row + 16);
  float low = 0.0f;
  low += slice[0], low += slice[1], low += third, low += fourth;
  const float high = __shfl_sync(kAllLanes, low, lane % 8 + 8);
  const float value = low / (1.0f + __expf(-low)) * high, next = __shfl_down_sync(kAllLanes, value, 1);
  if (lane < 8 && lane % 2 == 0)
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to + lane / 2),
                 "l"(pack_bf16(value, next) | 1ull << 32)
                 : "memory");
}

// The lane's 32 activations, once the blocks have left them: all words are asked for at once.
__device__ inline void wait_for_inner(const unsigned long long* from, uint4 (&x)[S::kChunks]) {
  const long long start = clock64();
  for (bool there = false; !there;) {
    there = true;
    unsigned long long words[S::kChunks][4];
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                     : "=l"(words[c][i]), "=l"(words[c][i + 1])
                     : "l"(from + 4 * c + i)
                     : "memory");
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const auto& four = words[c];
      there = there && four[0] && four[1] && four[2] && four[3];
      x[c] = {static_cast<uint32_t>(four[0]), static_cast<uint32_t>(four[1]), static_cast<uint32_t>(four[2]),
              static_cast<uint32_t>(four[3])};
    }
    if (clock64() - start > 4'000'000'000ll) __trap();
  }
}

// Part i of n of the bytes that the next kernel reads.
__device__ inline void ask_ahead(const AheadBytes& ahead, int i, int n) {
  constexpr size_t kPiece = 4096;
  for (size_t at = i * kPiece; at < ahead.n; at += n * kPiece)
    prefetch_bulk(static_cast<const char*>(ahead.from) + at, static_cast<int>(min(kPiece, ahead.n - at)));
}

#endif

__global__ void __launch_bounds__(kThreads, 1) one_row_experts_kernel(const __grid_constant__ FewExperts args, Shares shares, int places) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  FewStamps stamps(args.variant.stamps, StampOf::gate_up);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const WeightView& up = args.gate_up;  // the shared expert's shapes too
  const WeightView& down = args.down;
  const int block = blockIdx.x, n_blocks = gridDim.x;
  const int n_up = shares.up + (block < shares.up_more), n_down = shares.down + (block < shares.down_more);
  const int first_down = block * shares.down + min(block, shares.down_more);
  const int n_up_units = n_up * kHalves, n_units = n_up_units + kSlots;
  constexpr size_t kTileVectors = static_cast<size_t>(kUpGroups) * kGroupVectors;
  const size_t down_at = static_cast<size_t>(first_down) * kDownGroups * kGroupVectors;
  std::byte* ring = raw + kRingAt;

  // Units of the block: two halves of each tile of gate-up, then its tiles of each slot's down.
  int asked = 0, asked_place = 0;  // and the place of the next
  const auto ask = [&](const uint4* from, int bytes) {
    barrier_expect(&shared.arrived[asked_place], bytes);
    bulk_copy(ring + asked_place * kUnitBytes, from, bytes, &shared.arrived[asked_place]);
    ++asked;
    if (++asked_place == places) asked_place = 0;
  };
  if (warp == kAsker) {
    if (lane < places) barrier_init(&shared.arrived[lane], 1), barrier_init(&shared.read[lane], kWarps);
    publish_barriers();
    __syncwarp();
    if (lane == 0) {
#pragma unroll 1
      while (asked < places) {
        const UpTile at(asked / kHalves);
        if (at.slot > 0) break;
        ask(args.shared_gate_up.tiles + at.tile * kTileVectors + asked % kHalves * (kUnitBytes / 16), kUnitBytes);
      }
      prefetch_bulk(args.shared_down.tiles + down_at, n_down * kDownGroups * kGroupBytes);
    }
  } else if (warp == kFinisher) {
    if (lane < n_up) barrier_init(&shared.up_multiplied[lane], kWarps);
    if (lane < kSlots) barrier_init(&shared.down_multiplied[lane], n_down * kDownGroups);
    if (lane == 0) barrier_init(&shared.up_scales_arrived, 1);
    publish_barriers();
  } else if (warp == kFetcher) {
    if (lane < kSlots) barrier_init(&shared.inner_arrived[lane], 1);
    if (lane == 0) barrier_init(&shared.down_known, 1);
    publish_barriers();
  }
  float bias[2] = {};
  if (threadIdx.x < kScoringThreads) load_bias(args.bias, bias);
  if (threadIdx.x < kExperts) copy_16_bytes(shared.table + threadIdx.x, args.gate_up_tiles + threadIdx.x);
  // The choice; activations meanwhile. Once with whatever is there, before the wait: code that is not in the instruction cache
  // would come from L2, behind the stream.
#pragma unroll 1
  for (int pass = args.variant.reh & 1 ? 0 : 1; pass < 2; ++pass) {
  if (pass == 1) {
  wait_for_previous();
  stamps.waited();
  }
  if (threadIdx.x < kWidth / 8) copy_16_bytes(shared.normed + 8 * threadIdx.x, static_cast<const __nv_bfloat16*>(args.normed) + 8 * threadIdx.x);
  if (threadIdx.x < kScoringThreads) score_experts(args.partial, bias, shared.choice);
  wait_for_copies();
  __syncthreads();
  if (const int at = threadIdx.x - 32; at >= 0 && at < kWidth / 8) {
    uint4 own[1] = {reinterpret_cast<const uint4*>(shared.normed)[at]};
    const float inverse = args.variant.hint & 1 ? 0.0f : halve(own);
    reinterpret_cast<uint4*>(shared.normed)[at] = own[0];
    if (at % 16 == 0) shared.up_inverse[at / 16] = inverse;
  }
  if (warp == 0) {
    const int chosen = choose_experts(shared.choice, kActive);
    if (lane < kActive) shared.choice.ids[lane] = chosen;
    const UpTile at(lane < n_up ? lane : 0);
    const int id = __shfl_sync(kAllLanes, chosen, max(at.slot - 1, 0));
    const ExpertTiles expert =
        at.slot == 0 ? ExpertTiles{args.shared_gate_up.tiles, args.shared_gate_up.scales} : shared.table[id];
    if (lane < n_up) shared.up_tiles[lane] = expert.tiles + at.tile * kTileVectors;
    __syncwarp();
  }
  __syncthreads();
  }
  if (warp < kWarps) {
    int place = 0;
    uint32_t parity = 0;
    long long idle = 0;
    const unsigned long long loop_start = FewStamps::now();
#pragma unroll 1
    for (int unit = 0; unit < n_units; ++unit) {
      const bool of_up = unit < n_up_units;
      const int tile = unit / kHalves, slot = unit - n_up_units;
      const int group = of_up ? unit % kHalves * kWarps + warp : warp % kDownGroups;
      const long long t0 = clock64();
      barrier_wait(&shared.arrived[place], parity);
      if (of_up) idle += clock64() - t0;
      uint4 weights[S::kChunks];
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
        weights[c] = reinterpret_cast<const uint4*>(ring + place * kUnitBytes + warp * kGroupBytes)[c * 32 + lane];
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.read[place]);
      if (++place == places) place = 0, parity ^= 1;
      if (!of_up) {
        if (warp >= n_down * kDownGroups) continue;
        barrier_wait(&shared.inner_arrived[slot], 0);
      }
      const __nv_bfloat16* x = (of_up ? shared.normed : shared.inner[slot]) + group * kGroup + q * S::kLaneK;
      float sum[4] = {};
      if ((of_up ? shared.up_inverse[group] : shared.down_inverse[slot][group]) != 0.0f) {
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
          uint4 b = {};
          if (g == 0) b = *reinterpret_cast<const uint4*>(x + c * chunk_k(kFormat));
          uint32_t first[4], second[4];
          half_pairs(weights[c].x, first[0], first[2]), half_pairs(weights[c].z, first[1], first[3]);
          half_pairs(weights[c].y, second[0], second[2]), half_pairs(weights[c].w, second[1], second[3]);
          mma_half(sum, first, b.x, b.y);
          mma_half(sum, second, b.z, b.w);
        }
      } else {
#pragma unroll 1
        for (int c = 0; c < S::kChunks; ++c) {
          const uint4 w = c == 0 ? weights[0] : c == 1 ? weights[1] : c == 2 ? weights[2] : weights[3];
          uint32_t a[S::kProducts][4], b[S::kLaneK / 2] = {};
          if (g == 0) load_x<S::kLaneK>(x, c * chunk_k(kFormat), 0, true, b);
          unpack<kFormat>(w, a);
          multiply<kFormat>(sum, a, b);
        }
      }
      float* part = of_up ? shared.up_parts[tile][group] : shared.down_parts[slot][warp];
      if (q == 0) part[g] = sum[0], part[g + 8] = sum[2];
      __syncwarp();
      if (lane == 0 && (!of_up || unit % kHalves == kHalves - 1))
        barrier_arrive(of_up ? &shared.up_multiplied[tile] : &shared.down_multiplied[slot]);
      if (unit == n_up_units - 1 && args.variant.stamps && threadIdx.x == 0)
        FewStamps::put(args.variant.stamps, StampOf::down, 2, loop_start + idle * 10 / 19);
    }
  } else if (warp == kAsker) {
    if (lane == 0) {
#pragma unroll 1
      while (asked < n_units) {
        const int slot = asked - n_up_units;
        if (asked >= places) barrier_wait(&shared.read[asked_place], (asked / places - 1) & 1);
        if (slot == 0) barrier_wait(&shared.down_known, 0);
        ask(slot < 0 ? shared.up_tiles[asked / kHalves] + asked % kHalves * (kUnitBytes / 16) : shared.down_tiles[slot] + down_at,
            slot < 0 ? kUnitBytes : n_down * kDownGroups * kGroupBytes);
      }
      let_next_start();
    }
    __syncwarp();
    ask_ahead(args.ahead, blockIdx.x * 32 + lane, n_blocks * 32);
  } else if (warp == kFinisher) {
    auto* inner = static_cast<unsigned long long*>(args.inner);
    if (lane == 0) barrier_expect(&shared.up_scales_arrived, n_up * 2 * kUpGroups * static_cast<int>(sizeof(float)));
    __syncwarp();
    if (lane < n_up) {
      const UpTile at(lane);
      const float* scales = at.slot == 0 ? args.shared_gate_up.scales : shared.table[shared.choice.ids[at.slot - 1]].scales;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        bulk_copy(shared.up_scales[lane][h],
                  scales + static_cast<size_t>(row_in_tile(up, at.tile, h * 8) >> up.row_shift) * up.scale_columns,
                  kUpGroups * static_cast<int>(sizeof(float)), &shared.up_scales_arrived);
    }
    barrier_wait(&shared.up_scales_arrived, 0);
#pragma unroll 1
    for (int i = 0; i < n_up; ++i) {
      const UpTile at(i);
      barrier_wait(&shared.up_multiplied[i], 0);
      finish_up(shared, i, inner + (at.slot * kInner + at.tile * 8) / 2);
    }
    // A lane has a column. The sum goes over the chosen experts, then the shared one; products and sums round one by one.
    const bool owns = lane < n_down * 16;
    float* to = args.residual + first_down * 16 + lane;
    const float before = owns ? __ldcg(to) : 0.0f;
    FewStamps down_stamps(args.variant.stamps, StampOf::down, kFinisher * 32);
    barrier_wait(&shared.down_known, 0);
    float added = 0.0f, of_shared = 0.0f;
#pragma unroll 1
    for (int slot = 0; slot < kSlots; ++slot) {
      barrier_wait(&shared.down_multiplied[slot], 0);
      float sum = 0.0f;
      const int first = lane / 16 * kDownGroups;
#pragma unroll
      for (int k = 0; k < kDownGroups; ++k)
        sum += shared.down_parts[slot][first + k][lane % 16] * (shared.down_scales[slot][first + k] * or_one(shared.down_inverse[slot][k]));
      if (slot == 0)
        of_shared = sum;
      else
        added = __fadd_rn(added, __fmul_rn(sum, shared.slot_weights[slot]));
    }
    if (owns) *to = before + __fadd_rn(added, of_shared);
    down_stamps.done();
  } else {
    if (warp == kFetcher) {
    // Where down's weights are, their scales, and what the experts weigh.
    const int chosen = shared.choice.ids[lane % kActive];
    const float weight = weigh_expert(shared.choice, chosen, args.normalise, args.scaling);
    if (lane < kActive) shared.slot_weights[lane + 1] = weight;
    ExpertTiles expert = {args.shared_down.tiles, args.shared_down.scales};
    if (lane > 0 && lane < kSlots) expert = args.down_tiles[shared.choice.ids[lane - 1]];
    if (lane < kSlots) shared.down_tiles[lane] = expert.tiles;
#pragma unroll 1
    for (int i = 0; i < (kSlots + 1) / 2; ++i) {
      const int slot = min(2 * i + lane / kWarps, kSlots - 1), tile = lane % kWarps / kDownGroups;
      const auto* scales = reinterpret_cast<const float*>(__shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(expert.scales), slot));
      if (tile < n_down)
        shared.down_scales[slot][lane % kWarps] =
            scales[static_cast<size_t>((first_down + tile) * 16 >> down.row_shift) * down.scale_columns + lane % kDownGroups];
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.down_known);
    }
#pragma unroll 1
    for (int slot = warp - kFetcher; slot < kSlots; slot += kFetchers) {  // a lane has 32 in a row, a fourth of a group: a part of each of its four chunks
      barrier_wait(&shared.up_multiplied[min(slot + 2, n_up - 1)], 0);  // others will not be far behind
      uint4 own_x[S::kChunks];
      wait_for_inner(static_cast<const unsigned long long*>(args.inner) + slot * (kInner / 2) + lane * 16, own_x);
      __syncwarp();
      const float inverse = args.variant.hint & 1 ? 0.0f : halve(own_x);
      if (q == 0) shared.down_inverse[slot][g] = inverse;
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) reinterpret_cast<uint4*>(shared.inner[slot])[4 * lane + c] = own_x[c];
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.inner_arrived[slot]);
    }
  }
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

}  // namespace

bool takes_one_row_experts(const FewExperts& args) {
  const WeightView &up = args.gate_up, &down = args.down;
  const int n_blocks = n_sms();
  const auto fits = [](const WeightView& w, int groups) {
    return w.format == kFormat && w.scale_columns == groups && w.k_shift == 7 && w.row_shift >= 3 && w.n == w.n_tiles * 16;
  };
  return fits(up, kUpGroups) && fits(down, kDownGroups) && down.row_shift >= 4 && up.k == kWidth && down.k == kInner &&
         up.n_tiles == kUpTiles && down.n_tiles == kDownTiles && kSlots * kUpTiles >= 8 * n_blocks &&
         kSlots * kUpTiles <= kMostTiles * n_blocks && kDownTiles >= n_blocks && kDownTiles <= kMostDown * n_blocks;
}

void launch_one_row_experts(const Queue& queue, const FewExperts& args) {
  const int places = std::clamp(args.variant.ring, 2, kMostPlaces);
  const int n = n_sms(), n_up = kSlots * kUpTiles;
  const Shares shares = {n_up / n, n_up % n, kDownTiles / n, kDownTiles % n};
  CUDA_CHECK(cudaFuncSetAttribute(one_row_experts_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(places)));
  launch(queue, one_row_experts_kernel, n, kThreads, shared_bytes(places), args, shares, places);
}

}  // namespace sigmoe::cuda
