#include "ascend/host/tiling_experts.h"

#include "ascend/host/cube_limits.h"

namespace sigmoe::ascend {
namespace {

constexpr int64_t kAlign = 512;

int64_t rows_of(int64_t tokens, int64_t n_active, bool shared) { return tokens * (n_active + (shared ? 1 : 0)); }

}  // namespace

ExpertsTiling make_experts_tiling(const ExpertsShape& shape, const Cores& cores) {
  const int64_t inner = std::max(shape.inner, shape.shared_inner), element_bytes = shape.element_bytes;
  check_cube_shape("the experts", shape.width, shape.x_pitch, element_bytes);
  if (inner > kMaxExpertInner)
    throw EngineError(ErrorCode::unsupported, "experts of inner width " + std::to_string(inner) + ": the vector cores hold " +
                                                  std::to_string(kMaxExpertInner));
  ExpertsTiling tiling{};
  tiling.tokens = static_cast<int32_t>(shape.tokens);
  tiling.width = static_cast<int32_t>(shape.width);
  tiling.inner = static_cast<int32_t>(shape.inner);
  tiling.shared_inner = static_cast<int32_t>(shape.shared_inner);
  tiling.n_experts = static_cast<int32_t>(shape.n_experts);
  tiling.n_active = static_cast<int32_t>(shape.n_active);
  tiling.shared = shape.shared;
  tiling.x_pitch = static_cast<int32_t>(shape.x_pitch);
  tiling.inner_pitch = static_cast<int32_t>(row_pitch(std::max<int64_t>(inner, 1), element_bytes));
  tiling.sum_pitch = static_cast<int32_t>(round_up(std::max(2 * inner, shape.width), kBlockBytes / 4));
  // Few tokens touch few experts, one row block each: then the tiles of all of them are what must share out.
  const int64_t busy = std::max<int64_t>(std::min(shape.tokens * shape.n_active, shape.n_experts) + (shape.shared ? 1 : 0), 1);
  const auto tile = [&](int64_t n) { return static_cast<int32_t>(column_tile(std::max<int64_t>(n, 1), busy, cores.aic)); };
  tiling.up_tile = tile(2 * shape.inner);
  tiling.shared_up_tile = tile(2 * shape.shared_inner);
  tiling.down_tile = tile(shape.width);
  const int64_t rows = rows_of(shape.tokens, shape.n_active, shape.shared);
  tiling.inner_at = round_up(rows * tiling.sum_pitch * 4, kAlign);
  tiling.scales_at = tiling.inner_at + round_up(rows * tiling.inner_pitch * element_bytes, kAlign);
  return tiling;
}

size_t experts_work_bytes(const ExpertsTiling& tiling) {
  return static_cast<size_t>(tiling.scales_at + rows_of(tiling.tokens, tiling.n_active, tiling.shared) * kBlockBytes);
}

}  // namespace sigmoe::ascend
