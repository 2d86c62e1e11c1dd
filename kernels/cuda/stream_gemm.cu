// y = x W^T for the experts of a step of 2 to 48 rows, and for linears of many outputs and 2 to 8 rows, on Hopper. Bound:
// memory, the bytes of W.
//
// One block per SM stays for the whole launch and walks a list made on the device: the tiles of every touched expert, once per
// eight of its tokens. Blocks share the list evenly, so that there is no last wave and no idle block. Warps work alone: each
// takes the block's next tile, walks all of k and keeps kDepth groups of weights on their way to registers, across tiles and
// experts. They meet only where the tokens change: one warp does nothing but copy the next eight tokens' rows to shared memory.
// k is summed in the slices of gemm_walk.cuh, one after the other, and the slices in order: results equal gemm_few.cu's to the
// bit.
#include <algorithm>

#include "cuda/bulk_copy.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/stream_gemm.h"
#include "cuda/stream_list.cuh"

namespace sigmoe::cuda {
namespace {

using stream::Lists, stream::list_items, stream::lists_bytes, stream::shape_of_item;

constexpr int kThreads = 384;  // 168 registers each
using limits::stream::kTokens;
using Cursor = stream::Cursor<kTokens, 1>;
constexpr int kWalkers = kThreads / 32 - 1;  // warps; the last one copies tokens
static_assert(lists_bytes(1) == limits::stream::lists_bytes(1) && lists_bytes(2) == limits::stream::lists_bytes(2));

struct StreamArgs {
  GemmArgs gemm;
  int x_stride;  // bytes of a staged token
  int lists_at;  // byte offset in shared memory; two buffers of tokens come first
};

// Groups of weights on their way per warp: 8 KB.
template <WeightFormat F>
constexpr int kDepth = limits::stream::depth(F);

// Tokens of one block, as its writers need them.
struct TokenBlock {
  int count;
  int slots[kTokens];
  float weights[kTokens];
};

// Where one (row g, row g + 8) pair of sums goes: token t of the dense part, or `slot` of the routed one.
__device__ inline void store_pair(const GemmArgs& args, const WeightView& w, bool dense, int t, int slot, float weight,
                                  int tile, int row, float low, float high) {
  if (args.mode == GemmMode::gate_up) {
    const int width = w.n / 2, inner = tile * 8 + row;
    if (inner >= width) return;
    auto* out = static_cast<__nv_bfloat16*>(dense ? args.dense_out : args.routed_out);
    out[static_cast<int64_t>(dense ? t : slot) * width + inner] = __float2bfloat16_rn(low / (1.0f + __expf(-low)) * high);
    return;
  }
  float* out = static_cast<float*>(dense ? args.dense_out : args.routed_out);
  int64_t out_row = t;
  if (args.mode == GemmMode::down)
    out_row = dense ? static_cast<int64_t>(t) * args.n_slots + args.n_active
                    : static_cast<int64_t>(slot / args.n_active) * args.n_slots + slot % args.n_active;
  const int n = tile * 16 + row;
  if (n < w.n) out[out_row * w.n + n] = low * weight;
  if (n + 8 < w.n) out[out_row * w.n + n + 8] = high * weight;
}

// A tile that a warp works on; tiles null: there is none.
struct Tile {
  int place, item, number;
  const uint4* tiles;
  const float* scale_rows[2];
};

// One warp copies each block of tokens of [begin, end) when its buffer is free.
__device__ void copy_tokens(const StreamArgs& args, const Lists& lists, int n_items, int begin, int end, char* buffers,
                            TokenBlock* token_blocks, uint64_t* full, uint64_t* empty) {
  const GemmArgs& gemm = args.gemm;
  const int lane = threadIdx.x % 32;
  Cursor at;
  int index = 0;
  for (int place = begin; place < end; place = at.segment_end, ++index) {
    at.seek(gemm, lists.starts, n_items, place);
    const bool dense = at.item == 0;
    const int begin_slot = at.block * kTokens + (dense ? 0 : lists.first_slots[at.item]);
    const int n = dense ? gemm.n_tokens : gemm.expert_offsets[at.item] - lists.first_slots[at.item];
    const int count = min(kTokens, n - at.block * kTokens);
    const int row_bytes = shape_of_item(gemm, at.item).k * static_cast<int>(sizeof(__nv_bfloat16));
    int slot = 0, row = 0;
    float weight = 1.0f;
    if (lane < count) {
      slot = dense ? begin_slot + lane : gemm.slot_order[begin_slot + lane];
      if (!dense && gemm.mode == GemmMode::down) weight = gemm.slot_weights[slot];
      row = dense ? (gemm.row_ids ? gemm.row_ids[slot] : slot) : gemm.mode == GemmMode::gate_up ? slot / gemm.n_active : slot;
    }
    if (index >= 2) barrier_wait(&empty[index % 2], (index / 2 - 1) % 2);
    TokenBlock& tokens = token_blocks[index % 2];
    if (lane < count) tokens.slots[lane] = slot, tokens.weights[lane] = weight;
    if (lane == 0) tokens.count = count;
    __syncwarp();
    if (lane == 0) barrier_expect(&full[index % 2], count * row_bytes);
    __syncwarp();
    if (lane < count)
      bulk_copy(buffers + (index % 2 * kTokens + lane) * args.x_stride,
                static_cast<const char*>(dense ? gemm.dense_x : gemm.routed_x) + static_cast<int64_t>(row) * row_bytes,
                row_bytes, &full[index % 2]);
  }
}

template <WeightFormat F>
__global__ void __launch_bounds__(kThreads, 1) stream_kernel(const __grid_constant__ StreamArgs args) {
  using S = Stream<F>;
  constexpr int kGroupVectors = S::kChunks * 32;
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[2], empty[2];
  __shared__ TokenBlock token_blocks[2];
  __shared__ int next_place;
  const GemmArgs& gemm = args.gemm;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int n_items = gemm.routed.n > 0 ? gemm.n_experts + 1 : 1;
  const Lists lists(shared + args.lists_at, n_items);

  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kWalkers);
    publish_barriers();
  }
  // The lists are new to gate_up. Down may read them at once: gate_up lets it start only after waiting for them itself.
  if (gemm.mode == GemmMode::gate_up) wait_for_previous();
  let_next_start();
  list_items<kTokens, 1>(gemm, n_items, lists);
  const int n_places = lists.starts[n_items];
  const int begin = static_cast<int>(static_cast<int64_t>(n_places) * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(static_cast<int64_t>(n_places) * (blockIdx.x + 1) / gridDim.x);
  if (threadIdx.x == 0) next_place = begin + kWalkers;
  __syncthreads();
  if (warp == kWalkers) {
    if (gemm.mode != GemmMode::gate_up) wait_for_previous();
    return copy_tokens(args, lists, n_items, begin, end, shared, token_blocks, full, empty);
  }

  const WeightView& any = gemm.routed.n > 0 ? gemm.routed : gemm.dense;
  const int n_groups = any.n_groups, slice_groups = n_groups / slices_for(n_groups), k_shift = any.k_shift;
  uint4 weights[kDepth<F>][S::kChunks];
  float scales[kDepth<F>][2];
  const auto fetch = [&](int d, const Tile& tile, int group) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) weights[d][c] = load_once(tile.tiles + group * kGroupVectors + c * 32);
    if constexpr (S::kScaled)
#pragma unroll
      for (int h = 0; h < 2; ++h) scales[d][h] = tile.scale_rows[h][group * kGroup >> k_shift];
  };
  Cursor ahead;
  const auto find = [&](int place) {
    Tile tile = {place, 0, 0, nullptr, {}};
    if (place >= end) return tile;
    ahead.seek(gemm, lists.starts, n_items, place);
    const WeightView& w = shape_of_item(gemm, ahead.item);
    const ExpertTiles& item = lists.weights[ahead.item];
    tile.item = ahead.item;
    tile.number = ahead.tile;
    tile.tiles = item.tiles + static_cast<size_t>(tile.number) * n_groups * kGroupVectors + vector_of<F>(lane);
    if constexpr (S::kScaled)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        tile.scale_rows[h] =
            item.scales + static_cast<size_t>(max(row_in_tile(w, tile.number, g + 8 * h), 0) >> w.row_shift) * w.scale_columns;
    return tile;
  };

  // The tokens that this warp is at: block `index` of the walk, up to place tokens_end.
  Cursor at;
  int index = -1, tokens_end = begin;
  const auto to_next_tokens = [&] {
    if (index >= 0 && lane == 0) barrier_arrive(&empty[index % 2]);
    ++index;
    at.seek(gemm, lists.starts, n_items, tokens_end);
    tokens_end = at.segment_end;
    barrier_wait(&full[index % 2], index / 2 % 2);
  };

  Tile tile = find(begin + warp);
  if (tile.tiles)
