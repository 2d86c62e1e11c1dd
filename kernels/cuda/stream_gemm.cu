// y = x W^T for 2 to 128 rows of x on Hopper: linears of up to 48 rows, and the experts of a step. Bound: memory, the bytes of
// W.
//
// One block per SM stays for the whole launch and walks a list made on the device: the tiles of every touched expert, once per
// block of tokens. Clusters share the list evenly, so that there is no last wave and no idle block. A warp has a tile at a time
// and keeps kDepth groups of its weights on their way to registers, across tiles and experts: the stream from memory does not
// wait for an expert's start, for its tokens or for other warps' sums. k is cut as in gemm.cu: a cluster's blocks own a slice
// each, so a block stages only its slice of the activations. Sums of a tile meet in one of the blocks and are added in slice
// order one round later: results equal gemm.cu's to the bit.
#include <algorithm>
#include <array>

#include "cuda/bulk_copy.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/stream_gemm.h"

namespace sigmoe::cuda {
namespace {

constexpr int kMaxWarps = 16;
constexpr int kRunTiles = 128;      // after so many tiles the next block of tokens meets them, while they are in L2
constexpr int kMaxSliceGroups = 8;  // of k, that a block stages
constexpr int kMaxExperts = 1024;
constexpr size_t kMostSharedBytes = size_t{220} << 10;  // of an SM, less what is declared below
constexpr int kMostDense = 48, kLeastRouted = 2, kMostRouted = 128;  // tokens

struct StreamArgs {
  GemmArgs gemm;
  bool x_is_float;
  int n_slices, slice_groups;  // blocks of a cluster; groups of k of each
  int x_stride;                // bytes of a staged token
  int exchange_at, lists_at;   // byte offsets in shared memory; activations come first
  int x_buffer_bytes, exchange_floats4;
};

// Groups of weights on their way per warp: 8 KB.
template <WeightFormat F>
constexpr int kDepth = F == WeightFormat::fp8 ? 4 : 2;
// Warps of a block, at most: 128 registers each while tokens are few.
constexpr int max_warps(int n_token_blocks) { return n_token_blocks <= 2 ? kMaxWarps : 10; }

// Tokens of one block, as its writers need them.
template <int Tokens>
struct TokenBlock {
  int count;
  int slots[Tokens];
  float weights[Tokens];
};

// A place in the work list, found from its number.
struct Cursor {
  int item = 0, item_start = 0, item_end = 0, blocks = 0, tiles = 0;
  int tile = 0, block = 0;
  int segment_end = 0;  // where the tokens change

  // starts (n_items + 1): the first place of each item. Item 0 is the dense part, item e + 1 expert e.
  __device__ void seek(const StreamArgs& args, const int* starts, int n_items, int place) {
    if (place >= item_end) {
      int high = n_items;
      while (high - item > 1) {
        const int middle = (item + high) / 2;
        if (starts[middle] <= place)
          item = middle;
        else
          high = middle;
      }
      item_start = starts[item], item_end = starts[item + 1];
      tiles = item == 0 ? args.gemm.dense.n_tiles : args.gemm.routed.n_tiles;
      blocks = (item_end - item_start) / tiles;
    }
    const int local = place - item_start;
    if (blocks == 1) {
      block = 0, tile = local, segment_end = item_end;
      return;
    }
    const int run = local / (kRunTiles * blocks), rest = local - run * kRunTiles * blocks;
    const int length = min(kRunTiles, tiles - run * kRunTiles);
    block = rest / length;
    tile = run * kRunTiles + rest % length;
    segment_end = place + length - rest % length;
  }
};

__device__ inline const WeightView& shape_of_item(const StreamArgs& args, int item) {
  return item == 0 ? args.gemm.dense : args.gemm.routed;
}

// What the block knows of each item.
struct Lists {
  int* starts;           // (n_items + 1)
  int* first_slots;      // (n_items), of an expert's list
  ExpertTiles* weights;  // (n_items)

