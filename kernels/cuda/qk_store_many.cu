// Query and key norms, RoPE and the paged store for many rows, with the bits of qk_store.cu's kernel.
//
// Bound: memory, qkv once in, queries in float32 or BF16 and keys and values in the cache's type once out. A row is one block's
// work; a warp takes several of its heads and loads them all before it works on the first. Lane l has dims l, l + 32, l + 64
// and l + 96 of a head, so both halves of a rotation are its own.
#include "cuda/device.cuh"
#include "cuda/kv_address.cuh"
#include "cuda/kv_fp8.cuh"
#include "cuda/qk_store_many.h"

namespace sigmoe::cuda {
namespace {

constexpr int kHeadDim = 128, kHalf = 32;  // kHalf: dims that turn, in pairs with those kHalf further
constexpr int kDims = kHeadDim / 32;       // of a lane
constexpr int kWarps = 8;
constexpr int kAtOnce = 5;  // heads of a warp: the model has 40

template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    many_qk_norm_rope_store_kernel(BatchView batch, AttentionShape shape, const T* qkv, const float* q_norm,
                                   const float* k_norm, float eps, const float* cos, const float* sin, KvView kv, float* q_out,
                                   float q_factor, __nv_bfloat16* brief_q) {
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = blockIdx.x;
  const int n_heads = shape.n_heads, n_kv = shape.n_kv_heads, n_all = n_heads + 2 * n_kv;
  float q_scale[kDims], k_scale[kDims];
#pragma unroll
  for (int d = 0; d < kDims; ++d) {
    q_scale[d] = q_norm ? q_norm[lane + 32 * d] : 1.0f;
    k_scale[d] = k_norm ? k_norm[lane + 32 * d] : 1.0f;
  }
  wait_for_previous();
  const T* row = qkv + static_cast<int64_t>(t) * n_all * kHeadDim + lane;
  const int position = batch.positions[t];
  const float c = cos[static_cast<int64_t>(position) * kHalf + lane], s = sin[static_cast<int64_t>(position) * kHalf + lane];
  const int32_t* pages = batch.page_tables + static_cast<int64_t>(sequence_of(batch, t)) * batch.max_pages;
  for (int first = warp; first < n_all; first += kWarps * kAtOnce) {
    float heads[kAtOnce][kDims];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (const int h = first + i * kWarps; h < n_all)
#pragma unroll
        for (int d = 0; d < kDims; ++d) heads[i][d] = static_cast<float>(row[h * kHeadDim + 32 * d]);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int h = first + i * kWarps;
      if (h >= n_all) break;
      float(&v)[kDims] = heads[i];
      const bool is_query = h < n_heads, is_value = h >= n_heads + n_kv;
      if (!is_value) {
        if (is_query ? q_norm : k_norm) {
          float squares = 0.0f;
#pragma unroll
          for (int d = 0; d < kDims; ++d) squares += v[d] * v[d];
          const float inverse = 1.0f / sqrtf(warp_sum(squares) / kHeadDim + eps);
#pragma unroll
          for (int d = 0; d < kDims; ++d) v[d] = v[d] * inverse * (is_query ? q_scale[d] : k_scale[d]);
        }
        const float a = v[0], b = v[1];
        v[0] = a * c - b * s;
        v[1] = b * c + a * s;
      }
      if (is_query) {
        const int64_t at = (static_cast<int64_t>(t) * n_heads + h) * kHeadDim + lane;
#pragma unroll
        for (int d = 0; d < kDims; ++d)
          if (brief_q)
            brief_q[at + 32 * d] = __float2bfloat16_rn(v[d] * q_factor);
          else
            q_out[at + 32 * d] = v[d];
        continue;
      }
      const int64_t at = kv_offset(pages, position, (h - n_heads) % n_kv, n_kv, kHeadDim);
      void* base = is_value ? kv.v : kv.k;
      if (kv.dtype == DType::bf16) {
#pragma unroll
        for (int d = 0; d < kDims; ++d) static_cast<__nv_bfloat16*>(base)[at + lane + 32 * d] = __float2bfloat16_rn(v[d]);
        continue;
      }
      float largest = 0.0f;
#pragma unroll
      for (int d = 0; d < kDims; ++d) largest = fmaxf(largest, fabsf(v[d]));
#pragma unroll
      for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
      const float scale = fp8_scale(largest);
#pragma unroll
      for (int d = 0; d < kDims; ++d) static_cast<uint8_t*>(base)[at + lane + 32 * d] = to_fp8(v[d] / scale);
      if (lane == 0) (is_value ? kv.v_scales : kv.k_scales)[at / kHeadDim] = scale;
    }
  }
}

}  // namespace

void launch_many_qk_norm_rope_store(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const void* qkv,
                                    bool qkv_is_bf16, const float* q_norm, const float* k_norm, float eps, const float* cos,
                                    const float* sin, const KvView& kv, float* q_out, float q_factor, __nv_bfloat16* brief_q) {
  const auto run = [&]<typename T>(const T* rows) {
    launch(queue, many_qk_norm_rope_store_kernel<T>, batch.n_tokens, kWarps * 32, 0, batch, shape, rows, q_norm, k_norm, eps,
           cos, sin, kv, q_out, q_factor, brief_q);
  };
  qkv_is_bf16 ? run(static_cast<const __nv_bfloat16*>(qkv)) : run(static_cast<const float*>(qkv));
}

}  // namespace sigmoe::cuda
