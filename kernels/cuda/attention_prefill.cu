// Attention of many rows of a sequence at once (prompts): causal, paged, grouped heads, on Hopper's warpgroup products.
//
// Bound: arithmetic, 4 * rows * keys * heads * head_dim operations in BF16. A persistent block of three warpgroups: one warp
// copies pages into a ring of stages, two warpgroups hold 64 query rows each (tokens x heads of a KV head) and take turns on
// the tensor cores, one multiplying while the other does its softmax; inside a warpgroup the scores of the next page are
// multiplied while this page's weights are. Long tiles go first, dealt to blocks back and forth so that all end together.
#include "cuda/attention_prefill.h"
#include "cuda/attention_tile.cuh"
#include "cuda/kv_map.h"
#include "cuda/prefill_tiles.cuh"

namespace sigmoe::cuda {
namespace {

using namespace hopper;

constexpr int kGroups = kPrefillGroups, kThreads = kPrefillThreads;
[[maybe_unused]] constexpr int kTurn = 1, kClear = 1 + kGroups;  // named barriers, one for each warpgroup

struct PrefillArgs {
  PrefillRows rows;
  bool tables_expanded;  // page i of sequence b is page b * max_pages + i, b counting from rows.first_seq
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
  shared.table.load(args.rows.batch, args.rows.first_seq, args.rows.n_seqs);
  __syncthreads();

  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, role = threadIdx.x / 128;
  Ring<Shared::kStages> ring;
  PrefillTile tile;
  if (role == 0) {
    fewer_registers<24>();
    if (warp > 0) return;
    for (int n = 0; pick_tile(args.rows, shared.table, n, tile); ++n) {
      const int seq = args.tables_expanded ? 0 : args.rows.first_seq + tile.seq;
      const int32_t* pages = args.rows.batch.page_tables + static_cast<int64_t>(seq) * args.rows.batch.max_pages;
      int page = 0;
      for (int i = 0; i < tile.n_pages; ++i, ring.advance()) {
        if (i % 32 == 0 && i + lane < tile.n_pages)
          page = args.tables_expanded ? tile.seq * args.rows.batch.max_pages + i + lane : pages[i + lane];
        const int row = (__shfl_sync(kAllLanes, page, i % 32) * args.rows.n_kv_heads + tile.kv_head) * kPageTokens,
                  s = ring.stage;
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
    const int group = args.rows.n_heads / args.rows.n_kv_heads, group_tokens = kTileRows / group;
    if (mine == 1) named_arrive(kTurn + 0, kGroups * 128);  // the first turn is warpgroup 0's
    typename Rows::Scores score;
    typename Rows::Weights weights;
    Rows rows;
    float keep[2];
    for (int n = 0; pick_tile(args.rows, shared.table, n, tile); ++n) {
      if (tile.n_pages == 0) continue;
      int64_t at[2];  // of this thread's rows in q and out
      int last_key[2];
      bool valid[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = warp * 16 + lane / 4 + 8 * h, in_group = r / group, token = mine * group_tokens + in_group;
        valid[h] = in_group < group_tokens && token < tile.n_rows;
        last_key[h] = tile.first_position + min(token, tile.n_rows - 1);
        at[h] = (static_cast<int64_t>(tile.row + token) * args.rows.n_heads + tile.kv_head * group + r % group) * HD;
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
  launch(queue, prefill_attention_kernel<HD>, prefill_blocks(args.rows), kThreads, kSharedBytes, args,
         kv_map(kv.k, HD, kPageTokens), kv_map(kv.v, HD, kPageTokens));
}

}  // namespace

void launch_prefill_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                              int first_seq, int n_seqs, bool tables_expanded, const float* q, const __nv_bfloat16* brief_q,
                              const KvView& kv, float* out) {
  for (int b = first_seq; b < first_seq + n_seqs; b += kTableSeqs) {
    const int n = std::min(kTableSeqs, first_seq + n_seqs - b);
    const PrefillArgs args{{batch, shape.n_heads, shape.n_kv_heads, least_rows, b, n}, tables_expanded, q, brief_q, out};
    if (shape.head_dim == 128)
      launch_for<128>(queue, args, kv);
    else
      launch_for<64>(queue, args, kv);
  }
}

}  // namespace sigmoe::cuda