  __device__ Lists(char* shared, int n_items)
      : starts(reinterpret_cast<int*>(shared + n_items * sizeof(ExpertTiles))),
        first_slots(starts + n_items + 1),
        weights(reinterpret_cast<ExpertTiles*>(shared)) {}
};
constexpr int lists_bytes(int n_items) { return n_items * static_cast<int>(sizeof(ExpertTiles) + 2 * sizeof(int)) + 4; }

// By the whole block.
__device__ void list_items(const StreamArgs& args, int n_items, int block_tokens, const Lists& lists) {
  __shared__ int warp_totals[kMaxWarps];
  const GemmArgs& gemm = args.gemm;
  const int per_thread = (n_items + blockDim.x - 1) / blockDim.x, begin = threadIdx.x * per_thread;
  const int end = min(begin + per_thread, n_items), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto blocks_of = [&](int n) { return (n + block_tokens - 1) / block_tokens; };
  int total = 0;
  for (int i = begin; i < end; ++i) {
    lists.starts[i] = total;
    if (i == 0) {
      lists.weights[0] = {gemm.dense.tiles, gemm.dense.scales};
      if (gemm.dense.tiles) total += blocks_of(gemm.n_tokens) * gemm.dense.n_tiles;
    } else {
      const int first = gemm.expert_offsets[i - 1], count = gemm.expert_offsets[i] - first;
      lists.first_slots[i] = first;
      lists.weights[i] = gemm.experts[i - 1];
      if (lists.weights[i].tiles) total += blocks_of(count) * gemm.routed.n_tiles;  // else this rank has no share of it
    }
  }
  int before = total;  // inclusive scan over threads
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) warp_totals[warp] = before;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += warp_totals[w];
  for (int i = begin; i < end; ++i) lists.starts[i] += before - total;
  if (threadIdx.x == blockDim.x - 1) lists.starts[n_items] = before;
  __syncthreads();
}

// One warp's tile: its slice of k.
struct TileSource {
  const uint4* tiles = nullptr;  // null: this warp has none
  const float* scale_rows[2] = {};
};

template <WeightFormat F, int NT>
__global__ void __launch_bounds__(max_warps(NT) * 32, 1) stream_kernel(const __grid_constant__ StreamArgs args) {
#if __CUDA_ARCH__ >= 900
  using S = Stream<F>;
  constexpr int kTokens = 8 * NT, kGroupVectors = S::kChunks * 32;
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t x_full[2], sums_full[2], round_done;
  __shared__ TokenBlock<kTokens> token_blocks[3];
  const GemmArgs& gemm = args.gemm;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32, g = lane / 4, q = lane % 4;
  const int slice = args.n_slices > 1 ? cluster_rank() : 0, n_clusters = gridDim.x / args.n_slices;
  const int first_group = slice * args.slice_groups;
  const int n_items = gemm.routed.n > 0 ? gemm.n_experts + 1 : 1;
  const int k_shift = (gemm.routed.n > 0 ? gemm.routed : gemm.dense).k_shift;
  const Lists lists(shared + args.lists_at, n_items);
  auto* exchange = reinterpret_cast<float4*>(shared + args.exchange_at);

  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(&x_full[i], 1), barrier_init(&sums_full[i], 1);
    barrier_init(&round_done, n_warps * args.n_slices);
    publish_barriers();
  }
  cluster_arrive();
  // The lists are new to gate_up. Down may read them at once: gate_up lets it start only after waiting for them itself.
  if (gemm.mode == GemmMode::gate_up) wait_for_previous();
  let_next_start();
  list_items(args, n_items, kTokens, lists);
  const int n_places = lists.starts[n_items], cluster = blockIdx.x / args.n_slices;
  const int begin = static_cast<int>(static_cast<int64_t>(n_places) * cluster / n_clusters);
  const int end = static_cast<int>(static_cast<int64_t>(n_places) * (cluster + 1) / n_clusters);

