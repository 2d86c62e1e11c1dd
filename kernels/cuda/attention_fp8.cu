// Attention of many rows of a sequence with both products in FP8, on Hopper: attention_prefill.cu's work in half of its
// products' time, for who asks for it. Heads of 128 dims.
//
// Bound: arithmetic, 4 * rows * keys * heads * 128 operations in FP8; and close behind, the exponentials: a warp takes 8 clocks
// for 32 of them, 512 for its rows of a page, as long as the page's two products.
//
// Rows, tiles and warpgroups are attention_prefill.cu's. What is different:
// - Pages come packed (kv_pack.cu): keys as they are, values turned, (dim, token), and the tokens of a row in the order in
// which
//   scores lie in accumulators, so that a thread's weights are its part of the next product's operand without a move.
// - A stage of the ring holds the keys of page i and the values of page i - 1, which are multiplied one behind the other.
// - Tensor cores add FP8 products up in 14 bits. A page's sums start from zero; what joins them to those before is an FMA in
//   float32 that also multiplies those by the change of the maximum.
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

constexpr int kDim = 128, kRowBytes = 128;
constexpr int kTileBytes = kPageTokens * kRowBytes, kOnesBytes = 8 * kRowBytes;
[[maybe_unused]] constexpr uint32_t kOnes = 0x38383838;  // E4M3
[[maybe_unused]] constexpr int kMeet = 1;                // named barriers, one for each warpgroup
[[maybe_unused]] constexpr float kWeightExponent = 8.0f;

struct Fp8PrefillArgs {
  PrefillRows rows;
  const float* q;
  const __nv_bfloat16* brief_q;
  float* out;
};

struct Fp8PrefillShared {
  static constexpr int kStages = 6;
  std::byte queries[kPrefillGroups][kTileRows * kRowBytes];
  std::byte keys[kStages][kTileBytes];
  std::byte values[kStages][kTileBytes + kOnesBytes];
  uint64_t full[kStages], empty[kStages];
  StepTable table;
};

#if SIGMOE_HOPPER_CODE

__device__ inline uint32_t pair_codes(uint32_t a, uint32_t b) {  // pairs in BF16
  return pack_e4m3(bf16_low(a) * kQueryUnits, bf16_high(a) * kQueryUnits, bf16_low(b) * kQueryUnits,
                   bf16_high(b) * kQueryUnits);
}

// Sixteen values of a query, times the factor that makes scores exponents of two: rounded to BF16 as attention_prefill.cu and
// the kernel that leaves them in BF16 do, then to E4M3.
__device__ inline uint4 query_codes(const float* from) {
  const float factor = query_factor(kDim);
  uint4 codes;
  uint32_t* code = &codes.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 v = reinterpret_cast<const float4*>(from)[i];
    code[i] = pair_codes(pack_bf16(v.x * factor, v.y * factor), pack_bf16(v.z * factor, v.w * factor));
  }
  return codes;
}
__device__ inline uint4 query_codes(const __nv_bfloat16* from) {
  uint4 codes;
  uint32_t* code = &codes.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint2 v = reinterpret_cast<const uint2*>(from)[i];
    code[i] = pair_codes(v.x, v.y);
  }
  return codes;
}

// A branch that is never taken, for no shift is that large: where it stands the compiler must have computed both. It would
// rather put off maxima until behind the wait for the product that they are to hide, and order all exponentials behind all
// sums.
__device__ inline void computed_here(const float (&shift)[2], float never) {
  if (shift[0] == never || shift[1] == never) __nanosleep(0);
}

// 64 rows of a warpgroup against pages; a thread's share of them as attention_tile.cuh has it.
struct Fp8Rows {
  float score[kPageTokens / 2];
  uint32_t weights[kPageTokens / 32][4];
  float part[(kDim + 8) / 2], sum[(kDim + 8) / 2];  // of a page; of those before it. Last: totals
  float top[2], keep[2];                            // what sums must be multiplied by when the next part joins them
  float shift[2];                                   // a weight is 2^(score / units + shift)

