// How kernel qk_norm_rope_store divides the heads of a step.
#pragma once

#include "ascend/device/args/qk_norm_rope_store.h"
#include "ascend/host/cores.h"
#include "backend/backend.h"

namespace sigmoe::ascend {

// Throws unsupported for heads that do not fit. Launch with qk_norm_rope_store_blocks of it.
QkNormRopeStoreTiling make_qk_norm_rope_store_tiling(const BatchView& batch, const AttentionShape& shape, bool has_q_norm,
                                                     bool has_k_norm, float eps, DType kv_dtype, const Cores& cores);

int32_t ub_bytes(const QkNormRopeStoreTiling& tiling);
uint32_t qk_norm_rope_store_blocks(const QkNormRopeStoreTiling& tiling, const Cores& cores);

}  // namespace sigmoe::ascend
