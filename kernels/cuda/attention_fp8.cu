// Attention of many rows of a sequence in FP8, on Hopper, for who asks for it: attention_prefill.cu's work with its second
// product in half the time, and over an FP8 cache its first one too. Heads of 128 dims.
//
// Over a BF16 cache scores stay in BF16: what rounding does to them it does to the exponent of a weight, and a head whose
// scores have a standard deviation of 3 would have weights 11% off, where weights and values in E4M3 are 2.6% off each. Who
// keeps keys in FP8 has most of that error already.
//
// Bound: arithmetic, 4 * rows * keys * heads * 128 operations, in FP8 or half of them; and close behind, the exponentials: a
// warp takes 8 clocks for 32 of them, 512 for its rows of a page, whose two products take 528, or 784.
//
// Rows, tiles and warpgroups are attention_prefill.cu's. What is different:
// - Values come packed (kv_pack.cu): codes, (dim, token), the tokens of a row in the order in which scores lie in accumulators,
//   so that a thread's weights are its part of the next product's operand without a move.
// - A stage of the ring holds the keys of page i and the values of page i - 1, which are multiplied one behind the other.
// - Tensor cores add FP8 products up in 14 bits. A page's sums start from zero; what joins them to those before is an FMA in
//   float32 that also multiplies those by the change of the maximum. It and the sums take so many registers that queries wait
//   in shared memory.
// - Weights are relative to 2^-8 of the row's maximum, so that E4M3 holds those down to 2^-17 of it.
// - Eight more rows of values, all ones, make the last columns of the sums the rows' totals: of weights as they were rounded,
//   and without an addition for each.
#include "cuda/attention_prefill.h"
#include "cuda/attention_tile.cuh"
#include "cuda/kv_map.h"
#include "cuda/prefill_tiles.cuh"

namespace sigmoe::cuda {
namespace {

using namespace hopper;

constexpr int kDim = 128, kBoxRowBytes = 128;
constexpr int kValueBytes = kDim * kPageTokens, kOnesBytes = 8 * kPageTokens;
[[maybe_unused]] constexpr uint32_t kOnes = 0x38383838;  // E4M3
[[maybe_unused]] constexpr int kMeet = 1;                // named barriers, one for each warpgroup
[[maybe_unused]] constexpr float kWeightExponent = 8.0f;

struct Fp8PrefillArgs {
  PrefillRows rows;
  const float* q;
  const __nv_bfloat16* brief_q;
  float* out;
};

// Queries and keys in boxes of 128 bytes a row: one of 128 dims in FP8, two of 64 in BF16.
template <bool kFp8Scores>
struct Fp8PrefillShared {
  static constexpr int kStages = kFp8Scores ? 6 : 3, kBoxes = kFp8Scores ? 1 : 2;
  static constexpr int kQueryBox = kTileRows * kBoxRowBytes, kKeyBox = kPageTokens * kBoxRowBytes;
  std::byte queries[kPrefillGroups][kBoxes * kQueryBox];
  std::byte keys[kStages][kBoxes * kKeyBox];
  std::byte values[kStages][kValueBytes + kOnesBytes];
  uint64_t full[kStages], empty[kStages];
  StepTable table;
};

#if SIGMOE_HOPPER_CODE

// Eight values of a query in BF16, times the factor that makes scores exponents of two.
__device__ inline uint4 query_piece(const Fp8PrefillArgs& args, int64_t at) {
  if (args.brief_q) return *reinterpret_cast<const uint4*>(args.brief_q + at);
  const float factor = query_factor(kDim);
  const float4 a = *reinterpret_cast<const float4*>(args.q + at), b = *reinterpret_cast<const float4*>(args.q + at + 4);
  return {pack_bf16(a.x * factor, a.y * factor), pack_bf16(a.z * factor, a.w * factor), pack_bf16(b.x * factor, b.y * factor),
          pack_bf16(b.z * factor, b.w * factor)};
}
// Those as codes, times kQueryUnits.
__device__ inline uint2 query_codes(const uint4& piece) {
  const auto four = [](uint32_t a, uint32_t b) {
    return pack_e4m3(bf16_low(a) * kQueryUnits, bf16_high(a) * kQueryUnits, bf16_low(b) * kQueryUnits,
                     bf16_high(b) * kQueryUnits);
  };
  return {four(piece.x, piece.y), four(piece.z, piece.w)};
}

// A branch that is never taken, for no shift is that large: where it stands the compiler must have computed both. It would
// rather put off maxima until behind the wait for the product that they are to hide, and order all exponentials behind all
// sums.
__device__ inline void computed_here(const float (&shift)[2], float never) {
  if (shift[0] == never || shift[1] == never) __nanosleep(0);
}

// 64 rows of a warpgroup against pages; a thread's share of them as attention_tile.cuh has it.
template <bool kFp8Scores>
struct Fp8Rows {
  using Shared = Fp8PrefillShared<kFp8Scores>;
  static constexpr float kUnits = kFp8Scores ? kQueryUnits : 1.0f;  // of a score
  float score[kPageTokens / 2];
  uint32_t weights[kPageTokens / 32][4];
  float part[(kDim + 8) / 2], sum[(kDim + 8) / 2];  // of a page; of those before it. Last: totals
  float top[2], keep[2];                            // what sums must be multiplied by when the next part joins them
  float shift[2];                                   // a weight is 2^(score / kUnits + shift)

