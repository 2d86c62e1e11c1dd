#include "ascend/host/tiling_attention.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "backend/error.h"

namespace sigmoe::ascend {
namespace {

constexpr int64_t kAlign = 512;
constexpr int64_t kShortestSplit = 1024;              // positions; a split of less does not pay for its merge
constexpr int64_t kMaxPartBytes = int64_t{64} << 20;  // of the splits' results: longer splits when there are many rows
constexpr int64_t kSame = 8;                          // a scalar of a row is kept so many times

int64_t part_bytes(const AttentionTiling& t) {
  return int64_t{t.tokens} * t.max_splits * t.heads * (t.head_dim + 2 * kSame) * 4;
}

}  // namespace

AttentionTiling make_attention_tiling(const AttentionWork& work, const Cores& cores) {
  const int64_t ratio = work.kv_heads > 0 ? work.heads / work.kv_heads : 0;
  if (ratio < 1 || ratio * work.kv_heads != work.heads || ratio > kAttentionRows || work.heads > kMaxHeads ||
      work.head_dim < 16 || work.head_dim % 16 != 0 || work.head_dim > kMaxHeadDim ||
      work.heads * work.head_dim > kMaxAttentionWidth)
    throw EngineError(ErrorCode::unsupported,
                      "attention with " + std::to_string(work.heads) + " heads over " + std::to_string(work.kv_heads) +
                          " KV heads of " + std::to_string(work.head_dim) +
                          ": the Ascend kernels take head sizes that are multiples of 16 up to " + std::to_string(kMaxHeadDim) +
                          ", up to " + std::to_string(kAttentionRows) + " heads to a KV head and " +
                          std::to_string(kMaxAttentionWidth) + " values to a row");
  AttentionTiling t{};
  t.tokens = static_cast<int32_t>(work.tokens);
  t.seqs = static_cast<int32_t>(work.seqs);
  t.max_pages = static_cast<int32_t>(work.max_pages);
  t.heads = static_cast<int32_t>(work.heads);
  t.kv_heads = static_cast<int32_t>(work.kv_heads);
  t.head_dim = static_cast<int32_t>(work.head_dim);
  t.tile_tokens = static_cast<int32_t>(kAttentionRows / ratio);
  t.shadow = work.shadow;
  t.shadow_pitch = static_cast<int32_t>(work.shadow_pitch);
  t.scale = 1.0f / std::sqrt(static_cast<float>(work.head_dim));
  const int64_t longest = std::max<int64_t>(work.max_pages * kPagePositions, 1);
  for (int64_t split = kShortestSplit;; split *= 2) {
    t.split_tokens = static_cast<int32_t>(split);
    t.max_splits = static_cast<int32_t>(ceil_div(longest, split));
    if (t.max_splits == 1 || part_bytes(t) <= kMaxPartBytes) break;
  }
  const int64_t slots = int64_t{cores.aic} * 2 * kAttentionRows;
  int64_t at = 0;
  const auto place = [&at](int64_t bytes) {
    const int64_t here = at;
    at += round_up(bytes, kAlign);
    return here;
  };
  place(work.tokens * work.heads * work.head_dim * 2);
  t.scores_at = place(slots * kAttentionChunk * 4);
  t.probs_at = place(slots * kAttentionChunk * 2);
  t.values_at = place(slots * work.head_dim * 4);
  t.part_highest_at = place(work.tokens * t.max_splits * work.heads * kSame * 4);
  t.part_total_at = place(work.tokens * t.max_splits * work.heads * kSame * 4);
  t.part_sums_at = at;
  return t;
}

size_t attention_work_bytes(const AttentionTiling& t) {
  return static_cast<size_t>(t.part_sums_at + int64_t{t.tokens} * t.max_splits * t.heads * t.head_dim * 4);
}

}  // namespace sigmoe::ascend
