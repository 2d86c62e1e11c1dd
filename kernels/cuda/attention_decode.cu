// Attention of few rows a sequence: one token of each, or a token and the drafts behind it.
//
// Bound: memory, each K and V byte once for all query heads of its group and all rows of its sequence. A sequence's keys are
// cut into runs; (sequence, KV head, run) is a unit of work, and units are dealt to two streams of each of as many persistent
// blocks as there are SMs. A stream is a warp that copies tiles (K or V of half a page or a page) into a ring of stages far
// ahead, through the ends of units, and a warpgroup that multiplies 64 packed rows (tokens x heads, mostly padding: tensor
// cores have the time) with a tile at once, FP8 ones after expanding them. A second kernel adds the runs up, in order: a
// counter that tells the last unit needs fences, and a fence waits for every copy in flight (measured: a third of the
// bandwidth). How a row's keys are cut depends on its own position alone, and rows of a tile do not mind each other, so a
// draft's row has the bits that decoding it alone would give.
#include <algorithm>
#include <type_traits>

#include "cuda/attention_decode.h"
#include "cuda/attention_tile.cuh"
#include "cuda/kv_map.h"
#include "cuda/step_tables.cuh"

namespace sigmoe::cuda {
namespace {

using namespace hopper;

constexpr int kGroups = 2;
constexpr int kThreads = 128 * (1 + kGroups);
[[maybe_unused]] constexpr int kMeet = 1;  // named barriers, one for each warpgroup
constexpr int kMostRuns = 64;              // of one row

// How a row's keys are cut into runs, by how many it sees: finely while they are few, coarsely where fine runs would leave many
// partial results. Two classes of steps: few sequences need many runs to keep all SMs busy, many need long ones.
struct Cut {
  bool many;
  int least;  // the shortest run has 2^least keys

  explicit Cut(const BatchView& batch) : many(batch.n_seqs >= 32), least(many ? 9 : 8) {}
  // Of rows whose runs have 2^log keys.
  __host__ __device__ int runs_at_most(int log) const {
    const int runs = 8 << (many ? 2 * (log - least) : log - least);
    return runs < kMostRuns ? runs : kMostRuns;
  }
  __host__ __device__ int log_keys(int length) const {
    int log = least;
    while (runs_at_most(log) << log < length) ++log;
    return log;
  }
  __host__ __device__ int runs(int length) const {
    const int log = log_keys(length);
    return (length + (1 << log) - 1) >> log;
  }
  int most_runs(int max_pages) const {
    const int length = std::max(1, max_pages) * kPageTokens, last = log_keys(length);
    return std::max(runs(length), last > least ? runs_at_most(last - 1) : 1);
  }
};

// Floats of a row's partial result of a run: sums of a head, then its maximum (base 2) and total, padded to whole vectors.
__host__ __device__ constexpr int partial_width(int head_dim) { return head_dim + 4; }
__host__ __device__ constexpr int tile_tokens(int group) { return kTileRows / group; }

struct ChainArgs {
  BatchView batch;
  int n_heads, n_kv_heads;
  Cut cut;
  int first_seq, n_seqs, n_rows_max, n_runs_max;
  const float* q;
  KvView kv;
  float* partial;    // (chain rows, H, n_runs_max, partial_width)
  int32_t* row_ids;  // (chain rows) which rows of the step they are; -1 behind the last
  float* out;
};

// What a sequence's chain asks for.
struct Chain {
  int first_length, n_rows;  // keys that the first row sees; each row sees one more
  int n_tiles, n_old,
      n_runs;  // n_old: of n_runs, those of rows before the one whose keys are cut more coarsely; 0: there is none

