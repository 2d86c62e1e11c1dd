#include "cuda/bench_kernels.h"
#include "cuda/device.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kInFlight = 8;

__global__ void __launch_bounds__(512) read_stream_kernel(const uint4* data, int64_t n, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (kInFlight - 1) * stride < n; i += kInFlight * stride) {
    uint4 v[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) v[k] = load_once(data + i + k * stride);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  for (; i < n; i += stride) sum += data[i].x;
  if (sum == 0x12345678u) *sink = sum;  // keeps the loads; hardly ever taken
}

template <typename T>
__global__ void fill_kernel(uint64_t seed, float limit, int64_t n, T* data) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint64_t x = seed + i * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    const float value = (static_cast<float>(x >> 40) / 8388608.0f - 1.0f) * limit;
    if constexpr (sizeof(T) == 2)
      data[i] = __float2bfloat16_rn(value);
    else
      data[i] = value;
  }
}

}  // namespace

void launch_read_stream(const Queue& queue, int n_sms, const void* data, size_t bytes, uint32_t* sink) {
  launch(queue, read_stream_kernel, 4 * n_sms, 512, 0, static_cast<const uint4*>(data), static_cast<int64_t>(bytes / 16), sink);
}

void launch_fill_f32(const Queue& queue, uint64_t seed, float limit, size_t n, float* data) {
  launch(queue, fill_kernel<float>, 1024, 256, 0, seed, limit, static_cast<int64_t>(n), data);
}

void launch_fill_bf16(const Queue& queue, uint64_t seed, float limit, size_t n, void* data) {
  launch(queue, fill_kernel<__nv_bfloat16>, 1024, 256, 0, seed, limit, static_cast<int64_t>(n),
         static_cast<__nv_bfloat16*>(data));
}

}  // namespace sigmoe::cuda
