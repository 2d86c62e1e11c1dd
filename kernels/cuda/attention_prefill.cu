// Attention of many rows of a sequence at once (prompts): causal, paged, grouped heads, on Hopper's warpgroup products.
//
// Bound: arithmetic, 4 * rows * keys * heads * head_dim operations in BF16. A persistent block of three warpgroups: one warp
// copies pages into a ring of stages, two warpgroups hold 64 query rows each (tokens x heads of a KV head) and take turns on
// the tensor cores, one multiplying while the other does its softmax; inside a warpgroup the scores of the next page are
// multiplied while this page's weights are. Long tiles go first, dealt to blocks back and forth so that all end together.
#include <algorithm>

#include "cuda/attention_prefill.h"
#include "cuda/attention_tile.cuh"
#include "cuda/kv_map.h"
#include "cuda/step_tables.cuh"

namespace sigmoe::cuda {
namespace {

using namespace hopper;

constexpr int kGroups = 2;  // of 64 rows
constexpr int kThreads = 128 * (1 + kGroups);
[[maybe_unused]] constexpr int kTurn = 1, kClear = 1 + kGroups;  // named barriers, one for each warpgroup

struct PrefillArgs {
  BatchView batch;
  int n_heads, n_kv_heads, least_rows;
  int first_seq, n_seqs;  // of this launch
  bool tables_expanded;   // page i of sequence b is page b * max_pages + i, b counting from first_seq
  const float* q;
  const __nv_bfloat16* brief_q;
  float* out;
};

template <int HD>
struct PrefillShared {
  static constexpr int kStages = HD == 128 ? 3 : 6;
  std::byte keys[kStages][kPageBytes<HD>];
  std::byte values[kStages][kPageBytes<HD>];
  uint64_t keys_full[kStages], keys_empty[kStages], values_full[kStages], values_empty[kStages];
  StepTable table;
};

// Tokens [row, row + n_rows) of the step against their sequence's keys up to the last of them.
struct PrefillTile {
  int seq, kv_head, row, n_rows, first_position, n_pages;
};

// The n-th tile of this block; false when there are no more. A tile without pages is to be passed over.
[[maybe_unused]] __device__ inline bool pick_tile(const PrefillArgs& args, const StepTable& table, int n, PrefillTile& tile) {
  const int group = args.n_heads / args.n_kv_heads, tile_tokens = kGroups * (kTileRows / group);
  const int origin = table.offsets[0];
  const auto first_slot = [&](int b) { return (table.offsets[b] - origin) / tile_tokens + b; };
  const int n_slots = first_slot(args.n_seqs), block = blockIdx.x, n_blocks = gridDim.x;
  const int order = n * n_blocks + (n % 2 == 0 ? block : n_blocks - 1 - block);
  if (n * n_blocks >= n_slots * args.n_kv_heads) return false;
  tile.n_pages = 0;
  if (order >= n_slots * args.n_kv_heads) return true;
  const int slot = n_slots - 1 - order / args.n_kv_heads;
  const int b = last_at_most(args.n_seqs, slot, first_slot);
  const int begin = table.offsets[b], end = table.offsets[b + 1], token = (slot - first_slot(b)) * tile_tokens;
  if (end - begin < args.least_rows || begin + token >= end) return true;
  tile.seq = b;
  tile.kv_head = order % args.n_kv_heads;
  tile.row = begin + token;
  tile.n_rows = min(tile_tokens, end - tile.row);
  tile.first_position = table.first_positions[b] + token;
  tile.n_pages = (tile.first_position + tile.n_rows + kPageTokens - 1) / kPageTokens;
  return true;
}

template <int HD>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_attention_kernel(const __grid_constant__ PrefillArgs args, const __grid_constant__ CUtensorMap key_map,
                             const __grid_constant__ CUtensorMap value_map) {
#if SIGMOE_HOPPER_CODE
  using Shared = PrefillShared<HD>;
  using Rows = RowTile<HD, kPageTokens>;
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
  let_next_start();
  if (threadIdx.x == 0) {
    prefetch_map(&key_map);
    prefetch_map(&value_map);
    for (int s = 0; s < Shared::kStages; ++s) {
      barrier_init(&shared.keys_full[s], 1);
      barrier_init(&shared.values_full[s], 1);
      barrier_init(&shared.keys_empty[s], kGroups * 4);
      barrier_init(&shared.values_empty[s], kGroups * 4);
    }
    publish_barriers();
  }
  wait_for_previous();
  shared.table.load(args.batch, args.first_seq, args.n_seqs);
  __syncthreads();

  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, role = threadIdx.x / 128;
  Ring<Shared::kStages> ring;
  PrefillTile tile;
  if (role == 0) {
    fewer_registers<24>();
    if (warp > 0) return;
    for (int n = 0; pick_tile(args, shared.table, n, tile); ++n) {
      const int seq = args.tables_expanded ? 0 : args.first_seq + tile.seq;
      const int32_t* pages = args.batch.page_tables + static_cast<int64_t>(seq) * args.batch.max_pages;
      int page = 0;
      for (int i = 0; i < tile.n_pages; ++i, ring.advance()) {
        if (i % 32 == 0 && i + lane < tile.n_pages)
          page = args.tables_expanded ? tile.seq * args.batch.max_pages + i + lane : pages[i + lane];
        const int row = (__shfl_sync(kAllLanes, page, i % 32) * args.n_kv_heads + tile.kv_head) * kPageTokens, s = ring.stage;
        if (lane > 0) continue;
        barrier_wait(&shared.keys_empty[s], ring.parity ^ 1);
        barrier_expect(&shared.keys_full[s], kPageBytes<HD>);
        for (int box = 0; box < HD / 64; ++box)
          copy_box(shared.keys[s] + box * Rows::kBoxBytes, &key_map, box * 64, row, &shared.keys_full[s]);
        barrier_wait(&shared.values_empty[s], ring.parity ^ 1);
        barrier_expect(&shared.values_full[s], kPageBytes<HD>);
        for (int box = 0; box < HD / 64; ++box)
          copy_box(shared.values[s] + box * Rows::kBoxBytes, &value_map, box * 64, row, &shared.values_full[s]);
      }
    }
  } else {
    more_registers<240>();
    const int mine = role - 1, other = kGroups - 1 - mine;
    const int group = args.n_heads / args.n_kv_heads, group_tokens = kTileRows / group;
    if (mine == 1) named_arrive(kTurn + 0, kGroups * 128);  // the first turn is warpgroup 0's
    typename Rows::Scores score;
    typename Rows::Weights weights;
    Rows rows;
    float keep[2];
    for (int n = 0; pick_tile(args, shared.table, n, tile); ++n) {
      if (tile.n_pages == 0) continue;
      int64_t at[2];  // of this thread's rows in q and out
      int last_key[2];
      bool valid[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = warp * 16 + lane / 4 + 8 * h, in_group = r / group, token = mine * group_tokens + in_group;
        valid[h] = in_group < group_tokens && token < tile.n_rows;
        last_key[h] = tile.first_position + min(token, tile.n_rows - 1);
        at[h] = (static_cast<int64_t>(tile.row + token) * args.n_heads + tile.kv_head * group + r % group) * HD;
      }
      const auto begin = [&]<typename T>(const T* q) {
        rows.template begin<T>({valid[0] ? q + at[0] : nullptr, valid[1] ? q + at[1] : nullptr});
      };
      args.brief_q ? begin(args.brief_q) : begin(args.q);
      const int last_position = tile.first_position + tile.n_rows - 1;
      const auto release = [&](uint64_t* barrier) {
        if (lane == 0) barrier_arrive(barrier);
      };
      barrier_wait(&shared.keys_full[ring.stage], ring.parity);
      pin(score);
      pin(rows.query);
      wgmma_begin();
      rows.enqueue_scores(score, shared.keys[ring.stage]);
      wgmma_wait<0>();
      pin(score);
      release(&shared.keys_empty[ring.stage]);
      mask_scores(score, last_key, 0);
      rows.weigh(score, keep);
      pack_weights(weights, score);
      Ring<Shared::kStages> behind = ring;
      ring.advance();
      const auto next_page = [&](int i, bool masked) {
        barrier_wait(&shared.keys_full[ring.stage], ring.parity);
        barrier_wait(&shared.values_full[behind.stage], behind.parity);
        named_sync(kTurn + mine, kGroups * 128);
        pin(score);
        pin(rows.sum);
        pin(weights);
        wgmma_begin();
        rows.enqueue_scores(score, shared.keys[ring.stage]);
        rows.enqueue_sums(weights, shared.values[behind.stage]);
        named_arrive(kTurn + other, kGroups * 128);
        wgmma_wait<1>();
        pin(score);
        release(&shared.keys_empty[ring.stage]);
        if (masked) mask_scores(score, last_key, i * kPageTokens);
        rows.weigh(score, keep);
        pin(score);
        if (rows.total[0] == -1.0f || rows.total[1] == -1.0f) __nanosleep(0);
        wgmma_wait<0>();
        pin(rows.sum);
        release(&shared.values_empty[behind.stage]);
        rows.rescale(keep);
        pack_weights(weights, score);
        behind = ring;
        ring.advance();
      };
      // Pages that every row sees whole, then the others: apart, for the products overlap the softmax in straight code alone.
      const int n_whole = (tile.first_position + 1) / kPageTokens;
      int i = 1;
      for (; i < n_whole; ++i) next_page(i, false);
      for (; i < tile.n_pages; ++i) next_page(i, true);
      barrier_wait(&shared.values_full[behind.stage], behind.parity);
      if (last_position % kPageTokens != kPageTokens - 1)
        clear_values<HD, kPageTokens>(shared.values[behind.stage], last_position % kPageTokens + 1, kClear + mine);
      pin(rows.sum);
      pin(weights);
      wgmma_begin();
      rows.enqueue_sums(weights, shared.values[behind.stage]);
      rows.add_up_totals();
      wgmma_wait<0>();
      pin(rows.sum);
      release(&shared.values_empty[behind.stage]);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!valid[h]) continue;
        const float scale = 1.0f / rows.total[h];
        float* to = args.out + at[h] + 2 * (lane % 4);
#pragma unroll
        for (int d = 0; d < HD / 8; ++d)
          *reinterpret_cast<float2*>(to + 8 * d) = {rows.sum[4 * d + 2 * h] * scale, rows.sum[4 * d + 2 * h + 1] * scale};
      }
    }
  }
#endif
}