  __device__ Chain(const StepTable& table, const Cut& cut, int b, int group) {
    n_rows = table.offsets[b + 1] - table.offsets[b];
    first_length = table.first_positions[b] + 1;
    n_tiles = n_rows > kMostChainRows ? 0 : (n_rows + tile_tokens(group) - 1) / tile_tokens(group);
    const int log = cut.log_keys(first_length), last_length = first_length + n_rows - 1;
    n_old = log != cut.log_keys(last_length) ? cut.runs_at_most(log) : 0;
    n_runs = n_old + cut.runs(last_length);
  }
};

struct ChainTable : StepTable {
  int first_units[kTableSeqs + 1];  // of sequence b: units before it
  int first_rows[kTableSeqs + 1];   // rows of chains before it
};

// By one warp, once the step's rows are there.
[[maybe_unused]] __device__ inline void count_units(ChainTable& table, const Cut& cut, int n_seqs, int n_kv_heads, int group) {
  const int lane = threadIdx.x % 32;
  int units_before = 0, rows_before = 0;
  for (int base = 0; base < n_seqs; base += 32) {
    int units = 0, rows = 0;
    if (base + lane < n_seqs) {
      const Chain chain(table, cut, base + lane, group);
      units = chain.n_tiles * n_kv_heads * chain.n_runs;
      rows = chain.n_tiles > 0 ? chain.n_rows : 0;
    }
    for (int step = 1; step < 32; step *= 2) {
      const int more_units = __shfl_up_sync(kAllLanes, units, step), more_rows = __shfl_up_sync(kAllLanes, rows, step);
      if (lane >= step) units += more_units, rows += more_rows;
    }
    if (base + lane < n_seqs) {
      table.first_units[base + lane + 1] = units_before + units;
      table.first_rows[base + lane + 1] = rows_before + rows;
    }
    units_before += __shfl_sync(kAllLanes, units, 31);
    rows_before += __shfl_sync(kAllLanes, rows, 31);
  }
  if (lane == 0) table.first_units[0] = table.first_rows[0] = 0;
}

// Keys of a tile, 16 KB in BF16. Not otherwise: where a row has as many registers of query as of weights, ptxas 13.0 gives both
// the same ones, though queries are needed again.
template <int HD>
constexpr int kTileKeys = 64 * (128 / HD);

template <int HD, bool kFp8>
struct ChainShared {
  static constexpr int kTileBytes = kTileKeys<HD> * (kFp8 ? HD + 4 : 2 * HD);
  static constexpr int kStages = kFp8 ? 8 : 6;
  std::byte tiles[kGroups][kStages][kTileBytes];
  alignas(1024) std::byte expanded[kFp8 ? kGroups : 0][kTileKeys<HD> * HD * 2];
  uint64_t full[kGroups][kStages], empty[kGroups][kStages];
  ChainTable table;
};

// What the second kernel looks up: the step's rows that are chains', in order.
[[maybe_unused]] __device__ inline void write_row_ids(const ChainArgs& args, const ChainTable& table) {
  for (int b = threadIdx.x; b < args.n_seqs; b += kThreads)
    for (int row = table.first_rows[b]; row < table.first_rows[b + 1]; ++row)
      args.row_ids[row] = table.offsets[b] + row - table.first_rows[b];
  for (int row = table.first_rows[args.n_seqs] + threadIdx.x; row < args.n_rows_max; row += kThreads) args.row_ids[row] = -1;
}

// Keys [first_key, end_key) of a sequence and KV head, for rows [row, row + n_rows) of the chain.
struct Unit {
  int seq, kv_head, tile, run, log_keys, first_key, end_key, n_tiles;
  int first_length, row, n_rows;  // of the tile: keys its first row sees, its first row in the chain, how many it has
};

[[maybe_unused]] __device__ inline Unit find_unit(const ChainArgs& args, const ChainTable& table, int group, int tile_keys,
                                                  int index) {
  Unit unit;
  const int b = last_at_most(args.n_seqs, index, [&](int i) { return table.first_units[i]; });
  const Chain chain(table, args.cut, b, group);
  const int local = index - table.first_units[b], run = local % chain.n_runs,
            last_length = chain.first_length + chain.n_rows - 1;
  unit.seq = b;
  unit.kv_head = local / chain.n_runs % args.n_kv_heads;
  unit.tile = local / chain.n_runs / args.n_kv_heads;
  const bool old = run < chain.n_old;
  unit.run = old ? run : run - chain.n_old;
  unit.log_keys = args.cut.log_keys(old ? chain.first_length : last_length);
  unit.first_key = unit.run << unit.log_keys;
  unit.end_key =
      min(unit.first_key + (1 << unit.log_keys), old ? args.cut.runs_at_most(unit.log_keys) << unit.log_keys : last_length);
  unit.n_tiles = (unit.end_key - unit.first_key + tile_keys - 1) / tile_keys;
  unit.row = unit.tile * tile_tokens(group);
  unit.n_rows = min(tile_tokens(group), chain.n_rows - unit.row);
  unit.first_length = chain.first_length + unit.row;
  return unit;
}

template <int HD, bool kFp8>
__global__ void __launch_bounds__(kThreads, 1)
    chain_attention_kernel(const __grid_constant__ ChainArgs args, const __grid_constant__ CUtensorMap key_map,
                           const __grid_constant__ CUtensorMap value_map) {
#if SIGMOE_HOPPER_CODE
  using Shared = ChainShared<HD, kFp8>;
  constexpr int kKeys = kTileKeys<HD>;
  using Rows = RowTile<HD, kKeys>;
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
  const ChainTable& table = shared.table;
  let_next_start();
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, role = threadIdx.x / 128;
  const int group = args.n_heads / args.n_kv_heads;
  if (threadIdx.x == 0) {
    if constexpr (!kFp8) prefetch_map(&key_map), prefetch_map(&value_map);
    for (int stream = 0; stream < kGroups; ++stream) {
      for (int s = 0; s < Shared::kStages; ++s) {
        barrier_init(&shared.full[stream][s], 1);
        barrier_init(&shared.empty[stream][s], 4);
      }
    }
    publish_barriers();
  }
  wait_for_previous();
  shared.table.load(args.batch, args.first_seq, args.n_seqs);
  __syncthreads();
  if (threadIdx.x < 32) count_units(shared.table, args.cut, args.n_seqs, args.n_kv_heads, group);
  __syncthreads();

  if (blockIdx.x == 0 && args.n_runs_max > 1) write_row_ids(args, table);
  const int n_units = table.first_units[args.n_seqs];
  Ring<Shared::kStages> ring;
  const int mine = role == 0 ? warp % kGroups : role - 1, step = kGroups * gridDim.x;
  if (role == 0) {
    fewer_registers<56>();
    if (warp >= kGroups) return;
    for (int index = mine * gridDim.x + blockIdx.x; index < n_units; index += step) {
      const Unit unit = find_unit(args, table, group, kKeys, index);
      const int32_t* pages = args.batch.page_tables + static_cast<int64_t>(args.first_seq + unit.seq) * args.batch.max_pages +
                             unit.first_key / kPageTokens;
      int page = 0;
      for (int i = 0; i < unit.n_tiles; ++i) {
        const int p = i * kKeys / kPageTokens;
        if (i % (32 * kPageTokens / kKeys) == 0 && unit.first_key + (p + lane) * kPageTokens < unit.end_key)
          page = pages[p + lane];
        const int row =
            (__shfl_sync(kAllLanes, page, p % 32) * args.n_kv_heads + unit.kv_head) * kPageTokens + i * kKeys % kPageTokens;
        for (const bool values : {false, true}) {
          if (lane == 0) {
            uint64_t* full = &shared.full[mine][ring.stage];
            std::byte* tile = shared.tiles[mine][ring.stage];
            barrier_wait(&shared.empty[mine][ring.stage], ring.parity ^ 1);
            barrier_expect(full, Shared::kTileBytes);
            if constexpr (kFp8) {
              const auto* codes = static_cast<const std::byte*>(values ? args.kv.v : args.kv.k);
              const float* scales = values ? args.kv.v_scales : args.kv.k_scales;
              bulk_copy(tile, codes + static_cast<int64_t>(row) * HD, kKeys * HD, full);
              bulk_copy(tile + kKeys * HD, scales + row, kKeys * 4, full);
            } else {
              for (int box = 0; box < HD / 64; ++box)
                copy_box(tile + box * Rows::kBoxBytes, values ? &value_map : &key_map, box * 64, row, full);
            }
          }
          ring.advance();
        }
      }
    }
  } else {
    more_registers<224>();
    typename Rows::Scores score;
    typename Rows::Weights weights;
    Rows rows;
    float keep[2];
    for (int index = mine * gridDim.x + blockIdx.x; index < n_units; index += step) {
      const Unit unit = find_unit(args, table, group, kKeys, index);
      int last_key[2], token[2], head[2];
      bool valid[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = warp * 16 + lane / 4 + 8 * h, length = unit.first_length + r / group;
        token[h] = r / group;
        head[h] = unit.kv_head * group + r % group;
        valid[h] = token[h] < unit.n_rows && args.cut.log_keys(length) == unit.log_keys && unit.first_key < length;
        last_key[h] = valid[h] ? length - 1 : unit.end_key;
      }
      const int row = table.offsets[unit.seq] + unit.row;  // of the step
      const auto at = [&](int h) { return (static_cast<int64_t>(row + token[h]) * args.n_heads + head[h]) * HD; };
      rows.begin({valid[0] ? args.q + at(0) : nullptr, valid[1] ? args.q + at(1) : nullptr});
      pin(rows.query);
      const int n_halves = (unit.n_rows * group - warp * 16 + 7) / 8;
      const auto release_tile = [&] {
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.empty[mine][ring.stage]);
        ring.advance();
      };
      // The next tile as tensor cores read it; keys behind the sequence's end need not be anything, values there are zero.
      const auto next_tile = [&](bool values, int n_valid) {
        std::byte* tile = shared.tiles[mine][ring.stage];
        barrier_wait(&shared.full[mine][ring.stage], ring.parity);
        if constexpr (kFp8) {
          named_sync(kMeet + mine, 128);  // no warp still multiplies with the last one
          expand_tile<HD, kKeys>(tile, shared.expanded[mine], n_valid);
          release_tile();
          named_sync(kMeet + mine, 128);
          return static_cast<std::byte*>(shared.expanded[mine]);
        } else {
          if (values && n_valid < kKeys) clear_values<HD, kKeys>(tile, n_valid, kMeet + mine);
          return tile;
        }
      };
      for (int i = 0; i < unit.n_tiles; ++i) {
        const int first_key = unit.first_key + i * kKeys;
        const int n_valid = min(kKeys, unit.end_key - first_key);
        const std::byte* keys = next_tile(false, n_valid);
        pin(score);
        wgmma_begin();
        rows.enqueue_scores(score, keys);
        wgmma_wait<0>();
        pin(score);
        if constexpr (!kFp8) release_tile();
        if (first_key + kKeys > unit.first_length) mask_scores(score, last_key, first_key);
        rows.weigh(score, keep, n_halves);
        rows.rescale(keep);
        pack_weights(weights, score);
        const std::byte* values = next_tile(true, n_valid);
        pin(rows.sum);
        pin(weights);
        wgmma_begin();
        rows.enqueue_sums(weights, values);
        wgmma_wait<0>();
        pin(rows.sum);
        if constexpr (!kFp8) release_tile();
      }
      rows.add_up_totals();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!valid[h]) continue;
        const bool whole = args.cut.runs(unit.first_length + token[h]) == 1;
        float* to = args.out + at(h);
        if (!whole)
          to = args.partial +
               ((static_cast<int64_t>(table.first_rows[unit.seq] + unit.row + token[h]) * args.n_heads + head[h]) *
                    args.n_runs_max +
                unit.run) *
                   partial_width(HD);
        const float scale = whole ? 1.0f / rows.total[h] : 1.0f;
#pragma unroll
        for (int d = 0; d < HD / 8; ++d)
          *reinterpret_cast<float2*>(to + 8 * d + 2 * (lane % 4)) = {rows.sum[4 * d + 2 * h] * scale,
                                                                     rows.sum[4 * d + 2 * h + 1] * scale};
        if (!whole && lane % 4 == 0) *reinterpret_cast<float2*>(to + HD) = {rows.top[h], rows.total[h]};
      }
    }
  }