  __device__ void begin() {
#pragma unroll
    for (float& s : sum) s = 0.0f;
    top[0] = top[1] = -INFINITY;
  }
  // low: of descriptors, whose high words are alike.
  static __device__ uint64_t describe(uint32_t low) { return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | low; }
  __device__ void enqueue_scores(uint32_t queries, uint32_t keys) {
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k) wgmma_e4m3(score, describe(queries + 2 * k), describe(keys + 2 * k), k > 0);
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
      change[h] =
          exp2_fast((top[h] - best[h]) / kQueryUnits);  // best is finite: a page's first key counts for each of its rows
      top[h] = best[h];
      shift[h] = kWeightExponent - best[h] / kQueryUnits;
    }
    return {change[0], change[1]};
  }

  // Scores of keys [32 s, 32 s + 32) become weights; with_part: meanwhile as many sums are joined by the part of the page
  // before.
  template <bool with_part>
  __device__ void weigh(int s) {
#pragma unroll
    for (int i = 16 * s; i < 16 * s + 16; ++i) {
      score[i] = exp2_fast(fmaf(score[i], 1.0f / kQueryUnits, shift[i / 2 % 2]));
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

__global__ void __launch_bounds__(kPrefillThreads, 1)
    fp8_prefill_kernel(const __grid_constant__ Fp8PrefillArgs args, const __grid_constant__ CUtensorMap key_map,
                       const __grid_constant__ CUtensorMap value_map) {
#if SIGMOE_HOPPER_CODE
  using Shared = Fp8PrefillShared;
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
    *reinterpret_cast<uint4*>(shared.values[i / kPieces] + kTileBytes + i % kPieces * 16) = {kOnes, kOnes, kOnes, kOnes};
  }
  fence_async_proxy();
  wait_for_previous();
  shared.table.load(args.rows.batch, args.rows.first_seq, args.rows.n_seqs);
  __syncthreads();

  // A shuffle from one lane: so the compiler knows that a warp agrees about descriptors.
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, role = __shfl_sync(kAllLanes, threadIdx.x / 128, 0);
  Ring<Shared::kStages> ring;
  PrefillTile tile;
  if (role == 0) {
    fewer_registers<24>();
    if (warp > 0 || lane > 0) return;
    for (int n = 0; pick_tile(args.rows, shared.table, n, tile); ++n) {
      if (tile.n_pages == 0) continue;
      const auto row = [&](int i) {
        return ((tile.seq * args.rows.batch.max_pages + i) * args.rows.n_kv_heads + tile.kv_head) * kPageTokens;
      };
      for (int i = 0; i <= tile.n_pages; ++i, ring.advance()) {
        const int s = ring.stage;
        const bool has_keys = i<tile.n_pages, has_values = i> 0;
        barrier_wait(&shared.empty[s], ring.parity ^ 1);
        barrier_expect(&shared.full[s], (has_keys + has_values) * kTileBytes);
        if (has_keys) copy_box(shared.keys[s], &key_map, 0, row(i), &shared.full[s]);
        if (has_values) copy_box(shared.values[s], &value_map, 0, row(i - 1), &shared.full[s]);
      }
    }
  } else {
    more_registers<240>();
    const int mine = role - 1;
    const int n_heads = args.rows.n_heads, group = n_heads / args.rows.n_kv_heads, group_tokens = kTileRows / group;
    const auto low = [](const std::byte* at) { return static_cast<uint32_t>(describe_rows_n(at)); };
    const uint32_t queries = low(shared.queries[mine]), keys = low(shared.keys[0]), values = low(shared.values[0]);
    const auto stage = [&] { return __shfl_sync(kAllLanes, ring.stage, 0); };
    const auto enqueue_scores = [&](Fp8Rows& rows) { rows.enqueue_scores(queries, keys + stage() * (kTileBytes / 16)); };
    const auto enqueue_part = [&](Fp8Rows& rows) { rows.enqueue_part(values + stage() * ((kTileBytes + kOnesBytes) / 16)); };
    const auto release = [&] {
      if (lane == 0) barrier_arrive(&shared.empty[ring.stage]);
      ring.advance();
    };
    Fp8Rows rows;
    for (int n = 0; pick_tile(args.rows, shared.table, n, tile); ++n) {
      if (tile.n_pages == 0) continue;
      const auto token_of = [&](int r) { return mine * group_tokens + r / group; };
      const auto is_row = [&](int r) { return r / group < group_tokens && token_of(r) < tile.n_rows; };
      const auto place_of = [&](int r) {  // of a row in q and out
        return (static_cast<int64_t>(tile.row + token_of(r)) * n_heads + tile.kv_head * group + r % group) * kDim;
      };
      named_sync(kMeet + mine, 128);  // nobody multiplies the queries of the tile before any more
      for (int i = threadIdx.x % 128; i < kTileRows * kRowBytes / 16; i += 128) {
        const int r = i / 8, piece = i % 8;
        uint4 codes = {};
        if (is_row(r)) {
          const int64_t at = place_of(r) + 16 * piece;
          codes = args.brief_q ? query_codes(args.brief_q + at) : query_codes(args.q + at);
        }
        *reinterpret_cast<uint4*>(shared.queries[mine] + r * kRowBytes + (piece ^ (r % 8)) * 16) = codes;
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
      for (int s = 0; s < kPageTokens / 32; ++s) rows.weigh<false>(s);
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
          rows.weigh<true>(s);
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

}  // namespace

void launch_fp8_prefill_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                                  int first_seq, int n_seqs, const float* q, const __nv_bfloat16* brief_q, const void* k,
                                  const void* v, float* out) {
  SIGMOE_CHECK(n_seqs <= kTableSeqs && shape.head_dim == kDim, "FP8 attention of what it has no kernel for");
  const Fp8PrefillArgs args{{batch, shape.n_heads, shape.n_kv_heads, least_rows, first_seq, n_seqs}, q, brief_q, out};
  launch(queue, fp8_prefill_kernel, prefill_blocks(args.rows), kPrefillThreads, sizeof(Fp8PrefillShared) + 1024, args,
         fp8_page_map(k), fp8_page_map(v));
}

}  // namespace sigmoe::cuda
