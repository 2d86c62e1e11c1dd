// Device side of quantise.h: where an element lies in its 128-byte block, and E4M3 rounding.
#pragma once

#include <cuda_fp8.h>

#include "cuda/device.cuh"
#include "cuda/quantise.h"

namespace sigmoe::cuda {

constexpr float kFp8Largest = 448.0f;

// Byte of k in [0, 32) of a stored FP8 chunk, or of k in [0, 16) of a BF16 one: the tensor core takes bytes 4q .. 4q + 3 of
// each half from lane q, who holds k 8q .. 8q + 7 (BF16: 4q .. 4q + 3), and weights swap FP8's middle bytes (element.cuh).
__host__ __device__ constexpr int packed_place_fp8(int k) {
  const int i = k % 4;
  return k % 8 / 4 * 16 + k / 8 * 4 + (i == 1 ? 2 : i == 2 ? 1 : i);
}
__host__ __device__ constexpr int packed_place_bf16(int k) { return k % 4 / 2 * 16 + k / 4 * 4 + k % 2 * 2; }

// Byte offset of 16-byte piece `piece` of row r's block.
__device__ inline int swizzled(int r, int piece) { return r * 128 + (piece ^ (r & 7)) * 16; }

__device__ inline uint32_t pack_fp8(float a, float b) {
  return __nv_cvt_float2_to_fp8x2(float2{a, b}, __NV_SATFINITE, __NV_E4M3);
}

// scale and its inverse of values up to `largest`.
__device__ inline float2 fp8_scale(float largest) {
  const float most = fmaxf(largest, 1e-10f);
  return {most / kFp8Largest, kFp8Largest / most};
}

}  // namespace sigmoe::cuda