#endif
}

constexpr int kAddWarps = 8;

// Adds the runs of every row that has several, in order: a warp to a row and head.
template <int HD>
__global__ void __launch_bounds__(kAddWarps * 32) add_runs_kernel(const __grid_constant__ ChainArgs args) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x, lane = threadIdx.x % 32, head = blockIdx.y * kAddWarps + threadIdx.x / 32;
  const int t = args.row_ids[row];
  if (t < 0 || head >= args.n_heads) return;
  const int n_runs = args.cut.runs(args.batch.positions[t] + 1);
  if (n_runs == 1) return;
  const float* partial = args.partial + (static_cast<int64_t>(row) * args.n_heads + head) * args.n_runs_max * partial_width(HD);
  float2 state[2];  // maximum and total of runs lane and lane + 32
  float best = -INFINITY, total = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int run = lane + 32 * i;
    state[i] =
        run < n_runs ? *reinterpret_cast<const float2*>(partial + run * partial_width(HD) + HD) : float2{-INFINITY, 0.0f};
    best = fmaxf(best, state[i].x);
  }
  for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    state[i].x = exp2_fast(state[i].x - best);
    total += state[i].y * state[i].x;
  }
  total = warp_sum(total);
  constexpr int kLaneDims = HD / 32;
  using Dims = std::conditional_t<kLaneDims == 4, float4, float2>;
  float sum[kLaneDims] = {};
