// What kernel route is told by value.
#pragma once

#include <cstdint>

namespace sigmoe::ascend {

constexpr int32_t kRouteMaxExperts = 512;
constexpr int32_t kRouteMaxGroups = 8;
constexpr int32_t kRouteMaxActive = 32;
constexpr int32_t kRouteMaxLists = kRouteMaxExperts / 32 + kRouteMaxGroups;  // of 32 experts, sorted
constexpr int32_t kSlotChunk = 2048;                                         // slots that a core looks through at a time

struct RouteTiling {
  int32_t n_tokens;   // T
  int32_t width;      // D
  int32_t n_experts;  // E
  int32_t n_active;   // A
  int32_t n_groups, n_groups_kept;
  int32_t group_size;   // experts of a group
  int32_t group_pitch;  // places they take in UB, a multiple of 32
  int32_t normalise;
  int32_t forced;  // the choice is given
  // Logits: a core multiplies some tokens with some experts, one dot product after the other.
  int32_t token_block, expert_block;
  int32_t row_pitch;     // floats of a row in UB, a multiple of 64
  int32_t gate_buffers;  // 1 or 2 rows of the gate
  // Lists: each core those of so many experts.
  int32_t experts_per_core;
  float scaling;
};

}  // namespace sigmoe::ascend