  __device__ void begin() {
#pragma unroll
    for (float& s : sum) s = 0.0f;
    top[0] = top[1] = -INFINITY;
  }
  // low: of descriptors, whose high words are alike.
  static __device__ uint64_t describe(uint32_t low) { return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | low; }
  __device__ void enqueue_scores(uint32_t queries, uint32_t keys) {
#pragma unroll
    for (int k = 0; k < Shared::kBoxes * 4; ++k) {
      const uint64_t of_queries = describe(queries + (k / 4 * Shared::kQueryBox + k % 4 * 32) / 16),
                     of_keys = describe(keys + (k / 4 * Shared::kKeyBox + k % 4 * 32) / 16);
      if constexpr (kFp8Scores)
        wgmma_e4m3(score, of_queries, of_keys, k > 0);
      else
        wgmma(score, of_queries, of_keys, k > 0);
    }
    wgmma_commit();
  }
  __device__ void enqueue_part(uint32_t values) {
#pragma unroll
    for (int k = 0; k < kPageTokens / 32; ++k) wgmma_e4m3(part, weights[k], describe(values + 2 * k), k > 0);
    wgmma_commit();
  }

  // The rows' new maxima; returns what sums become relative to them.
  __device__ float2 raise_tops() {
    float best[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float of[2];
#pragma unroll
      for (int n = 0; n < kPageTokens / 8; ++n) {
        const float pair = fmaxf(score[4 * n + 2 * h], score[4 * n + 2 * h + 1]);
        of[n % 2] = n < 2 ? pair : fmaxf(of[n % 2], pair);
      }
      best[h] = fmaxf(fmaxf(of[0], of[1]), top[h]);
    }
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2)
#pragma unroll
      for (int h = 0; h < 2; ++h) best[h] = fmaxf(best[h], __shfl_xor_sync(kAllLanes, best[h], lanes));
    float change[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      change[h] = exp2_fast((top[h] - best[h]) / kUnits);  // best is finite: a page's first key counts for each of its rows
      top[h] = best[h];
      shift[h] = kWeightExponent - best[h] / kUnits;
    }
    return {change[0], change[1]};
  }

