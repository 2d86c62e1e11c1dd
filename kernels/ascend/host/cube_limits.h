// What every kernel that multiplies on the cube cores asks of a shape, and how columns are cut for the cores.
#pragma once

#include <algorithm>
#include <string>

#include "ascend/device/args/weight_layout.h"
#include "backend/error.h"

namespace sigmoe::ascend {

constexpr int64_t kMaxTileColumns = 128;  // kTileColumns of device/cube_gemm.h
constexpr int64_t kMaxStride = 65535;     // of the copies, in their own units

// Rows of x are `x_pitch` elements apart; a fractal column of W is 16 blocks.
inline void check_cube_shape(const char* what, int64_t k, int64_t x_pitch, int64_t element_bytes) {
  const int64_t longest = kMaxStride / kGroupRows * block_lanes(element_bytes);
  if (k < 1 || k > longest || x_pitch > kMaxStride)
    throw EngineError(ErrorCode::unsupported, std::string(what) + ": " + std::to_string(k) + " input features, rows " +
                                                  std::to_string(x_pitch) + " apart; the copies of the Ascend kernels reach " +
                                                  std::to_string(std::min(longest, kMaxStride)));
}

// Columns of a tile, so that `rows_blocks` x ceil(n / tile) tiles share out evenly over the cores: as wide as the buffers
// allow, then narrower until the last round of tiles is full.
inline int64_t column_tile(int64_t n, int64_t row_blocks, int64_t cores) {
  const int64_t groups = ceil_div(n, kGroupRows), widest = kMaxTileColumns / kGroupRows;
  const int64_t rounds = ceil_div(row_blocks * ceil_div(groups, widest), cores);
  const int64_t tiles = std::max<int64_t>(rounds * cores / row_blocks, ceil_div(groups, widest));
  return ceil_div(groups, std::min(tiles, groups)) * kGroupRows;
}

}  // namespace sigmoe::ascend