template <int HD>
void launch_for(const Queue& queue, const PrefillArgs& args, const KvView& kv) {
  constexpr int kSharedBytes = sizeof(PrefillShared<HD>) + 1024;
  int device = 0, n_blocks = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&n_blocks, cudaDevAttrMultiProcessorCount, device));
  const int group = args.n_heads / args.n_kv_heads, tile_tokens = kGroups * (kTileRows / group);
  const int n_tiles = (args.batch.n_tokens / tile_tokens + args.n_seqs) * args.n_kv_heads;  // at most
  launch(queue, prefill_attention_kernel<HD>, std::min(n_tiles, n_blocks), kThreads, kSharedBytes, args,
         kv_map(kv.k, HD, kPageTokens), kv_map(kv.v, HD, kPageTokens));
}

}  // namespace

void launch_prefill_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                              int first_seq, int n_seqs, bool tables_expanded, const float* q, const __nv_bfloat16* brief_q,
                              const KvView& kv, float* out) {
  for (int b = first_seq; b < first_seq + n_seqs; b += kTableSeqs) {
    const PrefillArgs args{batch,
                           shape.n_heads,
                           shape.n_kv_heads,
                           least_rows,
                           b,
                           std::min(kTableSeqs, first_seq + n_seqs - b),
                           tables_expanded,
                           q,
                           brief_q,
                           out};
    if (shape.head_dim == 128)
      launch_for<128>(queue, args, kv);
    else
      launch_for<64>(queue, args, kv);
  }
}

}  // namespace sigmoe::cuda
