// What a linear kernel is told: y (rows, n) = x (rows, k) W^T, cut into tiles of rows and columns that the cores share out.
#pragma once

#include "ascend/device/args/weight_layout.h"

namespace sigmoe::ascend {

struct LinearTiling {
  int32_t rows;         // T
  int32_t n, k;         // of W
  int32_t x_pitch;      // elements of x from row to row
  int32_t gathered;     // 1: row i of the product is x[row_ids[i]]
  int32_t column_tile;  // columns of a tile, a multiple of 16
  int32_t scale_strip;  // int8: rows that a vector core scales at a time
  int32_t scale_width;  // int8: and columns
};

}  // namespace sigmoe::ascend
