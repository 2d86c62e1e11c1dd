#include "ascend/host/tiling_route.h"

#include <algorithm>
#include <string>

#include "ascend/host/tiling_rows.h"

namespace sigmoe::ascend {
namespace {

constexpr int32_t kMaxTokenBlock = 4, kMaxExpertBlock = 64;
constexpr int32_t kMaxRowPitch = 255 * 64;  // one repeat per 64 floats

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }
int32_t round_up(int32_t value, int32_t unit) { return ceil_div(value, unit) * unit; }

[[noreturn]] void refuse(const std::string& what) { throw EngineError(ErrorCode::unsupported, "the Ascend router: " + what); }

}  // namespace

int32_t ub_bytes(const RouteTiling& t) {
  const int32_t places = t.n_groups * t.group_pitch;
  int32_t merges = 0;
  for (int32_t n = places / 32; n > 1; n = ceil_div(n, 4)) merges += ceil_div(n, 4);
  int32_t floats = (t.token_block + t.gate_buffers + 1) * t.row_pitch + round_up(t.row_pitch / 64, 64) +
                   2 * t.token_block * round_up(t.expert_block, 8);                                                    // logits
  floats += 7 * places + 2 * (places + 128 * merges) + 2 * round_up(t.n_active, 8);                                    // choice
  floats += 6 * kSlotChunk + kSlotChunk / 32 + round_up(t.experts_per_core, 8) + round_up(t.experts_per_core + 1, 8);  // lists
  return floats * 4;
}

RouteTiling make_route_tiling(const RouterShape& shape, int n_tokens, int width, bool forced, const Cores& cores) {
  const auto limit = [](const char* what, int value, int most) {
    if (value < 1 || value > most)
      refuse(std::to_string(value) + " " + what + ", of which there may be 1 to " + std::to_string(most));
  };
  limit("experts", shape.n_experts, kRouteMaxExperts);
  limit("groups", shape.n_groups, std::min(kRouteMaxGroups, shape.n_experts));
  if (shape.n_experts % shape.n_groups != 0) refuse("groups of different sizes");
  limit("groups to keep", shape.n_groups_kept, shape.n_groups);
  limit("experts per token", shape.n_active,
        std::min(kRouteMaxActive, shape.n_groups_kept * (shape.n_experts / shape.n_groups)));
  RouteTiling t{};
  t.n_tokens = n_tokens;
  t.width = width;
  t.n_experts = shape.n_experts;
  t.n_active = shape.n_active;
  t.n_groups = shape.n_groups;
  t.n_groups_kept = shape.n_groups_kept;
  t.group_size = shape.n_experts / shape.n_groups;
  t.group_pitch = round_up(t.group_size, 32);
  t.normalise = shape.normalise;
  t.forced = forced;
  t.scaling = shape.scaling;
  t.row_pitch = round_up(width, 64);
  t.experts_per_core = ceil_div(t.n_experts, cores.aiv);
  for (t.gate_buffers = 2; t.gate_buffers > 0; --t.gate_buffers)
    for (t.token_block = std::max(1, std::min(kMaxTokenBlock, n_tokens)); t.token_block > 0; --t.token_block) {
      // As many experts at a time as leave no core idle.
      t.expert_block = std::clamp(ceil_div(int64_t{t.n_experts} * ceil_div(n_tokens, t.token_block), cores.aiv), 1,
                                  std::min(kMaxExpertBlock, t.n_experts));
      if (t.row_pitch <= kMaxRowPitch && ub_bytes(t) <= kUbBytes) return t;
    }
  refuse("rows of " + std::to_string(width) + " do not fit a vector core's memory");
}

uint32_t route_blocks(const RouteTiling& t, const Cores& cores) {
  const int64_t products = int64_t{ceil_div(t.n_tokens, t.token_block)} * ceil_div(t.n_experts, t.expert_block);
  const int64_t lists = ceil_div(t.n_experts, t.experts_per_core);
  return static_cast<uint32_t>(std::min<int64_t>(cores.aiv, std::max({products, int64_t{t.n_tokens}, lists})));
}

}  // namespace sigmoe::ascend
