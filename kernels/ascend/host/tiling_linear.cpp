#include "ascend/host/tiling_linear.h"

#include "ascend/host/cube_limits.h"

namespace sigmoe::ascend {

LinearTiling make_linear_tiling(const LinearShape& shape, const Cores& cores) {
  constexpr int64_t kRowsOfTile = 128;   // kTileRows of device/cube_gemm.h
  constexpr int64_t kScaleWidth = 4096;  // 5 buffers of it are 80 KB of UB
  check_cube_shape("a linear layer", shape.k, shape.x_pitch, shape.element_bytes);
  LinearTiling tiling{};
  tiling.rows = static_cast<int32_t>(shape.rows);
  tiling.n = static_cast<int32_t>(shape.n);
  tiling.k = static_cast<int32_t>(shape.k);
  tiling.x_pitch = static_cast<int32_t>(shape.x_pitch);
  tiling.gathered = shape.gathered;
  tiling.column_tile = static_cast<int32_t>(column_tile(shape.n, ceil_div(shape.rows, kRowsOfTile), cores.aic));
  // Each vector core scales a piece: a range of columns over some rows.
  const int64_t pieces_of_row = ceil_div(shape.n, kScaleWidth);
  tiling.scale_width = static_cast<int32_t>(round_up(ceil_div(shape.n, pieces_of_row), 16));
  tiling.scale_strip = static_cast<int32_t>(ceil_div(shape.rows * pieces_of_row, 2 * int64_t{cores.aic}));
  return tiling;
}

}  // namespace sigmoe::ascend