#pragma unroll 8
  for (int run = 0; run < n_runs; ++run) {
    const float weight = __shfl_sync(kAllLanes, run < 32 ? state[0].x : state[1].x, run % 32);
    const Dims dims = *reinterpret_cast<const Dims*>(partial + run * partial_width(HD) + kLaneDims * lane);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) sum[i] += reinterpret_cast<const float*>(&dims)[i] * weight;
  }
  float* to = args.out + (static_cast<int64_t>(t) * args.n_heads + head) * HD + kLaneDims * lane;
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) to[i] = sum[i] * (1.0f / total);
}

template <int HD, bool kFp8>
void launch_for(const Queue& queue, const ChainArgs& args) {
  constexpr int kSharedBytes = sizeof(ChainShared<HD, kFp8>) + 1024;
  const auto kernel = chain_attention_kernel<HD, kFp8>;
  int device = 0, n_blocks = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&n_blocks, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  CUtensorMap keys = {}, values = {};
  if (!kFp8) keys = kv_map(args.kv.k, HD, kTileKeys<HD>), values = kv_map(args.kv.v, HD, kTileKeys<HD>);
  launch(queue, kernel, n_blocks, kThreads, kSharedBytes, args, keys, values);
  if (args.n_runs_max > 1)
    launch(queue, add_runs_kernel<HD>, dim3(args.n_rows_max, divide_up(args.n_heads, kAddWarps)), kAddWarps * 32, 0, args);
}

}  // namespace