#pragma unroll
    for (int d = 0; d < kDepth<F>; ++d) fetch(d, tile, d);
  while (tile.tiles) {
    int taken = 0;
    if (lane == 0) taken = atomicAdd(&next_place, 1);
    const Tile next = find(__shfl_sync(kAllLanes, taken, 0));
    while (tile.place >= tokens_end) to_next_tokens();

    const char* x = shared + (index % 2 * kTokens + g) * args.x_stride + q * (S::kLaneK * 2);
    float total[4] = {}, sum[4] = {};
    int slice_end = slice_groups;
    for (int group0 = 0; group0 < n_groups; group0 += kDepth<F>) {
      const bool last = group0 + kDepth<F> >= n_groups;
#pragma unroll
      for (int d = 0; d < kDepth<F>; ++d) {
        float unscaled[4] = {};
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
          uint32_t a[S::kProducts][4], b[S::kLaneK / 2];
          unpack<F>(chunk_of<F>(weights[d], c), a);
          load_x<S::kLaneK>(reinterpret_cast<const __nv_bfloat16*>(x), (group0 + d) * kGroup + c * chunk_k(F), 0, true, b);
          multiply<F>(S::kScaled ? unscaled : sum, a, b);
        }
        if constexpr (S::kScaled)
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] += unscaled[i] * scales[d][i / 2];
        if (!last)
          fetch(d, tile, group0 + kDepth<F> + d);
        else if (next.tiles)
          fetch(d, next, d);
      }
      if (group0 + kDepth<F> == slice_end) {
        slice_end += slice_groups;
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i] += sum[i], sum[i] = 0.0f;
      }
    }
    const TokenBlock& tokens = token_blocks[index % 2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (const int t = 2 * q + i; t < tokens.count)
        store_pair(gemm, shape_of_item(gemm, tile.item), tile.item == 0, tokens.slots[t], tokens.slots[t], tokens.weights[t],
                   tile.number, g, total[i], total[i + 2]);
    __syncwarp();
    tile = next;
  }
  while (tokens_end < end) to_next_tokens();  // the copier counts on every warp
}