  // Scores of keys [32 s, 32 s + 32) become weights; with_part: meanwhile as many sums are joined by the part of the page
  // before.
  template <bool with_part>
  __device__ void weigh(int s) {
#pragma unroll
    for (int i = 16 * s; i < 16 * s + 16; ++i) {
      score[i] = exp2_fast(fmaf(score[i], 1.0f / kUnits, shift[i / 2 % 2]));
      if (with_part) join(i);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* from = score + 16 * s + 8 * (i / 2) + 2 * (i % 2);
      weights[s][i] = pack_e4m3(from[0], from[1], from[4], from[5]);
    }
  }
  __device__ void join(int i) { sum[i] = fmaf(sum[i], keep[i / 2 % 2], part[i]); }
  __device__ void join_totals() {
#pragma unroll
    for (int i = kDim / 2; i < kDim / 2 + 4; ++i) join(i);
  }
};

#endif  // SIGMOE_HOPPER_CODE

template <bool kFp8Scores>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    fp8_prefill_kernel(const __grid_constant__ Fp8PrefillArgs args, const __grid_constant__ CUtensorMap key_map,
                       const __grid_constant__ CUtensorMap value_map) {
#if SIGMOE_HOPPER_CODE
  using Shared = Fp8PrefillShared<kFp8Scores>;
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
  let_next_start();
  if (threadIdx.x == 0) {
    prefetch_map(&key_map);
    prefetch_map(&value_map);
    for (int s = 0; s < Shared::kStages; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], kPrefillGroups * 4);
    }
    publish_barriers();
  }
  for (int i = threadIdx.x; i < Shared::kStages * kOnesBytes / 16; i += kPrefillThreads) {
    constexpr int kPieces = kOnesBytes / 16;
    *reinterpret_cast<uint4*>(shared.values[i / kPieces] + kValueBytes + i % kPieces * 16) = {kOnes, kOnes, kOnes, kOnes};
  }
  fence_async_proxy();
  wait_for_previous();
  shared.table.load(args.rows.batch, args.rows.first_seq, args.rows.n_seqs);
  __syncthreads();

  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, role = threadIdx.x / 128;
  Ring<Shared::kStages> ring;
  PrefillTile tile;
  if (role == 0) {
    fewer_registers<24>();
    if (warp > 0) return;
    const int max_pages = args.rows.batch.max_pages, n_kv_heads = args.rows.n_kv_heads;
    for (int n = 0; pick_tile(args.rows, shared.table, n, tile); ++n) {
      if (tile.n_pages == 0) continue;
      const int32_t* pages = args.rows.batch.page_tables + static_cast<int64_t>(args.rows.first_seq + tile.seq) * max_pages;
      const auto row = [&](int page) { return (page * n_kv_heads + tile.kv_head) * kPageTokens; };
      int page = 0;
      for (int i = 0; i <= tile.n_pages; ++i, ring.advance()) {
        const int packed = tile.seq * max_pages + i;
        if (i % 32 == 0 && i + lane < tile.n_pages) page = kFp8Scores ? packed + lane : pages[i + lane];
        const int of_keys = __shfl_sync(kAllLanes, page, i % 32), s = ring.stage;
        if (lane > 0) continue;
        const bool has_keys = i < tile.n_pages;
        const bool has_values = i > 0;
        barrier_wait(&shared.empty[s], ring.parity ^ 1);
        barrier_expect(&shared.full[s], has_keys * static_cast<int>(sizeof shared.keys[s]) + has_values * kValueBytes);
        for (int box = 0; box < Shared::kBoxes && has_keys; ++box)
          copy_box(shared.keys[s] + box * Shared::kKeyBox, &key_map, box * 64, row(of_keys), &shared.full[s]);
        if (has_values) copy_box(shared.values[s], &value_map, 0, row(packed - 1), &shared.full[s]);
      }
    }
  } else {
    more_registers<240>();
    const int mine = role - 1;
    const int n_heads = args.rows.n_heads, group = n_heads / args.rows.n_kv_heads, group_tokens = kTileRows / group;
    const auto low = [](const std::byte* at) { return static_cast<uint32_t>(describe_rows_n(at)); };
    const uint32_t queries = low(shared.queries[mine]), keys = low(shared.keys[0]), values = low(shared.values[0]);
    // A shuffle from one lane, each time: so the compiler knows that the warp agrees, and keeps no descriptor of every product
    // in registers.
    const auto agreed = [](uint32_t value) { return __shfl_sync(kAllLanes, value, 0); };
    const auto enqueue_scores = [&](Fp8Rows<kFp8Scores>& rows) {
      rows.enqueue_scores(agreed(queries), agreed(keys + ring.stage * (Shared::kBoxes * Shared::kKeyBox / 16)));
    };
    const auto enqueue_part = [&](Fp8Rows<kFp8Scores>& rows) {
      rows.enqueue_part(agreed(values + ring.stage * ((kValueBytes + kOnesBytes) / 16)));
    };
    const auto release = [&] {
      if (lane == 0) barrier_arrive(&shared.empty[ring.stage]);
      ring.advance();
    };
    Fp8Rows<kFp8Scores> rows;
    for (int n = 0; pick_tile(args.rows, shared.table, n, tile); ++n) {
      if (tile.n_pages == 0) continue;
      const auto token_of = [&](int r) { return mine * group_tokens + r / group; };
      const auto is_row = [&](int r) { return r / group < group_tokens && token_of(r) < tile.n_rows; };
      const auto place_of = [&](int r) {  // of a row in q and out
        return (static_cast<int64_t>(tile.row + token_of(r)) * n_heads + tile.kv_head * group + r % group) * kDim;
      };
      named_sync(kMeet + mine, 128);  // nobody multiplies the queries of the tile before any more
      constexpr int kPieceDims = kFp8Scores ? 16 : 8;
      for (int i = threadIdx.x % 128; i < kTileRows * kDim / kPieceDims; i += 128) {
        const int r = i / (kDim / kPieceDims), box = i / 8 % Shared::kBoxes, piece = i % 8;
        uint4 bytes = {};
        if (is_row(r)) {
          const int64_t at = place_of(r) + (8 * box + piece) * kPieceDims;
          bytes = query_piece(args, at);
          if constexpr (kFp8Scores) {
            const uint2 first = query_codes(bytes), second = query_codes(query_piece(args, at + 8));
            bytes = {first.x, first.y, second.x, second.y};
          }
        }
        std::byte* row = shared.queries[mine] + box * Shared::kQueryBox + r * kBoxRowBytes;
        *reinterpret_cast<uint4*>(row + (piece ^ (r % 8)) * 16) = bytes;
      }
      fence_async_proxy();
      named_sync(kMeet + mine, 128);

      float* to[2];  // this thread's rows of out; null for padding
      int last_key[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = warp * 16 + lane / 4 + 8 * h;
        to[h] = is_row(r) ? args.out + place_of(r) + 2 * (lane % 4) : nullptr;
        last_key[h] = tile.first_position + min(token_of(r), tile.n_rows - 1);
      }
      rows.begin();
      barrier_wait(&shared.full[ring.stage], ring.parity);
      pin(rows.score);
      wgmma_begin();
      enqueue_scores(rows);
      wgmma_wait<0>();
      pin(rows.score);
      release();
      mask_scores(rows.score, last_key, 0);
      float2 change = rows.raise_tops();
#pragma unroll
      for (int s = 0; s < kPageTokens / 32; ++s) rows.template weigh<false>(s);
      rows.keep[0] = change.x, rows.keep[1] = change.y;

      bool there = barrier_try_wait(&shared.full[ring.stage], ring.parity);
      const auto next_page = [&](int i, bool masked) {
        if (!there) barrier_wait(&shared.full[ring.stage], ring.parity);
        pin(rows.score);
        pin(rows.part);
        pin(rows.weights);
        wgmma_begin();
        enqueue_scores(rows);
        enqueue_part(rows);
        wgmma_wait<1>();
        pin(rows.score);
        if (masked) mask_scores(rows.score, last_key, i * kPageTokens);
        change = rows.raise_tops();
        computed_here(rows.shift, 1e30f);
        wgmma_wait<0>();
        pin(rows.part);
        release();
        there = barrier_try_wait(&shared.full[ring.stage], ring.parity);
#pragma unroll
        for (int s = 0; s < kPageTokens / 32; ++s) {
          rows.template weigh<true>(s);
          if (s == 1) computed_here(rows.shift, 2e30f);
        }
        rows.join_totals();
        rows.keep[0] = change.x, rows.keep[1] = change.y;
      };
      // Pages that every row sees whole, then the others: apart, for the products overlap the softmax in straight code alone.
      const int n_whole = (tile.first_position + 1) / kPageTokens;
      int i = 1;
      for (; i < n_whole; ++i) next_page(i, false);
      for (; i < tile.n_pages; ++i) next_page(i, true);

      if (!there) barrier_wait(&shared.full[ring.stage], ring.parity);
      pin(rows.part);
      pin(rows.weights);
      wgmma_begin();
      enqueue_part(rows);
      wgmma_wait<0>();
      pin(rows.part);
      release();
#pragma unroll
      for (int j = 0; j < kDim / 2; ++j) rows.join(j);
      rows.join_totals();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!to[h]) continue;
        const float scale = 1.0f / (rows.sum[kDim / 2 + 2 * h] * kValueUnits);
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d)
          *reinterpret_cast<float2*>(to[h] + 8 * d) = {rows.sum[4 * d + 2 * h] * scale, rows.sum[4 * d + 2 * h + 1] * scale};
      }
    }
  }
#endif
}

template <bool kFp8Scores>
void launch_for(const Queue& queue, const Fp8PrefillArgs& args, const CUtensorMap& keys, const void* packed_v) {
  launch(queue, fp8_prefill_kernel<kFp8Scores>, prefill_blocks(args.rows), kPrefillThreads,
         sizeof(Fp8PrefillShared<kFp8Scores>) + 1024, args, keys, packed_map(packed_v));
}

}  // namespace

void launch_fp8_prefill_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                                  int first_seq, int n_seqs, const float* q, const __nv_bfloat16* brief_q, const KvView& kv,
                                  const void* packed_k, const void* packed_v, float* out) {
  SIGMOE_CHECK(n_seqs <= kTableSeqs && shape.head_dim == kDim, "FP8 attention of what it has no kernel for");
  const Fp8PrefillArgs args{{batch, shape.n_heads, shape.n_kv_heads, least_rows, first_seq, n_seqs}, q, brief_q, out};
  if (kv.dtype == DType::f8_e4m3)
    launch_for<true>(queue, args, packed_map(packed_k), packed_v);
  else
    launch_for<false>(queue, args, kv_map(kv.k, kDim, kPageTokens), packed_v);
}

}  // namespace sigmoe::cuda
