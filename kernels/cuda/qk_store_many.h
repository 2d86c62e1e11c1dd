// Query and key norms, RoPE and the paged store for many rows: qk_store.cu's op where heads have a warp's shape.
#pragma once

#include "cuda/ops.h"

namespace sigmoe::cuda {

void launch_many_qk_norm_rope_store(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const float* qkv,
                                    const float* q_norm, const float* k_norm, float eps, const float* cos, const float* sin,
                                    const KvView& kv, float* q_out);

}  // namespace sigmoe::cuda
