// How the kernels on rows, add_rms_norm and convert_rows, divide their work and UB.
#pragma once

#include "ascend/device/args/add_rms_norm.h"
#include "ascend/device/args/convert_rows.h"
#include "ascend/host/cores.h"

namespace sigmoe::ascend {

constexpr int32_t kUbBytes = 183 << 10;  // what a kernel may use of a vector core's 192 KB

// Both throw unsupported for rows that do not fit.
AddRmsNormTiling make_add_rms_norm_tiling(int n_tokens, int width, int n_slots, bool has_out, ShadowKind shadow, float eps,
                                          const Cores& cores);
ConvertRowsTiling make_convert_rows_tiling(int n_rows, int width, RowType from, RowType to, const Cores& cores);

int32_t ub_bytes(const AddRmsNormTiling& tiling);
int32_t ub_bytes(const ConvertRowsTiling& tiling);

// Blocks that have rows.
template <typename Tiling>
uint32_t row_blocks(int n_rows, const Tiling& tiling) {
  return static_cast<uint32_t>((n_rows + tiling.rows_per_core - 1) / tiling.rows_per_core);
}

}  // namespace sigmoe::ascend
