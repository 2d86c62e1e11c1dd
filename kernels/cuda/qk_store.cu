// Query and key norms, RoPE and the paged store, a warp per row and head. Bound: memory; few rows take as long as a launch does
// (many: qk_store_many.cu).
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/kv_address.cuh"
#include "cuda/kv_fp8.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda {
namespace {

constexpr int kStoreWarps = 4;
constexpr int kMaxHeadDim = 512;

// One warp per (row, head), heads in the order of qkv: q, then k, then v.
__global__ void __launch_bounds__(kStoreWarps * 32)
    qk_norm_rope_store_kernel(BatchView batch, AttentionShape shape, const float* qkv, const float* q_norm, const float* k_norm,
                              float eps, const float* cos, const float* sin, KvView kv, float* q_out) {
  __shared__ float heads[kStoreWarps][kMaxHeadDim];
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32, t = blockIdx.y, h = blockIdx.x * kStoreWarps + threadIdx.x / 32;
  const int n_heads = shape.n_heads, n_kv = shape.n_kv_heads, head_dim = shape.head_dim, half = shape.rotary_dim / 2;
  if (h >= n_heads + 2 * n_kv) return;
  float* head = heads[threadIdx.x / 32];
  const float* source = qkv + (static_cast<int64_t>(t) * (n_heads + 2 * n_kv) + h) * head_dim;
  const bool is_query = h < n_heads, is_value = h >= n_heads + n_kv;
  const float* norm = is_query ? q_norm : is_value ? nullptr : k_norm;
  const int position = batch.positions[t];

  float squares = 0.0f;
  for (int i = lane; i < head_dim; i += 32) squares += source[i] * source[i];
  const float inverse = norm ? 1.0f / sqrtf(warp_sum(squares) / head_dim + eps) : 1.0f;
  for (int i = lane; i < head_dim; i += 32) head[i] = norm ? source[i] * inverse * norm[i] : source[i];
  __syncwarp();
  if (!is_value) {
    for (int j = lane; j < half; j += 32) {
      const float c = cos[static_cast<int64_t>(position) * half + j], s = sin[static_cast<int64_t>(position) * half + j];
      rotate(head[j], head[j + half], c, s);
    }
    __syncwarp();
  }
  if (is_query) {
    float* out = q_out + (static_cast<int64_t>(t) * n_heads + h) * head_dim;
    for (int i = lane; i < head_dim; i += 32) out[i] = head[i];
    return;
  }
  const int32_t* pages = batch.page_tables + static_cast<int64_t>(sequence_of(batch, t)) * batch.max_pages;
  const int64_t at = kv_offset(pages, position, (h - n_heads) % n_kv, n_kv, head_dim);
  void* base = is_value ? kv.v : kv.k;
  if (kv.dtype == DType::f8_e4m3) {
    float largest = 0.0f;
    for (int i = lane; i < head_dim; i += 32) largest = fmaxf(largest, fabsf(head[i]));
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    const float scale = fp8_scale(largest);
    for (int i = lane; i < head_dim; i += 32) static_cast<uint8_t*>(base)[at + i] = to_fp8(head[i] / scale);
    if (lane == 0) (is_value ? kv.v_scales : kv.k_scales)[at / head_dim] = scale;
    return;
  }
  for (int i = lane; i < head_dim; i += 32) {
    if (kv.dtype == DType::f32)
      static_cast<float*>(base)[at + i] = head[i];
    else
      static_cast<__nv_bfloat16*>(base)[at + i] = __float2bfloat16_rn(head[i]);
  }
}

}  // namespace

void launch_qk_norm_rope_store(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const float* qkv,
                               const float* q_norm, const float* k_norm, float eps, const float* cos, const float* sin,
                               const KvView& kv, float* q_out) {
  if (shape.head_dim > kMaxHeadDim)
    throw EngineError(ErrorCode::unsupported,
                      "attention heads of " + std::to_string(shape.head_dim) + " dims have no CUDA kernel");
  launch(queue, qk_norm_rope_store_kernel, dim3(divide_up(shape.n_heads + 2 * shape.n_kv_heads, kStoreWarps), batch.n_tokens),
         kStoreWarps * 32, 0, batch, shape, qkv, q_norm, k_norm, eps, cos, sin, kv, q_out);
}

}  // namespace sigmoe::cuda