  // ---- weights: groups on their way, of this warp's tile of this round and then of the next round
  uint4 weights[kDepth<F>][S::kChunks];
  float scales[kDepth<F>][2];
  const auto fetch = [&](int d, const TileSource& source, int group) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) weights[d][c] = load_once(source.tiles + group * kGroupVectors + c * 32);
    if constexpr (S::kScaled)
#pragma unroll
      for (int h = 0; h < 2; ++h) scales[d][h] = source.scale_rows[h][(first_group + group) * kGroup >> k_shift];
  };
  // Rounds: up to a tile per warp, of one segment.
  struct Round {
    Cursor at;
    int place, count;
  };
  const auto find_round = [&](Round& round, int place) {
    round.place = place;
    round.count = 0;
    if (place >= end) return;
    round.at.seek(args, lists.starts, n_items, place);
    round.count = min(n_warps, min(round.at.segment_end, end) - place);
  };
  const auto find_source = [&](const Round& round) {
    TileSource source;
    if (warp >= round.count) return source;
    const WeightView& w = shape_of_item(args, round.at.item);
    const ExpertTiles& item = lists.weights[round.at.item];
    const int tile = round.at.tile + warp;
    source.tiles = item.tiles + (static_cast<size_t>(tile) * w.n_groups + first_group) * kGroupVectors + lane;
    if constexpr (S::kScaled)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        source.scale_rows[h] =
            item.scales + static_cast<size_t>(max(row_in_tile(w, tile, g + 8 * h), 0) >> w.row_shift) * w.scale_columns;
    return source;
  };
  Round round;
  find_round(round, begin);
  TileSource source = find_source(round);
  if (source.tiles)
