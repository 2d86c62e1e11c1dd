// Products of FP8 weights and BF16 activations by FP16 tensor cores: E4M3 becomes FP16 in one instruction a pair, BF16 in four,
// and kernels that expand weights in registers are bound by those. Activations are FP16 times a power of two wherever that is
// exact, which is wherever the smallest of 128 is more than 2^-31 of the largest; the sums are then the same, times that power.
#pragma once

#include <cuda_fp16.h>

#include "cuda/device.cuh"

namespace sigmoe::cuda::few {

__device__ inline float or_one(float x) { return x == 0.0f ? 1.0f : x; }

// Two E4M3 codes each, of the low and the high half, to FP16: exactly.
__device__ inline void half_pairs(uint32_t codes, uint32_t& low, uint32_t& high) {
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.rn.f16x2.e4m3x2 %0, l;\ncvt.rn.f16x2.e4m3x2 %1, h;\n}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
}
// One chunk of weights as tensor-core operands; unpack()'s in the same places, of pairs of neighbouring codes.
__device__ inline void half_chunk(const uint4& w, uint32_t (&a)[2][4]) {
  half_pairs(w.x, a[0][0], a[0][2]), half_pairs(w.z, a[0][1], a[0][3]);
  half_pairs(w.y, a[1][0], a[1][2]), half_pairs(w.w, a[1][1], a[1][3]);
}
__device__ inline void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A group's activations, N vectors to each of 16 / N lanes next to each other, from BF16 to FP16: times a power of two that
// brings the largest near FP16's largest, in the order in which codes become pairs. Nothing changed and 0 where that is not
// exact; else what undoes the power.
template <int N>
__device__ inline float halve(uint4 (&x)[N]) {
  constexpr int kLanes = 16 / N;
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < N; ++i)
    for (const uint32_t word : {x[i].x, x[i].y, x[i].z, x[i].w}) most = max(most, max(word << 16 & 0x7fff0000u, word & 0x7fff0000u));
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) most = max(most, __shfl_xor_sync(kAllLanes, most, step));
  const int exponent = static_cast<int>(most >> 23) - 127;
  bool exact = exponent >= -60 && exponent <= 60;
  const float factor = exact ? __uint_as_float(static_cast<uint32_t>(127 + 14 - exponent) << 23) : 1.0f;
  uint4 halves[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const auto pair = [&](float low, float high) {
      low *= factor, high *= factor;
      const __half2 two = __floats2half2_rn(low, high);
      exact = exact && __low2float(two) == low && __high2float(two) == high;
      return reinterpret_cast<const uint32_t&>(two);
    };
    halves[i] = {pair(bf16_low(x[i].x), bf16_low(x[i].y)), pair(bf16_high(x[i].x), bf16_high(x[i].y)),
                 pair(bf16_low(x[i].z), bf16_low(x[i].w)), pair(bf16_high(x[i].z), bf16_high(x[i].w))};
  }
  const unsigned lanes = ((1u << kLanes) - 1) << (threadIdx.x % 32 / kLanes * kLanes);
  if ((__ballot_sync(kAllLanes, exact) & lanes) != lanes) return 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = halves[i];
  return 1.0f / factor;
}

}  // namespace sigmoe::cuda::few