size_t chain_partial_bytes(const AttentionShape& shape, const BatchView& batch, int n_rows) {
  return sizeof(float) * n_rows * shape.n_heads * Cut(batch).most_runs(batch.max_pages) * partial_width(shape.head_dim);
}

int most_chain_rows(const BatchView& batch, int n_seqs) {
  if (batch.n_tokens == batch.n_seqs) return n_seqs;
  return static_cast<int>(std::min<int64_t>(batch.n_tokens, static_cast<int64_t>(n_seqs) * kMostChainRows));
}

void launch_chain_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int first_seq, int n_seqs,
                            const float* q, const KvView& kv, const ChainScratch& scratch, float* out) {
  for (int b = first_seq; b < first_seq + n_seqs; b += kTableSeqs) {
    const int n = std::min(kTableSeqs, first_seq + n_seqs - b);
    const Cut cut(batch);
    const ChainArgs args{
        batch, shape.n_heads,   shape.n_kv_heads, cut, b, n, most_chain_rows(batch, n), cut.most_runs(batch.max_pages), q,
        kv,    scratch.partial, scratch.row_ids,  out};
    const bool fp8 = kv.dtype == DType::f8_e4m3;
    (shape.head_dim == 128 ? fp8 ? launch_for<128, true> : launch_for<128, false>
     : fp8 ? launch_for<64, true>
                           : launch_for<64, false>)(queue, args);
  }
}

}  // namespace sigmoe::cuda