#pragma unroll
    for (int d = 0; d < kDepth<F>; ++d) fetch(d, source, d);
  cluster_wait();
  if (gemm.mode != GemmMode::gate_up) wait_for_previous();

  // ---- activations: the slice of k of one block of tokens, two of them in turn
  const int row_bytes = args.slice_groups * kGroup * static_cast<int>(sizeof(__nv_bfloat16));
  const auto load_tokens = [&](int place, int index) {  // by warp 0
    Cursor at;
    at.seek(args, lists.starts, n_items, place);
    const bool dense = at.item == 0;
    const int first = at.block * kTokens + (dense ? 0 : lists.first_slots[at.item]);
    const int n = dense ? gemm.n_tokens : gemm.expert_offsets[at.item] - lists.first_slots[at.item];
    const int count = min(kTokens, n - at.block * kTokens);
    TokenBlock<kTokens>& tokens = token_blocks[index % 3];
    const char* x = static_cast<const char*>(dense ? gemm.dense_x : gemm.routed_x);
    const int64_t k_bytes = static_cast<int64_t>(shape_of_item(args, at.item).k) * sizeof(__nv_bfloat16);
    if (lane == 0) tokens.count = count;
    const char* rows[(kTokens + 31) / 32];
#pragma unroll
    for (int i = 0; i < (kTokens + 31) / 32; ++i)
      if (const int t = lane + 32 * i; t < count) {
        const int slot = dense ? first + t : gemm.slot_order[first + t];
        tokens.slots[t] = slot;
        tokens.weights[t] = !dense && gemm.mode == GemmMode::down ? gemm.slot_weights[slot] : 1.0f;
        const int row = !dense         ? (gemm.mode == GemmMode::gate_up ? slot / gemm.n_active : slot)
                        : gemm.row_ids ? gemm.row_ids[slot]
                                       : slot;
        rows[i] = x + row * k_bytes + static_cast<int64_t>(slice) * row_bytes;
      }
    __syncwarp();
    if (args.x_is_float) return;
    if (lane == 0) barrier_expect(&x_full[index % 2], count * row_bytes);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < (kTokens + 31) / 32; ++i)
      if (const int t = lane + 32 * i; t < count)
        bulk_copy(shared + index % 2 * args.x_buffer_bytes + t * args.x_stride, rows[i], row_bytes, &x_full[index % 2]);
    __syncwarp();
  };
  if (warp == 0 && begin < end) load_tokens(begin, 0);
  if (args.x_is_float) {  // one block of a linear: converted on the way
    const int fours = args.slice_groups * kGroup / 4;
    for (int i = threadIdx.x; i < gemm.n_tokens * fours; i += blockDim.x) {
      const int t = i / fours, k = i % fours * 4, row = gemm.row_ids ? gemm.row_ids[t] : t;
      const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(gemm.dense_x) +
                                                        static_cast<int64_t>(row) * gemm.dense.k + first_group * kGroup + k);
      *reinterpret_cast<uint2*>(shared + t * args.x_stride + k * 2) = {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
    }
    __syncthreads();
  }

  // ---- sums of a round, one round late: each block of the cluster adds up the tiles it owns
  struct Sums {
    int item, tile, count, index, number;
  };
  const auto reduce = [&](const Sums& done) {
    barrier_wait(&sums_full[done.number % 2], done.number / 2 % 2);
    const TokenBlock<kTokens>& tokens = token_blocks[done.index % 3];
    const WeightView& w = shape_of_item(args, done.item);
    const int n_used = (tokens.count + 7) / 8;
    const float4* sums = exchange + done.number % 2 * args.exchange_floats4;
    for (int i = threadIdx.x; i < (n_warps + args.n_slices - 1) / args.n_slices * n_used * 32; i += blockDim.x) {
      const int o = i % 32, j = i / 32 % n_used, m = i / (32 * n_used), owner = m * args.n_slices + slice;
      const int tile = done.tile + owner, t = 8 * j + o % 4 * 2;
      if (owner >= done.count) continue;
      float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int s = 0; s < args.n_slices; ++s) {
        const float4 part = sums[((m * args.n_slices + s) * NT + j) * 32 + o];
        total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
      }
      if (t < tokens.count)
        store_pair(gemm, w, done.item == 0, tokens.slots[t], tokens.slots[t], tokens.weights[t], tile, o / 4, total.x, total.z);
      if (t + 1 < tokens.count)
        store_pair(gemm, w, done.item == 0, tokens.slots[t + 1], tokens.slots[t + 1], tokens.weights[t + 1], tile, o / 4,
                   total.y, total.w);
    }
  };

  // ---- the walk
  Sums done = {};
  int index = -1, number = 0, tokens_end = begin;
  for (; round.count > 0; ++number) {
    const bool new_tokens = round.place == tokens_end;
    if (new_tokens) {
      ++index;
      tokens_end = round.at.segment_end;
      if (!args.x_is_float) barrier_wait(&x_full[index % 2], index / 2 % 2);
    }
    const TokenBlock<kTokens>& tokens = token_blocks[index % 3];
    const int n_used = (tokens.count + 7) / 8;
    Round next = round;
    find_round(next, round.place + round.count);
    const TileSource next_source = find_source(next);
    float sum[NT][4] = {};
    if (source.tiles) {
      const char* x = shared + index % 2 * args.x_buffer_bytes + g * args.x_stride + q * (S::kLaneK * 2);
      for (int group0 = 0; group0 < args.slice_groups; group0 += kDepth<F>) {
        const bool last = group0 + kDepth<F> >= args.slice_groups;
        const TileSource& refill = last ? next_source : source;
        const int refill_group = last ? 0 : group0 + kDepth<F>;
#pragma unroll
        for (int d = 0; d < kDepth<F>; ++d) {
          float unscaled[NT][4] = {};
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
            uint32_t a[S::kProducts][4];
            unpack<F>(weights[d][c], a);
#pragma unroll
            for (int j = 0; j < NT; ++j)
              if (NT == 1 || j < n_used) {
                uint32_t b[S::kLaneK / 2];
                load_x<S::kLaneK>(reinterpret_cast<const __nv_bfloat16*>(x + 8 * j * args.x_stride),
                                  (group0 + d) * kGroup + c * chunk_k(F), 0, true, b);
                multiply<F>(S::kScaled ? unscaled[j] : sum[j], a, b);
              }
          }
          if constexpr (S::kScaled)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
              for (int i = 0; i < 4; ++i) sum[j][i] += unscaled[j][i] * scales[d][i / 2];
          if (refill.tiles) fetch(d, refill, refill_group + d);
        }
      }
    } else if (next_source.tiles) {
#pragma unroll
      for (int d = 0; d < kDepth<F>; ++d) fetch(d, next_source, d);
    }
    if (number > 0) barrier_wait(&round_done, (number - 1) % 2);  // the cluster is through with the round before
    if (new_tokens && tokens_end < end && warp == 0) load_tokens(tokens_end, index + 1);
    if (args.n_slices == 1) {
      if (source.tiles)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (const int t = 8 * j + 2 * q + i; t < tokens.count)
              store_pair(gemm, shape_of_item(args, round.at.item), round.at.item == 0, tokens.slots[t], tokens.slots[t],
                         tokens.weights[t], round.at.tile + warp, g, 0.0f + sum[j][i], 0.0f + sum[j][i + 2]);
    } else {
      if (number > 0) reduce(done);
      if (threadIdx.x == 0) {
        const int owned = (round.count - slice + args.n_slices - 1) / args.n_slices;
        barrier_expect(&sums_full[number % 2], max(owned, 0) * args.n_slices * n_used * 512);
      }
      if (source.tiles)
#pragma unroll
        for (int j = 0; j < NT; ++j)
          if (j < n_used)
            store_to_block(exchange + number % 2 * args.exchange_floats4 +
                               ((warp / args.n_slices * args.n_slices + slice) * NT + j) * 32 + lane,
                           sum[j], &sums_full[number % 2], warp % args.n_slices);
    }
    __syncwarp();
    if (lane < args.n_slices) arrive_at_block(&round_done, lane);
    done = {round.at.item, round.at.tile, round.count, index, number};
    round = next;
    source = next_source;
  }
  // No block leaves before all that the others send it has come.
  if (number > 0) {
    barrier_wait(&round_done, (number - 1) % 2);
    if (args.n_slices > 1) reduce(done);
  }
