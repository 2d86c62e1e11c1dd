// The float32 mode: every product and sum in float32, one warp per result, nothing clever. What the fast kernels are checked
// against on the device, and what answers the goldens to 1e-4.
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/kv_address.cuh"
#include "cuda/kv_fp8.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda {
namespace {

constexpr int kWarps = 8;

// W[n] . x, on every lane of the warp.
__device__ float row_dot(const WeightView& w, int n, const float* x) {
  float sum = 0.0f;
  for (int k = threadIdx.x % 32; k < w.k; k += 32) sum += x[k] * element(w, n, k);
  return warp_sum(sum);
}

__global__ void linear_kernel(const float* x, const int32_t* row_ids, WeightView w, float* y) {
  let_next_start();
  wait_for_previous();
  const int n = blockIdx.x * kWarps + threadIdx.x / 32, t = blockIdx.y;
  if (n >= w.n) return;
  const float value = row_dot(w, n, x + static_cast<int64_t>(row_ids ? row_ids[t] : t) * w.k);
  if (threadIdx.x % 32 == 0) y[static_cast<int64_t>(t) * w.n + n] = value;
}

__device__ WeightView pick(const ExactExperts& args, const WeightView* routed, const WeightView& shared, int t, int slot) {
  return slot < args.n_active ? routed[args.expert_ids[t * args.n_active + slot]] : shared;
}

__global__ void gate_up_kernel(ExactExperts args, const float* x, float* inner) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.x * kWarps + threadIdx.x / 32, t = blockIdx.y, slot = blockIdx.z;
  const WeightView w = pick(args, args.gate_up, args.shared_gate_up, t, slot);
  if (!w.tiles || i >= w.n / 2) return;
  const float* row = x + static_cast<int64_t>(t) * w.k;
  const float gate = row_dot(w, i, row), up = row_dot(w, w.n / 2 + i, row);
  if (threadIdx.x % 32 == 0)
    inner[(static_cast<int64_t>(t) * args.n_slots + slot) * args.inner_stride + i] = gate / (1.0f + expf(-gate)) * up;
}

__global__ void down_kernel(ExactExperts args, const float* inner, float* out) {
  let_next_start();
  wait_for_previous();
  const int n = blockIdx.x * kWarps + threadIdx.x / 32, t = blockIdx.y, slot = blockIdx.z;
  if (n >= args.width) return;
  const WeightView w = pick(args, args.down, args.shared_down, t, slot);
  const int64_t row = static_cast<int64_t>(t) * args.n_slots + slot;
  float value = 0.0f;
  if (w.tiles) value = row_dot(w, n, inner + row * args.inner_stride);
  if (slot < args.n_active) value *= args.slot_weights[t * args.n_active + slot];
  if (threadIdx.x % 32 == 0) out[row * args.width + n] = value;
}

// One warp per (row, head); lanes over the head's dims, PerLane each; kKeys keys at a time with a running maximum.
template <int PerLane>
__global__ void attention_kernel(BatchView batch, AttentionShape shape, const float* q, KvView kv, float* out) {
  let_next_start();
  wait_for_previous();
  constexpr int kKeys = 4;
  const int h = blockIdx.x, t = blockIdx.y * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32, head_dim = shape.head_dim;
  if (t >= batch.n_tokens) return;
  const int g = h / (shape.n_heads / shape.n_kv_heads), last = batch.positions[t];
  const int32_t* pages = batch.page_tables + static_cast<int64_t>(sequence_of(batch, t)) * batch.max_pages;
  const float scale = 1.0f / sqrtf(static_cast<float>(head_dim));
  const int64_t row = (static_cast<int64_t>(t) * shape.n_heads + h) * head_dim;
  const auto load = [&](const void* base, const float* scales, int64_t at) {
    if (kv.dtype == DType::f8_e4m3) return from_fp8(static_cast<const uint8_t*>(base)[at]) * scales[at / head_dim];
    return kv.dtype == DType::f32 ? static_cast<const float*>(base)[at]
                                  : __bfloat162float(static_cast<const __nv_bfloat16*>(base)[at]);
  };
  float query[PerLane] = {}, sums[PerLane] = {}, highest = -INFINITY, total = 0.0f;
#pragma unroll
  for (int m = 0; m < PerLane; ++m)
    if (lane + 32 * m < head_dim) query[m] = q[row + lane + 32 * m];
  for (int p = 0; p <= last; p += kKeys) {
    int64_t at[kKeys];
    float scores[kKeys], most = highest;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      at[j] = kv_offset(pages, min(p + j, last), g, shape.n_kv_heads, head_dim);
      float dot = 0.0f;
#pragma unroll
      for (int m = 0; m < PerLane; ++m)
        if (const int i = lane + 32 * m; i < head_dim) dot += query[m] * load(kv.k, kv.k_scales, at[j] + i);
      scores[j] = p + j <= last ? warp_sum(dot) * scale : -INFINITY;
      most = fmaxf(most, scores[j]);
    }
    const float keep = expf(highest - most);
    highest = most;
    total *= keep;
#pragma unroll
    for (int m = 0; m < PerLane; ++m) sums[m] *= keep;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      const float weight = expf(scores[j] - highest);
      total += weight;
#pragma unroll
      for (int m = 0; m < PerLane; ++m)
        if (const int i = lane + 32 * m; i < head_dim && p + j <= last) sums[m] += weight * load(kv.v, kv.v_scales, at[j] + i);
    }
  }
#pragma unroll
  for (int m = 0; m < PerLane; ++m)
    if (const int i = lane + 32 * m; i < head_dim) out[row + i] = sums[m] / total;
}

}  // namespace

void launch_exact_linear(const Queue& queue, const float* x, const int32_t* row_ids, const WeightView& weight, int n_tokens,
                         float* y) {
  launch(queue, linear_kernel, dim3(divide_up(weight.n, kWarps), n_tokens), kWarps * 32, 0, x, row_ids, weight, y);
}

void launch_exact_experts(const Queue& queue, const ExactExperts& args, const float* x, float* inner, float* out) {
  const int n_slots = args.n_slots;
  launch(queue, gate_up_kernel, dim3(divide_up(args.inner_stride, kWarps), args.n_tokens, n_slots), kWarps * 32, 0, args, x,
         inner);
  launch(queue, down_kernel, dim3(divide_up(args.width, kWarps), args.n_tokens, n_slots), kWarps * 32, 0, args, inner, out);
}

void launch_exact_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const float* q,
                            const KvView& kv, float* out) {
  if (shape.head_dim > 512)
    throw EngineError(ErrorCode::unsupported,
                      "attention heads of " + std::to_string(shape.head_dim) + " dims have no CUDA kernel");
  launch(queue, shape.head_dim <= 128 ? attention_kernel<4> : attention_kernel<16>,
         dim3(shape.n_heads, divide_up(batch.n_tokens, kWarps)), kWarps * 32, 0, batch, shape, q, kv, out);
}

}  // namespace sigmoe::cuda