// ---- the host's side ---------------------------------------------------------------------------------------------------

// SMs of the device, or 0 where this build has no kernel for it.
int n_blocks() {
  static const int known = [] {
    cudaFuncAttributes attributes;
    int device = 0, n = 0;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, stream_kernel<WeightFormat::fp8>));
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
    return attributes.binaryVersion >= 90 && attributes.ptxVersion != 80 ? n : 0;
  }();
  return known;
}

}  // namespace

bool has_stream_gemm() { return n_blocks() > 0; }

void launch_stream_gemm(const Queue& queue, const GemmArgs& gemm) {
  const bool routed = gemm.routed.n > 0;
  const WeightView& w = routed ? gemm.routed : gemm.dense;
  StreamArgs args = {};
  args.gemm = gemm;
  args.x_stride = limits::stream::x_stride(w.k);
  args.lists_at = 2 * kTokens * args.x_stride;
  const size_t bytes = args.lists_at + lists_bytes(routed ? gemm.n_experts + 1 : 1);
  const auto kernel = w.format == WeightFormat::fp8 ? stream_kernel<WeightFormat::fp8> : stream_kernel<WeightFormat::bf16>;
  // Gate-up starts when the kernel ahead is over: beside the last blocks of a linear, steps of 8 are 4% slower and of 32 2%
  // (measured; narrow_experts.cu has the likely cause).
  Queue own = queue;
  own.overlap = queue.overlap && gemm.mode != GemmMode::gate_up;
  launch(own, kernel, n_blocks(), kThreads, bytes, args);
}

}  // namespace sigmoe::cuda
