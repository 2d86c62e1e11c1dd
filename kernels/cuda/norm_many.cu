// residual += sum over slots; out = RMSNorm(residual) * weight, in float32 and packed for the tensor cores: what quantise.cu
// would make of it, bit for bit, without reading it again.
//
// Bound: memory, residual and slots once in and residual, out and the packed rows once out. A row is one block's work. A
// warp's 32 float4 are a group of 128 columns, the run that is packed at once; a thread has V of them, so that many loads are
// in flight. Squares are added by group, then over the groups: the order of elementwise.cu's kernel, whatever V is.
#include "cuda/device.cuh"
#include "cuda/gemm.h"
#include "cuda/norm_many.h"
#include "cuda/packed.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kMostGroups = 32;  // widths up to 4096
constexpr int kManyVectors = 4;  // of a thread, in steps that fill the device anyway

__device__ inline void add_to(float4& sum, const float4& v) { sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w; }

template <bool Bf16>
__device__ inline float4 load_slot(const void* addend, int64_t at) {
  if constexpr (Bf16) {
    const uint2 v = static_cast<const uint2*>(addend)[at];
    return {bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)};
  } else {
    return static_cast<const float4*>(addend)[at];
  }
}

template <int V, bool Bf16>
__global__ void __launch_bounds__(kMostGroups * 32 / V) many_norm_kernel(const __grid_constant__ ManyNormArgs args) {
  __shared__ float of_group[kMostGroups];
  let_next_start();
  const int64_t t = blockIdx.x;
  const int n = args.width / 4, lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
  float4 scale[V], value[V], added[V];
#pragma unroll
  for (int v = 0; v < V; ++v)  // a constant of the model: no need to wait for it
    scale[v] = reinterpret_cast<const float4*>(args.weight)[threadIdx.x + v * blockDim.x];
  wait_for_previous();
  auto* row = reinterpret_cast<float4*>(args.residual) + t * n + threadIdx.x;
#pragma unroll
  for (int v = 0; v < V; ++v) value[v] = row[v * blockDim.x];
  if (args.addend) {
    const int64_t first = t * args.n_slots * n + threadIdx.x;
#pragma unroll
    for (int v = 0; v < V; ++v) added[v] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 3
    for (int s = 0; s < args.n_slots; ++s)
#pragma unroll
      for (int v = 0; v < V; ++v)
        add_to(added[v], load_slot<Bf16>(args.addend, first + static_cast<int64_t>(s) * n + v * blockDim.x));
#pragma unroll
    for (int v = 0; v < V; ++v) {
      add_to(value[v], added[v]);
      row[v * blockDim.x] = value[v];
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const float4& a = value[v];
    const float sum = warp_sum(a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w);
    if (lane == 0) of_group[v * n_warps + warp] = sum;
  }
  __syncthreads();
  const float inverse = 1.0f / sqrtf(warp_sum(lane < args.width / kGroup ? of_group[lane] : 0.0f) / args.width + args.eps);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    value[v] = {value[v].x * inverse * scale[v].x, value[v].y * inverse * scale[v].y, value[v].z * inverse * scale[v].z,
                value[v].w * inverse * scale[v].w};
    reinterpret_cast<float4*>(args.out)[t * n + threadIdx.x + v * blockDim.x] = value[v];
  }
  float2 packed_scale = {1.0f, 1.0f};
  if (args.format == WeightFormat::fp8) {
    float largest = 0.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) largest = fmaxf(largest, largest_of(value[v]));
    largest = warp_largest(largest);
    __syncthreads();  // the squares have been read
    if (lane == 0) of_group[warp] = largest;
    __syncthreads();
    packed_scale = fp8_scale(warp_largest(lane < n_warps ? of_group[lane] : 0.0f));
    if (threadIdx.x == 0) args.packed.scales[t] = packed_scale.x;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int group = v * n_warps + warp;
    if (args.format == WeightFormat::fp8)
      pack_group_fp8(args.packed, static_cast<int>(t), group, value[v], packed_scale.y);
    else
      pack_group_bf16(args.packed, static_cast<int>(t), group, value[v]);
  }
}

template <int V>
void launch_vectors(const Queue& queue, const ManyNormArgs& args) {
  launch(queue, args.addend_is_bf16 ? many_norm_kernel<V, true> : many_norm_kernel<V, false>, args.n_tokens, args.width / 4 / V,
         0, args);
}

}  // namespace

bool norm_packs(int width) { return width % (kGroup * kManyVectors) == 0 && width <= kMostGroups * kGroup; }

void launch_many_norm(const Queue& queue, const ManyNormArgs& args) {
  if (args.n_tokens < 1024)
    launch_vectors<1>(queue, args);
  else
    launch_vectors<kManyVectors>(queue, args);
}

}  // namespace sigmoe::cuda
