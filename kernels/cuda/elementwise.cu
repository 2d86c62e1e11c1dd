// Embedding rows, norms and conversions. Bound: latency at few tokens, memory at many; a row is one block's work.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda {
namespace {

constexpr int kRowThreads = 1024;
constexpr int kVectors = 4;  // float4 of a row that a thread keeps in registers: rows up to 16,384 wide

__global__ void embed_kernel(const void* table, bool is_float, const int32_t* ids, int width, float* out) {
  let_next_start();
  wait_for_previous();
  const int64_t source = static_cast<int64_t>(ids[blockIdx.x]) * width;
  float* row = out + static_cast<int64_t>(blockIdx.x) * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    row[i] = is_float ? static_cast<const float*>(table)[source + i]
                      : __bfloat162float(static_cast<const __nv_bfloat16*>(table)[source + i]);
}

__device__ float4 add(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ float squares(float4 a) { return a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w; }

// residual += sum over slots of addend; out = RMSNorm(residual) * weight, and in BF16 too when `twin` is given.
// width % 4 == 0, at most 4 * kVectors * blockDim.x.
__global__ void __launch_bounds__(kRowThreads)
    reduce_add_rms_norm_kernel(float* residual, const float* addend, int n_slots, const float* weight, float eps, int width,
                               float* out, uint2* twin) {
  __shared__ float scratch[32];
  const int64_t t = blockIdx.x;
  const int n = width / 4;
  let_next_start();
  float4 scale[kVectors], value[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {  // a constant of the model: no need to wait for it
    const int i = threadIdx.x + v * blockDim.x;
    if (out && i < n) scale[v] = reinterpret_cast<const float4*>(weight)[i];
  }
  wait_for_previous();
  auto* row = reinterpret_cast<float4*>(residual) + t * n;
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * blockDim.x;
    if (i >= n) break;
    value[v] = row[i];
    if (addend) {
      const auto* slots = reinterpret_cast<const float4*>(addend) + t * n_slots * n + i;
      float4 added = {0.0f, 0.0f, 0.0f, 0.0f};
      int s = 0;
      for (; s + 3 <= n_slots; s += 3) {  // three loads in flight; the order of the sum stays the order of the slots
        const float4 a = slots[static_cast<int64_t>(s) * n], b = slots[static_cast<int64_t>(s + 1) * n],
                     c = slots[static_cast<int64_t>(s + 2) * n];
        added = add(add(add(added, a), b), c);
      }
      for (; s < n_slots; ++s) added = add(added, slots[static_cast<int64_t>(s) * n]);
      value[v] = add(value[v], added);
      row[i] = value[v];
    }
    sum += squares(value[v]);
  }
  if (!out) return;
  const float inverse = 1.0f / sqrtf(block_sum(sum, scratch) / width + eps);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = threadIdx.x + v * blockDim.x;
    if (i >= n) break;
    const float4 normed = {value[v].x * inverse * scale[v].x, value[v].y * inverse * scale[v].y,
                           value[v].z * inverse * scale[v].z, value[v].w * inverse * scale[v].w};
    reinterpret_cast<float4*>(out)[t * n + i] = normed;
    if (twin) twin[t * n + i] = {pack_bf16(normed.x, normed.y), pack_bf16(normed.z, normed.w)};
  }
}

// out[i] = x[i] / rms(x) * weight[i] over one row, by the whole block.
__device__ void norm_row(const float* x, const float* weight, float eps, int width, float* out) {
  __shared__ float scratch[32];
  float sum = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[i] * x[i];
  const float inverse = 1.0f / sqrtf(block_sum(sum, scratch) / width + eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x) out[i] = x[i] * inverse * weight[i];
}

// The same for any width.
__global__ void reduce_add_rms_norm_any_kernel(float* residual, const float* addend, int n_slots, const float* weight,
                                               float eps, int width, float* out) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  float* row = residual + t * width;
  if (addend)
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      float added = 0.0f;
      for (int s = 0; s < n_slots; ++s) added += addend[(t * n_slots + s) * width + i];
      row[i] += added;
    }
  if (out) norm_row(row, weight, eps, width, out + t * width);
}

// One block per row and run of 1024 columns.
template <typename T>
__global__ void sum_slots_kernel(const T* addend, int n_slots, int width, float* out) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < width; i += gridDim.y * blockDim.x) {
    float sum = 0.0f;
    for (int s = 0; s < n_slots; ++s) sum += static_cast<float>(addend[(t * n_slots + s) * width + i]);
    out[t * width + i] = sum;
  }
}

__global__ void widen_kernel(const __nv_bfloat16* rows, int64_t n, float factor, float* out) {
  let_next_start();
  wait_for_previous();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    out[i] = static_cast<float>(rows[i]) * factor;
}

