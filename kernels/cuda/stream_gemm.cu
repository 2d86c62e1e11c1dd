// y = x W^T for 2 to 128 rows of x on Hopper: linears of up to 48 rows, and the experts of a step. Bound: memory, the bytes of
// W.
//
// One block per SM stays for the whole launch and walks a list of units made on the device: a unit is a round of tiles (one per
// warp) of one expert for one block of tokens. Clusters share the list evenly, so that there is no last wave and no idle block.
// Each warp owns a ring of 4 KB pieces of its weights that the copy engine fills far ahead of the sums, across units and
// experts: the stream from memory never waits for a barrier, an expert's start or the arithmetic. k is cut as in gemm.cu: a
// cluster's blocks own a slice each, so a block stages only its slice of the activations. Sums of a tile meet in one of the
// blocks and are added in slice order one round later: results equal gemm.cu's to the bit.
#include <algorithm>
#include <array>

#include "cuda/bulk_copy.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/stream_gemm.h"

namespace sigmoe::cuda {
namespace {

constexpr int kMaxWarps = 10, kMinWarps = 8;
constexpr int kPieceBytes = 4096;
constexpr int kMaxStages = 8;
constexpr int kRunRounds = 16;      // after so many rounds the next block of tokens meets them, while they are in L2
constexpr int kMaxSliceGroups = 8;  // of k, that a block stages
constexpr int kMaxExperts = 1024;
constexpr size_t kSharedBytes = size_t{224} << 10;                   // of an SM, less what is declared below
constexpr int kMostDense = 48, kLeastRouted = 2, kMostRouted = 128;  // tokens

struct StreamArgs {
  GemmArgs gemm;
  bool x_is_float;
  int n_slices, slice_groups;  // blocks of a cluster; groups of k of each
  int x_stride;                // bytes of a staged token
  int dense_rounds, routed_rounds;
  int n_stages;
  int x_at, exchange_at, starts_at;  // byte offsets in shared memory; the rings come first
  int x_buffer_bytes, exchange_floats4;
};

// Tokens of one block, as its writers need them.
template <int Tokens>
struct TokenBlock {
  int count;
  int slots[Tokens];
  float weights[Tokens];
};

// A unit of the work list, found from its number.
struct Cursor {
  int item = 0, item_start = 0, item_end = 0, blocks = 0, rounds = 0;
  int round = 0, block = 0;
  int segment_end = 0;  // the unit at which the tokens change

