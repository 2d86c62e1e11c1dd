// Device side of quantise.h: where an element lies in its 128-byte block, and E4M3 rounding.
#pragma once

#include <cuda_fp8.h>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/quantise.h"

namespace sigmoe::cuda {

constexpr float kFp8Largest = 448.0f;

// Byte of k in [0, 16) of a BF16 chunk: the tensor core takes bytes 4q .. 4q + 3 of each half from lane q, who holds k 4q ..
// 4q + 3.
__host__ __device__ constexpr int packed_place_bf16(int k) { return k % 4 / 2 * 16 + k / 4 * 4 + k % 2 * 2; }

// Byte offset of 16-byte piece `piece` of row r's block.
__device__ inline int swizzled(int r, int piece) { return r * 128 + (piece ^ (r & 7)) * 16; }

__device__ inline uint32_t pack_fp8(float a, float b) {
  return __nv_cvt_float2_to_fp8x2(float2{a, b}, __NV_SATFINITE, __NV_E4M3);
}

__device__ inline float largest_of(const float4& v) {
  return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}
// Of a warp, on every lane.
__device__ inline float warp_largest(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// scale and its inverse of values up to `largest`.
__device__ inline float2 fp8_scale(float largest) {
  const float most = fmaxf(largest, 1e-10f);
  return {most / kFp8Largest, kFp8Largest / most};
}

// Row r's values of one group of 128 columns, packed by a warp: lane l brings columns 4l .. 4l + 3. `inverse` of the row's
// scale.
__device__ inline void pack_group_fp8(const PackedRows& out, int r, int group, const float4& v, float inverse) {
  // The lane's four k fill one word. It and its bytes lie as in weights (element.cuh): the tensor core pairs what it finds.
  const uint32_t word = pack_fp8(v.x * inverse, v.z * inverse) | pack_fp8(v.y * inverse, v.w * inverse) << 16;
  const int place = fp8_word(threadIdx.x % 32);
  uint8_t* block = out.data + static_cast<int64_t>(group) * out.stride * 128;
  *reinterpret_cast<uint32_t*>(block + swizzled(r, place / 4) + place % 4 * 4) = word;
}
__device__ inline void pack_group_bf16(const PackedRows& out, int r, int group, const float4& v) {
  const int lane = threadIdx.x % 32, piece = lane % 16 / 4 * 2;
  uint8_t* row = out.data + (static_cast<int64_t>(group * 2 + lane / 16) * out.stride + r) * 128 + lane % 4 * 4;
  *reinterpret_cast<uint32_t*>(row + (piece ^ (r & 7)) * 16) = pack_bf16(v.x, v.y);
  *reinterpret_cast<uint32_t*>(row + ((piece + 1) ^ (r & 7)) * 16) = pack_bf16(v.z, v.w);
}

}  // namespace sigmoe::cuda
