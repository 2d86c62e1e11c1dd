// residual += sum over slots; out = RMSNorm(residual) * weight, in float32 and packed for the tensor cores: what quantise.cu
// would make of it, bit for bit, without reading it again.
//
// Bound: memory, residual and slots once in and residual, out and the packed rows once out. A row is one block's work, a float4
// a thread's: the more rows are under way, the better (with four of a thread, a quarter of the rows at once, the sum over nine
// slots took a quarter longer). A warp has a group of 128 columns, as they are packed.
#include "cuda/norm_many.h"
#include "cuda/packed.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kMostGroups = kMostNormGroups;

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

template <bool Bf16>
__global__ void __launch_bounds__(kMostGroups * 32) many_norm_kernel(const __grid_constant__ ManyNormArgs args) {
  __shared__ float of_group[kMostGroups];
  let_next_start();
  const int64_t t = blockIdx.x;
  const int n = args.width / 4, i = threadIdx.x, lane = i % 32, group = i / 32, n_groups = args.width / kGroup;
  const float4 scale = reinterpret_cast<const float4*>(args.weight)[i];  // a constant of the model: no need to wait for it
  wait_for_previous();
  float4& at = reinterpret_cast<float4*>(args.residual)[t * n + i];
  float4 value = at;
  if (args.addend) {
    float4 added = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 3
    for (int s = 0; s < args.n_slots; ++s) add_to(added, load_slot<Bf16>(args.addend, (t * args.n_slots + s) * n + i));
    add_to(value, added);
    at = value;
  }
  const float squares = warp_sum(value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w);
  if (lane == 0) of_group[group] = squares;
  __syncthreads();
  const float inverse = 1.0f / sqrtf(warp_sum(lane < n_groups ? of_group[lane] : 0.0f) / args.width + args.eps);
  value = {value.x * inverse * scale.x, value.y * inverse * scale.y, value.z * inverse * scale.z, value.w * inverse * scale.w};
  reinterpret_cast<float4*>(args.out)[t * n + i] = value;
  if (args.format == WeightFormat::bf16) return pack_group_bf16(args.packed, static_cast<int>(t), group, value);
  const float largest = warp_largest(largest_of(value));
  __syncthreads();  // the squares have been read
  if (lane == 0) of_group[group] = largest;
  __syncthreads();
  const float2 of_row = fp8_scale(warp_largest(lane < n_groups ? of_group[lane] : 0.0f));
  if (i == 0) args.packed.scales[t] = of_row.x;
  pack_group_fp8(args.packed, static_cast<int>(t), group, value, of_row.y);
}

}  // namespace

void launch_many_norm(const Queue& queue, const ManyNormArgs& args) {
  launch(queue, args.addend_is_bf16 ? many_norm_kernel<true> : many_norm_kernel<false>, args.n_tokens, args.width / 4, 0, args);
}

}  // namespace sigmoe::cuda