  // starts (n_items + 1): the first unit of each item. Item 0 is the dense part, item e + 1 expert e.
  __device__ void seek(const StreamArgs& args, const int* starts, int n_items, int unit) {
    if (unit >= item_end) {
      int high = n_items;
      while (high - item > 1) {
        const int middle = (item + high) / 2;
        if (starts[middle] <= unit)
          item = middle;
        else
          high = middle;
      }
      item_start = starts[item], item_end = starts[item + 1];
      rounds = item == 0 ? args.dense_rounds : args.routed_rounds;
      blocks = (item_end - item_start) / rounds;
    }
    const int local = unit - item_start;
    if (blocks == 1) {
      block = 0, round = local, segment_end = item_end;
      return;
    }
    const int run = local / (kRunRounds * blocks), rest = local - run * kRunRounds * blocks;
    const int length = min(kRunRounds, rounds - run * kRunRounds);
    block = rest / length;
    round = run * kRunRounds + rest % length;
    segment_end = unit + length - rest % length;
  }
};

__device__ inline const WeightView& shape_of_item(const StreamArgs& args, int item) {
  return item == 0 ? args.gemm.dense : args.gemm.routed;
}

// starts (n_items + 1) and, for items of experts, the first slot of the list: by the whole block.
__device__ void list_units(const StreamArgs& args, int n_items, int block_tokens, int* starts, int* first_slots) {
  __shared__ int warp_totals[kMaxWarps];
  const GemmArgs& gemm = args.gemm;
  const int per_thread = (n_items + blockDim.x - 1) / blockDim.x, begin = threadIdx.x * per_thread;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto units_of = [&](int item) {
    if (item == 0) return (gemm.n_tokens + block_tokens - 1) / block_tokens * args.dense_rounds;
    const int first = gemm.expert_offsets[item - 1], count = gemm.expert_offsets[item] - first;
    first_slots[item] = first;
    if (count == 0 || !gemm.experts[item - 1].tiles) return 0;  // null: this rank has no share of it; its output was zeroed
    return (count + block_tokens - 1) / block_tokens * args.routed_rounds;
  };
  int total = 0;
  for (int i = begin; i < min(begin + per_thread, n_items); ++i) {
    starts[i] = total;
    total += units_of(i);
  }
  int before = total;  // inclusive scan over threads
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) warp_totals[warp] = before;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += warp_totals[w];
  for (int i = begin; i < min(begin + per_thread, n_items); ++i) starts[i] += before - total;
  if (threadIdx.x == blockDim.x - 1) starts[n_items] = before;
  __syncthreads();
}

template <WeightFormat F, int NT>
__global__ void __launch_bounds__(kMaxWarps * 32, 1) stream_kernel(const __grid_constant__ StreamArgs args) {
#if __CUDA_ARCH__ >= 900
  using S = Stream<F>;
  constexpr int kTokens = 8 * NT, kGroupBytes = S::kChunks * 512, kPieceGroups = kPieceBytes / kGroupBytes;
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[kMaxWarps][kMaxStages], x_full[2], sums_full[2], round_done;
  __shared__ TokenBlock<kTokens> token_blocks[3];
  const GemmArgs& gemm = args.gemm;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32, g = lane / 4, q = lane % 4;
  const int slice = args.n_slices > 1 ? cluster_rank() : 0, n_clusters = gridDim.x / args.n_slices;
  const int first_group = slice * args.slice_groups;
  const int n_items = gemm.routed.n > 0 ? gemm.n_experts + 1 : 1;
  int* starts = reinterpret_cast<int*>(shared + args.starts_at);
  int* first_slots = starts + n_items + 1;
  auto* exchange = reinterpret_cast<float4*>(shared + args.exchange_at);

  if (lane == 0) {
    for (int s = 0; s < args.n_stages; ++s) barrier_init(&full[warp][s], 1);
    if (warp == 0) {
      for (int i = 0; i < 2; ++i) barrier_init(&x_full[i], 1), barrier_init(&sums_full[i], 1);
      barrier_init(&round_done, n_warps * args.n_slices);
    }
    publish_barriers();
  }
  cluster_arrive();
  // The lists are new to gate_up. Down may read them at once: gate_up lets it start only after waiting for them itself.
  if (gemm.mode == GemmMode::gate_up) wait_for_previous();
  let_next_start();
  list_units(args, n_items, kTokens, starts, first_slots);
  const int n_units = starts[n_items], cluster = blockIdx.x / args.n_slices;
  const int begin = static_cast<int>(static_cast<int64_t>(n_units) * cluster / n_clusters);
  const int end = static_cast<int>(static_cast<int64_t>(n_units) * (cluster + 1) / n_clusters);

  // ---- the ring: this warp's pieces in the order it will need them
  char* ring = shared + warp * args.n_stages * kPieceBytes;
  Cursor ahead;
  int ahead_unit = begin, ahead_item = -1, ahead_group = 0;
  const char *item_tiles = nullptr, *source = nullptr;
  const auto find_source = [&] {  // of ahead_unit, or of the first after it in which this warp has a tile
    for (; ahead_unit < end; ++ahead_unit) {
      ahead.seek(args, starts, n_items, ahead_unit);
      const WeightView& w = shape_of_item(args, ahead.item);
      if (ahead.item != ahead_item) {
        ahead_item = ahead.item;
        item_tiles = reinterpret_cast<const char*>(ahead_item == 0 ? gemm.dense.tiles : gemm.experts[ahead_item - 1].tiles);
      }
      const int tile = ahead.round * n_warps + warp;
      if (tile >= w.n_tiles) continue;
      source = item_tiles + (static_cast<size_t>(tile) * w.n_groups + first_group) * kGroupBytes;
      return;
    }
  };
  const auto fetch_piece = [&](int stage) {
    if (ahead_unit >= end) return;
    const int bytes = min(kPieceGroups, args.slice_groups - ahead_group) * kGroupBytes;
    if (lane == 0) {
      barrier_expect(&full[warp][stage], bytes);
      bulk_copy(ring + stage * kPieceBytes, source + ahead_group * kGroupBytes, bytes, &full[warp][stage]);
    }
    ahead_group += kPieceGroups;
    if (ahead_group >= args.slice_groups) {
      ahead_group = 0;
      ++ahead_unit;
      find_source();
    }
  };
  find_source();
  for (int s = 0; s < args.n_stages; ++s) fetch_piece(s);
  cluster_wait();
  if (gemm.mode != GemmMode::gate_up) wait_for_previous();

  // ---- activations: the slice of k of one block of tokens, two of them in turn
  const int row_bytes = args.slice_groups * kGroup * static_cast<int>(sizeof(__nv_bfloat16));
  const auto load_tokens = [&](int unit, int index) {  // by warp 0
    Cursor at;
    at.seek(args, starts, n_items, unit);
    const bool dense = at.item == 0;
    const int first = at.block * kTokens + (dense ? 0 : first_slots[at.item]);
    const int n = dense ? gemm.n_tokens : gemm.expert_offsets[at.item] - first_slots[at.item];
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
        bulk_copy(shared + args.x_at + index % 2 * args.x_buffer_bytes + t * args.x_stride, rows[i], row_bytes,
                  &x_full[index % 2]);
    __syncwarp();
  };
  if (warp == 0 && begin < end) load_tokens(begin, 0);
  if (args.x_is_float) {  // one block of a linear: converted on the way
    const int fours = args.slice_groups * kGroup / 4;
    for (int i = threadIdx.x; i < gemm.n_tokens * fours; i += blockDim.x) {
      const int t = i / fours, k = i % fours * 4, row = gemm.row_ids ? gemm.row_ids[t] : t;
      const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(gemm.dense_x) +
                                                        static_cast<int64_t>(row) * gemm.dense.k + first_group * kGroup + k);
      *reinterpret_cast<uint2*>(shared + args.x_at + t * args.x_stride + k * 2) = {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
    }
    __syncthreads();
  }

  // ---- sums of a round, one round late: each block of the cluster adds up the tiles it owns
  struct Round {
    int item, round, index, number;
  };
  const auto reduce = [&](const Round& done) {
    barrier_wait(&sums_full[done.number % 2], done.number / 2 % 2);
    const TokenBlock<kTokens>& tokens = token_blocks[done.index % 3];
    const WeightView& w = shape_of_item(args, done.item);
    const int n_used = (tokens.count + 7) / 8;
    const float4* sums = exchange + done.number % 2 * args.exchange_floats4;
    for (int i = threadIdx.x; i < (n_warps + args.n_slices - 1) / args.n_slices * n_used * 32; i += blockDim.x) {
      const int o = i % 32, j = i / 32 % n_used, m = i / (32 * n_used), owner = m * args.n_slices + slice;
      const int tile = done.round * n_warps + owner, t = 8 * j + o % 4 * 2;
      if (owner >= n_warps || tile >= w.n_tiles) continue;
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
  Cursor at;
  Round done = {};
  int stage = 0, index = -1, number = 0, scaled_item = -1;
  uint32_t phase = 0;
  const float* item_scales = nullptr;
  for (int unit = begin; unit < end; ++unit, ++number) {
    const bool new_tokens = unit == begin || unit == at.segment_end;
    at.seek(args, starts, n_items, unit);
    if (new_tokens) {
      ++index;
      if (!args.x_is_float) barrier_wait(&x_full[index % 2], index / 2 % 2);
    }
    const WeightView& w = shape_of_item(args, at.item);
    const TokenBlock<kTokens>& tokens = token_blocks[index % 3];
    const int tile = at.round * n_warps + warp, n_used = (tokens.count + 7) / 8;
    const bool busy = tile < w.n_tiles;
    float sum[NT][4] = {};
    if (busy) {
      const float* scale_rows[2] = {};
      if constexpr (S::kScaled) {
        if (at.item != scaled_item) {
          scaled_item = at.item;
          item_scales = at.item == 0 ? gemm.dense.scales : gemm.experts[at.item - 1].scales;
        }
#pragma unroll
        for (int h = 0; h < 2; ++h)
          scale_rows[h] =
              item_scales + static_cast<size_t>(max(row_in_tile(w, tile, g + 8 * h), 0) >> w.row_shift) * w.scale_columns;
      }
      const char* x = shared + args.x_at + index % 2 * args.x_buffer_bytes + g * args.x_stride + q * (S::kLaneK * 2);
      for (int group = 0; group < args.slice_groups; group += kPieceGroups) {
        float scales[kPieceGroups][2];
        if constexpr (S::kScaled)
#pragma unroll
          for (int p = 0; p < kPieceGroups; ++p)
#pragma unroll
            for (int h = 0; h < 2; ++h)
              scales[p][h] =
                  group + p < args.slice_groups ? scale_rows[h][(first_group + group + p) * kGroup >> w.k_shift] : 0.0f;
        barrier_wait(&full[warp][stage], phase);
        uint4 weights[kPieceGroups][S::kChunks];
#pragma unroll
        for (int p = 0; p < kPieceGroups; ++p)
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c)
            weights[p][c] =
                *reinterpret_cast<const uint4*>(ring + stage * kPieceBytes + (p * S::kChunks + c) * 512 + lane * 16);
        __syncwarp();
        fetch_piece(stage);
        if (++stage == args.n_stages) stage = 0, phase ^= 1;
#pragma unroll
        for (int p = 0; p < kPieceGroups; ++p) {
          if (group + p >= args.slice_groups) break;
          float unscaled[NT][4] = {};
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
            uint32_t a[S::kProducts][4];
            unpack<F>(weights[p][c], a);
#pragma unroll
            for (int j = 0; j < NT; ++j)
              if (NT == 1 || j < n_used) {
                uint32_t b[S::kLaneK / 2];
                load_x<S::kLaneK>(reinterpret_cast<const __nv_bfloat16*>(x + 8 * j * args.x_stride),
                                  (group + p) * kGroup + c * chunk_k(F), 0, true, b);
                multiply<F>(S::kScaled ? unscaled[j] : sum[j], a, b);
              }
          }
          if constexpr (S::kScaled)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
              for (int i = 0; i < 4; ++i) sum[j][i] += unscaled[j][i] * scales[p][i / 2];
        }
      }
    }
    if (number > 0) barrier_wait(&round_done, (number - 1) % 2);  // the cluster is through with the round before
    if (new_tokens && at.segment_end < end && warp == 0) load_tokens(at.segment_end, index + 1);
    if (args.n_slices == 1) {
      if (busy)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (const int t = 8 * j + 2 * q + i; t < tokens.count)
              store_pair(gemm, w, at.item == 0, tokens.slots[t], tokens.slots[t], tokens.weights[t], tile, g, 0.0f + sum[j][i],
                         0.0f + sum[j][i + 2]);
    } else {
      if (number > 0) reduce(done);
      if (threadIdx.x == 0) {
        int owned = 0;
        for (int owner = slice; owner < n_warps; owner += args.n_slices) owned += at.round * n_warps + owner < w.n_tiles;
        barrier_expect(&sums_full[number % 2], owned * args.n_slices * n_used * 512);
      }
      if (busy)
#pragma unroll
        for (int j = 0; j < NT; ++j)
          if (j < n_used)
            store_to_block(exchange + number % 2 * args.exchange_floats4 +
                               ((warp / args.n_slices * args.n_slices + slice) * NT + j) * 32 + lane,
                           sum[j], &sums_full[number % 2], warp % args.n_slices);
    }
    __syncwarp();
    if (lane < args.n_slices) arrive_at_block(&round_done, lane);
    done = {at.item, at.round, index, number};
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
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes)));
    for (const int size : {1, 2, 4}) {
      LaunchShape shape({1024u * size}, kMaxWarps * 32, kSharedBytes, {}, size);
      CUDA_CHECK(cudaOccupancyMaxActiveClusters(&n[size], kernel, &shape.config));
    }
    return n;
  }();
  return known[n_slices];
}

