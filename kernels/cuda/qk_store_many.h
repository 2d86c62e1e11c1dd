// Query and key norms, RoPE and the paged store for many rows: qk_store.cu's op where heads have a warp's shape. qkv is f32, or
// bf16 when qkv_is_bf16. Queries go to q_out, or in BF16, times q_factor, to brief_q.
#pragma once

#include <cuda_bf16.h>

#include "cuda/ops.h"

namespace sigmoe::cuda {

void launch_many_qk_norm_rope_store(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const void* qkv,
                                    bool qkv_is_bf16, const float* q_norm, const float* k_norm, float eps, const float* cos,
                                    const float* sin, const KvView& kv, float* q_out, float q_factor, __nv_bfloat16* brief_q);

}  // namespace sigmoe::cuda
