// What an experts kernel is told. R rows of work: the T * A routed slots in the order of slot_order, so that the rows of an
// expert follow each other, then T rows of the shared expert.
//
// The weights come as a table of addresses in device memory, (4, E + 1) u64: gate_up, down, scales of gate_up, scales of down;
// column E is the shared expert. A null weight makes its slots zero.
#pragma once

#include "ascend/device/args/weight_layout.h"

namespace sigmoe::ascend {

constexpr int32_t kExpertPiece = 1024;      // columns that a vector core holds at a time
constexpr int32_t kMaxExpertInner = 16384;  // F: a row of it is held whole

enum ExpertTable : int32_t { kGateUp, kDown, kGateUpScales, kDownScales, kExpertTables };

struct ExpertsTiling {
  int32_t tokens;                              // T
  int32_t width;                               // D
  int32_t inner;                               // F of the routed experts
  int32_t shared_inner;                        // F of the shared expert
  int32_t n_experts;                           // E
  int32_t n_active;                            // A
  int32_t shared;                              // 1: there is a slot of the shared expert
  int32_t x_pitch;                             // elements of x from token to token
  int32_t inner_pitch;                         // elements of the SwiGLU results from row to row
  int32_t sum_pitch;                           // 4-byte sums from row to row
  int32_t up_tile, shared_up_tile, down_tile;  // columns of a tile on the cube cores
  int64_t inner_at, scales_at;                 // bytes into the workspace; the sums are at its start
};

}  // namespace sigmoe::ascend