bool takes(const WeightView& w) {
  const int n_slices = slices_for(w.n_groups);
  return (w.format == WeightFormat::fp8 || w.format == WeightFormat::bf16) && w.k % kGroup == 0 && w.n_groups % n_slices == 0 &&
         w.n_groups / n_slices <= kMaxSliceGroups && clusters_at_once(n_slices) > 0;
}

constexpr int align_up(int n, int to) { return (n + to - 1) / to * to; }

// Splits shared memory; false when it does not suffice.
bool plan(StreamArgs& args, int n_warps, int block_tokens, bool one_round, bool one_block) {
  const int n_items = args.gemm.routed.n > 0 ? args.gemm.n_experts + 1 : 1;
  args.x_stride = args.slice_groups * kGroup * 2 + 64;  // eight tokens' pieces of 16 bytes then lie in different banks
  args.x_buffer_bytes = block_tokens * args.x_stride;
  args.exchange_floats4 = args.n_slices > 1 ? divide_up(n_warps, args.n_slices) * args.n_slices * (block_tokens / 8) * 32 : 0;
  const int x_bytes = args.x_buffer_bytes * (one_block ? 1 : 2),
            exchange_bytes = args.exchange_floats4 * 16 * (one_round ? 1 : 2);
  const int starts_bytes = align_up((2 * n_items + 1) * static_cast<int>(sizeof(int)), 128);
  const int rest = static_cast<int>(kSharedBytes) - x_bytes - exchange_bytes - starts_bytes;
  args.n_stages = std::min(kMaxStages, rest / (n_warps * kPieceBytes));
  args.x_at = n_warps * args.n_stages * kPieceBytes;
  args.exchange_at = args.x_at + x_bytes;
  args.starts_at = args.exchange_at + exchange_bytes;
  return args.n_stages >= 2;
}

