// Keys and values in FP8: E4M3 codes and one scale for each token and KV head. Scales are powers of two, so that a code times
// its scale is a BF16 value exactly: E4M3 has the same relative precision all over its range, and every kernel sees the same
// values. Magnitudes above 57,344 are cut to it.
#pragma once

#include <cuda_fp8.h>

#include "cuda/device.cuh"

namespace sigmoe::cuda {

constexpr float kFp8Max = 448.0f;
constexpr uint32_t kMostExponent = 127 + 7;  // of a scale: 2^120 times it must be a BF16 value

// The least power of two that brings `largest` within the codes' range; 1 for a head of zeros.
__device__ inline float fp8_scale(float largest) {
  if (!(largest > 0.0f)) return 1.0f;
  const uint32_t exponent = (__float_as_uint(largest / kFp8Max) + 0x7fffffu) >> 23;
  return __uint_as_float(min(max(exponent, 1u), kMostExponent) << 23);
}

__device__ inline uint8_t to_fp8(float value) { return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3); }
__device__ inline float from_fp8(uint8_t code) {
  __nv_fp8_e4m3 value;
  value.__x = code;
  return static_cast<float>(value);
}

// Four values as codes, in order; magnitudes above 448 are cut to it.
__device__ inline uint32_t pack_e4m3(float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(float2{a, b}, __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(float2{c, d}, __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

// 2^120 times a scale, twice. A code's magnitude shifted to where BF16 has it is its value times 2^-120, denormal or not.
__device__ inline __nv_bfloat162 expanding_scale(float scale) { return __float2bfloat162_rn(scale * 0x1p120f); }

// Four codes times a scale as BF16, in order. A NaN (nothing stores one but a broken sequence) comes out finite.
__device__ inline uint2 expand_four(uint32_t codes, __nv_bfloat162 scale) {
  const auto expand = [&](uint32_t apart) {  // codes in the upper bytes of two halves
    const uint32_t bits = (apart & 0x80008000u) | ((apart >> 4) & 0x07f007f0u);
    const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits), scale);
    return reinterpret_cast<const uint32_t&>(value);
  };
  return {expand(__byte_perm(codes, 0, 0x1404)), expand(__byte_perm(codes, 0, 0x3424))};
}

// Sixteen codes: two vectors of eight values.
__device__ inline void expand_sixteen(const uint4& codes, __nv_bfloat162 scale, uint4 (&values)[2]) {
  const uint2 a = expand_four(codes.x, scale), b = expand_four(codes.y, scale), c = expand_four(codes.z, scale),
              d = expand_four(codes.w, scale);
  values[0] = {a.x, a.y, b.x, b.y};
  values[1] = {c.x, c.y, d.x, d.y};
}

}  // namespace sigmoe::cuda
