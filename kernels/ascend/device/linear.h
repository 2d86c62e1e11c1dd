// y (rows, n) = x (rows, k) W^T on the cube cores: core c takes tiles c, c + cores, ... The tiles of one range of columns
// follow each other, so that cores which run at the same time read the same weights.
#pragma once

#include "ascend/device/args/linear.h"
#include "ascend/device/cube_gemm.h"

namespace sigmoe_cube_kernels {

template <typename T>
__aicore__ inline void linear_tiles(GM_ADDR x, GM_ADDR row_ids, GM_ADDR weight, GM_ADDR y, const LinearTiling& t, TPipe* pipe) {
  using Sum = typename CubeSum<T>::Type;
  CubeGemm<T> gemm;
  gemm.init(pipe);
  GlobalTensor<T> x_gm, weight_gm;
  GlobalTensor<int32_t> ids_gm;
  GlobalTensor<Sum> y_gm;
  x_gm.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(x));
  weight_gm.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(weight));
  ids_gm.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(row_ids));
  y_gm.SetGlobalBuffer(reinterpret_cast<__gm__ Sum*>(y));

  const WeightLayout layout{t.n, t.k, sizeof(T)};
  const int32_t row_blocks = static_cast<int32_t>(ceil_div(t.rows, kTileRows));
  const int32_t tiles = row_blocks * static_cast<int32_t>(ceil_div(t.n, t.column_tile));
  int32_t ids[kTileRows];
  for (int32_t tile = static_cast<int32_t>(GetBlockIdx()); tile < tiles; tile += static_cast<int32_t>(GetBlockNum())) {
    const int32_t row = tile % row_blocks * kTileRows, column = tile / row_blocks * t.column_tile;
    const int32_t rows = row + kTileRows < t.rows ? kTileRows : t.rows - row;
    const int32_t columns = column + t.column_tile < t.n ? t.column_tile : t.n - column;
    if (t.gathered)
      for (int32_t i = 0; i < rows; ++i) ids[i] = ids_gm.GetValue(row + i);
    gemm.set_rows(x_gm, t.x_pitch, t.gathered ? ids : nullptr, row, rows);
    gemm.multiply(weight_gm, layout, column / static_cast<int32_t>(kGroupRows), columns,
                  y_gm[static_cast<int64_t>(row) * t.n + column], static_cast<uint32_t>(t.n));
  }
}

}  // namespace sigmoe_cube_kernels