template <WeightFormat F, int NT>
void launch_tokens(const Queue& queue, const StreamArgs& args, int n_warps, int n_clusters) {
  const auto kernel = stream_kernel<F, NT>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes)));
  // all of an SM's shared memory, whatever the plan needs: one block per SM
  launch_clusters(queue, kernel, args.n_slices, n_clusters * args.n_slices, n_warps * 32, kSharedBytes, args);
}

template <WeightFormat F>
void launch_format(const Queue& queue, const StreamArgs& args, int block_tokens, int n_warps, int n_clusters) {
  switch (block_tokens) {
    case 8: return launch_tokens<F, 1>(queue, args, n_warps, n_clusters);
    case 16: return launch_tokens<F, 2>(queue, args, n_warps, n_clusters);
    case 32: return launch_tokens<F, 4>(queue, args, n_warps, n_clusters);
    default: return launch_tokens<F, 6>(queue, args, n_warps, n_clusters);
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
  int n_warps = kMinWarps, n_clusters = clusters_at_once(args.n_slices);
  if (!routed) {  // as many warps as leave the fewest of them idle in the last round
    const auto span = [&](int warps) { return divide_up(w.n_tiles, warps * n_clusters) * warps; };
    for (int warps = kMinWarps + 1; warps <= kMaxWarps; ++warps)
      if (span(warps) < span(n_warps)) n_warps = warps;
    n_clusters = std::min(n_clusters, divide_up(w.n_tiles, n_warps));
  }
  if (has_dense) args.dense_rounds = divide_up(gemm.dense.n_tiles, n_warps);
  if (routed) args.routed_rounds = divide_up(gemm.routed.n_tiles, n_warps);
  const bool one_round = !routed && args.dense_rounds <= n_clusters;
  if (!plan(args, n_warps, block_tokens, one_round, !routed)) return false;
  if (w.format == WeightFormat::fp8)
    launch_format<WeightFormat::fp8>(queue, args, block_tokens, n_warps, n_clusters);
  else
    launch_format<WeightFormat::bf16>(queue, args, block_tokens, n_warps, n_clusters);
  return true;
}

}  // namespace sigmoe::cuda
