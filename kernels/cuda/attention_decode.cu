// Attention of few rows a sequence: one token of each, or a token and the drafts behind it.
//
// Bound: memory, each K and V byte once for all query heads of its group and all rows of its sequence. A sequence's keys are
// cut into runs; (sequence, KV head, run) is a unit of work, and units are dealt to two streams of each of as many persistent
// blocks as there are SMs. A stream is a warp that copies tiles (K or V of half a page or a page) into a ring of stages far
// ahead, through the ends of units, and a warpgroup that multiplies 64 packed rows (tokens x heads, mostly padding: tensor
// cores have the time) with a tile at once, FP8 ones after expanding them. A second kernel adds the runs up, in order
// (attention_runs.cu): a counter that tells the last unit needs fences, and a fence waits for every copy in flight (measured: a
// third of the bandwidth). How a row's keys are cut depends on its own position alone, and rows of a tile do not mind each
// other, so a draft's row has the bits that decoding it alone would give.
#include <algorithm>
#include <type_traits>

#include "cuda/attention_chains.cuh"
#include "cuda/kv_map.h"

namespace sigmoe::cuda {
namespace {

using namespace hopper;
using namespace chains;

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

template <int HD, bool kFp8>
void launch_for(const Queue& queue, const ChainArgs& args) {
  constexpr int kSharedBytes = sizeof(ChainShared<HD, kFp8>) + 1024;
  const auto kernel = chain_attention_kernel<HD, kFp8>;
  int device = 0, n_blocks = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&n_blocks, cudaDevAttrMultiProcessorCount, device));
  CUtensorMap keys = {}, values = {};
  if (!kFp8) keys = kv_map(args.kv.k, HD, kTileKeys<HD>), values = kv_map(args.kv.v, HD, kTileKeys<HD>);
  launch(queue, kernel, n_blocks, kThreads, kSharedBytes, args, keys, values);
}

}  // namespace

size_t chain_partial_bytes(const AttentionShape& shape, const BatchView& batch, int n_rows) {
  return sizeof(float) * n_rows * shape.n_heads * Cut(batch).most_runs(batch.max_pages) * partial_width(shape.head_dim);
}

int most_chain_rows(const BatchView& batch, int n_seqs) {
  if (batch.n_tokens == batch.n_seqs) return n_seqs;
  return static_cast<int>(std::min<int64_t>(batch.n_tokens, static_cast<int64_t>(n_seqs) * kMostChainRows));
}

bool packs_chain_rows(const BatchView& batch, const AttentionShape& shape) {
  return batch.n_tokens == batch.n_seqs && batch.n_seqs <= kTableSeqs && packs_runs(shape) &&
         Cut(batch).most_runs(batch.max_pages) > 1;
}

void launch_chain_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int first_seq, int n_seqs,
                            const float* q, const KvView& kv, const ChainScratch& scratch, float* out, const PackedRows* packed,
                            WeightFormat format) {
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
    if (args.n_runs_max > 1)
      launch_add_runs(
          queue, {cut, batch.positions, shape.n_heads, args.n_rows_max, args.n_runs_max, scratch.partial, scratch.row_ids, out},
          shape.head_dim, packed, format);
  }
}

}  // namespace sigmoe::cuda