#endif
}

// ---- the host's side ---------------------------------------------------------------------------------------------------

// Clusters of n_slices blocks that run at once, each block with an SM to itself; 0 where the device or this build has no
// kernel.
int clusters_at_once(int n_slices) {
  static const std::array<int, 5> known = [] {
    std::array<int, 5> n = {};
    cudaFuncAttributes attributes;
    const auto kernel = stream_kernel<WeightFormat::fp8, 1>;
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess || attributes.binaryVersion < 90) {
      cudaGetLastError();
      return n;
    }
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMostSharedBytes)));
    for (const int size : {1, 2, 4}) {
      LaunchShape shape({1024u * size}, kMaxWarps * 32, kMostSharedBytes, {}, size);
      CUDA_CHECK(cudaOccupancyMaxActiveClusters(&n[size], kernel, &shape.config));
    }
    return n;
  }();
  return known[n_slices];
}

bool takes(const WeightView& w) {
  if (w.format != WeightFormat::fp8 && w.format != WeightFormat::bf16) return false;
  const int n_slices = slices_for(w.n_groups),
            depth = w.format == WeightFormat::fp8 ? kDepth<WeightFormat::fp8> : kDepth<WeightFormat::bf16>;
  return w.k % kGroup == 0 && w.n_groups % (n_slices * depth) == 0 && w.n_groups / n_slices <= kMaxSliceGroups &&
         clusters_at_once(n_slices) > 0;
}