__global__ void join_norms_kernel(const float* embedding, const float* embedding_norm, const float* hidden,
                                  const float* hidden_norm, float eps, int width, float* out) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const bool second = blockIdx.y == 1;
  norm_row((second ? hidden : embedding) + t * width, second ? hidden_norm : embedding_norm, eps, width,
           out + (2 * t + (second ? 1 : 0)) * width);
}

// out (rows, width) bf16 = x rows, picked by row_ids when given.
__global__ void to_bf16_kernel(const float* x, const int32_t* row_ids, int width, __nv_bfloat16* out) {
  let_next_start();
  wait_for_previous();
  const float* row = x + static_cast<int64_t>(row_ids ? row_ids[blockIdx.x] : blockIdx.x) * width;
  __nv_bfloat16* to = out + static_cast<int64_t>(blockIdx.x) * width;
  if (width % 4 == 0) {
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
      const float4 v = reinterpret_cast<const float4*>(row)[i];
      reinterpret_cast<uint2*>(to)[i] = {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
    }
  } else {
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = __float2bfloat16_rn(row[i]);
  }
}

// Row i: from[from_ids[i]] to to[to_ids[i]], ids null for 0, 1, 2, ...
__global__ void copy_rows_kernel(const float* from, const int32_t* from_ids, int64_t from_stride, float* to,
                                 const int32_t* to_ids, int64_t to_stride, int width) {
  let_next_start();
  wait_for_previous();
  const int i = static_cast<int>(blockIdx.x);
  const float* source = from + (from_ids ? from_ids[i] : i) * from_stride;
  float* target = to + (to_ids ? to_ids[i] : i) * to_stride;
  for (int d = threadIdx.x; d < width; d += blockDim.x) target[d] = source[d];
}

int threads_for(int n) { return std::min(kRowThreads, divide_up(n, 32) * 32); }

}  // namespace

void launch_embed(const Queue& queue, const Tensor& table, const int32_t* ids, int n_tokens, float* out) {
  const int width = static_cast<int>(table.shape[1]);
  launch(queue, embed_kernel, n_tokens, threads_for(width), 0, table.data, table.dtype == DType::f32, ids, width, out);
}

static_assert(kMostNormWidth == 4 * kVectors * kRowThreads);

void launch_reduce_add_rms_norm(const Queue& queue, float* residual, const float* addend, int n_slots, const float* weight,
                                float eps, int n_tokens, int width, float* out, void* twin) {
  if (norm_has_twin(width))
    launch(queue, reduce_add_rms_norm_kernel, n_tokens, threads_for(width / 4), 0, residual, addend, n_slots, weight, eps,
           width, out, static_cast<uint2*>(twin));
  else
    launch(queue, reduce_add_rms_norm_any_kernel, n_tokens, threads_for(width), 0, residual, addend, n_slots, weight, eps,
           width, out);
}

void launch_sum_slots(const Queue& queue, const void* addend, bool is_bf16, int n_slots, int n_tokens, int width, float* out) {
  const dim3 grid(n_tokens, std::min(divide_up(width, kRowThreads), 65535));
  if (is_bf16)
    launch(queue, sum_slots_kernel<__nv_bfloat16>, grid, threads_for(width), 0, static_cast<const __nv_bfloat16*>(addend),
           n_slots, width, out);
  else
    launch(queue, sum_slots_kernel<float>, grid, threads_for(width), 0, static_cast<const float*>(addend), n_slots, width, out);
}

void launch_widen(const Queue& queue, const void* rows, size_t n, float factor, float* out) {
  const int n_blocks = static_cast<int>(std::min<size_t>((n + kRowThreads - 1) / kRowThreads, 65535));
  launch(queue, widen_kernel, n_blocks, kRowThreads, 0, static_cast<const __nv_bfloat16*>(rows), static_cast<int64_t>(n),
         factor, out);
}

void launch_join_norms(const Queue& queue, const float* embedding, const float* embedding_norm, const float* hidden,
                       const float* hidden_norm, float eps, int n_tokens, int width, float* out) {
  launch(queue, join_norms_kernel, dim3(n_tokens, 2), threads_for(width), 0, embedding, embedding_norm, hidden, hidden_norm,
         eps, width, out);
}

void launch_to_bf16(const Queue& queue, const float* x, const int32_t* row_ids, int n_rows, int width, void* out) {
  launch(queue, to_bf16_kernel, n_rows, threads_for(divide_up(width, 4)), 0, x, row_ids, width,
         static_cast<__nv_bfloat16*>(out));
}

void launch_copy_rows(const Queue& queue, const float* from, const int32_t* from_ids, int64_t from_stride, float* to,
                      const int32_t* to_ids, int64_t to_stride, int n_rows, int width) {
  launch(queue, copy_rows_kernel, n_rows, threads_for(width), 0, from, from_ids, from_stride, to, to_ids, to_stride, width);
}

}  // namespace sigmoe::cuda
