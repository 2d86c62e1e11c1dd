#include "ascend/host/tiling_qk_norm_rope_store.h"

#include <algorithm>
#include <string>

#include "ascend/host/tiling_rows.h"

namespace sigmoe::ascend {
namespace {

constexpr int32_t kUnit = 16;  // columns: 32 bytes of BF16
constexpr int32_t kMaxRepeats = 255;

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }
int32_t round_up(int32_t value, int32_t unit) { return ceil_div(value, unit) * unit; }

int64_t items_of(const QkNormRopeStoreTiling& t) {
  return int64_t{t.n_tokens} * (ceil_div(t.n_heads, t.q_heads) + 2 * ceil_div(t.n_kv_heads, t.kv_heads));
}

}  // namespace

int32_t ub_bytes(const QkNormRopeStoreTiling& t) {
  const int32_t heads = std::max(t.q_heads, t.kv_heads), scalars = round_up(heads, 8);
  int32_t floats = heads * t.pitch * 6 + 3 * scalars + 8 * scalars;  // in and out twice, head, squares; sums, spread
  if (t.has_q_norm || t.has_k_norm) floats += 2 * t.pitch;
  if (t.half > 0) floats += 4 * t.half_pitch + 4 * heads * t.half_pitch;
  return floats * 4;
}

QkNormRopeStoreTiling make_qk_norm_rope_store_tiling(const BatchView& batch, const AttentionShape& shape, bool has_q_norm,
                                                     bool has_k_norm, float eps, DType kv_dtype, const Cores& cores) {
  QkNormRopeStoreTiling t{};
  t.n_tokens = batch.n_tokens;
  t.n_seqs = batch.n_seqs;
  t.max_pages = batch.max_pages;
  t.n_heads = shape.n_heads;
  t.n_kv_heads = shape.n_kv_heads;
  t.head_dim = shape.head_dim;
  t.half = shape.rotary_dim / 2;
  t.half_pitch = round_up(t.half, kUnit);
  t.pitch = t.half_pitch == t.half ? round_up(t.head_dim, kUnit) : 2 * t.half_pitch + round_up(t.head_dim - 2 * t.half, kUnit);
  t.has_q_norm = has_q_norm;
  t.has_k_norm = has_k_norm;
  t.kv_bf16 = kv_dtype == DType::bf16;
  t.eps = eps;
  t.one_over_head_dim = 1.0f / static_cast<float>(shape.head_dim);
  // As many heads at a time as fit, but not so many that cores stand idle.
  t.q_heads = std::min(t.n_heads, kMaxRepeats);
  t.kv_heads = std::min(t.n_kv_heads, kMaxRepeats);
  while (t.pitch / 8 <= kMaxRepeats && (ub_bytes(t) > kUbBytes || items_of(t) < cores.aiv)) {
    int32_t& larger = t.q_heads >= t.kv_heads ? t.q_heads : t.kv_heads;
    if (larger == 1) break;
    larger = ceil_div(larger, 2);
  }
  if (t.pitch / 8 > kMaxRepeats || ub_bytes(t) > kUbBytes)
    throw EngineError(ErrorCode::unsupported, "heads of " + std::to_string(t.head_dim) + " do not fit a vector core's memory");
  return t;
}

uint32_t qk_norm_rope_store_blocks(const QkNormRopeStoreTiling& tiling, const Cores& cores) {
  return static_cast<uint32_t>(std::min<int64_t>(items_of(tiling), cores.aiv));
}

}  // namespace sigmoe::ascend