// Splits shared memory; the bytes of it.
size_t plan(StreamArgs& args, int n_warps, int block_tokens, bool one_round, bool one_block) {
  const int n_items = args.gemm.routed.n > 0 ? args.gemm.n_experts + 1 : 1;
  args.x_stride = args.slice_groups * kGroup * 2 + 64;  // eight tokens' pieces of 16 bytes then lie in different banks
  args.x_buffer_bytes = block_tokens * args.x_stride;
  args.exchange_floats4 = args.n_slices > 1 ? divide_up(n_warps, args.n_slices) * args.n_slices * (block_tokens / 8) * 32 : 0;
  args.exchange_at = args.x_buffer_bytes * (one_block ? 1 : 2);
  args.lists_at = args.exchange_at + args.exchange_floats4 * 16 * (one_round ? 1 : 2);
  return args.lists_at + lists_bytes(n_items);
}

template <WeightFormat F, int NT>
void launch_tokens(const Queue& queue, const StreamArgs& args, size_t shared_bytes, int n_warps, int n_clusters) {
  const auto kernel = stream_kernel<F, NT>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  launch_clusters(queue, kernel, args.n_slices, n_clusters * args.n_slices, n_warps * 32, shared_bytes, args);
}

template <WeightFormat F>
void launch_format(const Queue& queue, const StreamArgs& args, size_t shared_bytes, int block_tokens, int n_warps,
                   int n_clusters) {
  switch (block_tokens) {
    case 8: return launch_tokens<F, 1>(queue, args, shared_bytes, n_warps, n_clusters);
    case 16: return launch_tokens<F, 2>(queue, args, shared_bytes, n_warps, n_clusters);
    case 32: return launch_tokens<F, 4>(queue, args, shared_bytes, n_warps, n_clusters);
    default: return launch_tokens<F, 6>(queue, args, shared_bytes, n_warps, n_clusters);
  }
}

}  // namespace

bool stream_reads_float(const WeightView& weight, int n_tokens) { return n_tokens <= kStreamFloatTokens && takes(weight); }

bool launch_stream_gemm(const Queue& queue, const GemmArgs& gemm, bool x_is_float) {
  const bool routed = gemm.routed.n > 0, has_dense = gemm.dense.tiles != nullptr, linear = gemm.mode == GemmMode::linear;
  const WeightView& w = routed ? gemm.routed : gemm.dense;
  if (!takes(w) || (has_dense && (gemm.dense.k != w.k || gemm.dense.format != w.format))) return false;
  if (routed ? gemm.n_tokens < kLeastRouted || gemm.n_tokens > kMostRouted || gemm.n_experts > kMaxExperts
             : gemm.n_tokens > kMostDense)
    return false;
  if (x_is_float && (!linear || gemm.n_tokens > kStreamFloatTokens)) return false;

  StreamArgs args = {};
  args.gemm = gemm;
  args.x_is_float = x_is_float;
  args.n_slices = slices_for(w.n_groups);
  args.slice_groups = w.n_groups / args.n_slices;
  // Experts' lists are short even when the step is long.
  const int block_tokens = routed                ? (gemm.n_tokens <= 32 ? 8 : 16)
                           : gemm.n_tokens <= 8  ? 8
                           : gemm.n_tokens <= 16 ? 16
                           : gemm.n_tokens <= 32 ? 32
                                                 : 48;
  int n_warps = max_warps(block_tokens / 8), n_clusters = clusters_at_once(args.n_slices);
  if (!routed) {  // as few warps as a round less would not do with
    n_clusters = std::min(n_clusters, w.n_tiles);
    const int per_cluster = divide_up(w.n_tiles, n_clusters);
    n_warps = divide_up(per_cluster, divide_up(per_cluster, n_warps));
  }
  const bool one_round = !routed && divide_up(w.n_tiles, n_clusters) <= n_warps;
  const size_t shared_bytes = plan(args, n_warps, block_tokens, one_round, !routed && gemm.n_tokens <= block_tokens);
  if (shared_bytes > kMostSharedBytes) return false;
  if (w.format == WeightFormat::fp8)
    launch_format<WeightFormat::fp8>(queue, args, shared_bytes, block_tokens, n_warps, n_clusters);
  else
    launch_format<WeightFormat::bf16>(queue, args, shared_bytes, block_tokens, n_warps, n_clusters);
  return true;
}

}  // namespace sigmoe::cuda
