// The inner step of the matrix products: one chunk of weights as tensor-core operands, expanded to BF16 in registers, times the
// activations of 8 tokens. Shared by all kernels of few rows, so that both add in one order.
#pragma once

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/gemm.h"

namespace sigmoe::cuda {

template <WeightFormat F>
struct Stream {
  static constexpr int kChunks = kGroup / chunk_k(F);                             // of a group
  static constexpr int kLaneK = chunk_k(F) / 4;                                   // k per lane, row and chunk
  static constexpr int kDepth = kChunks >= 8 ? 1 : kChunks >= 4 ? 2 : 4;          // 8 loads of 16 bytes per lane or more
  static constexpr int kProducts = F == WeightFormat::f32 ? 1 : chunk_k(F) / 16;  // tensor-core steps of a chunk
  static constexpr bool kScaled = F == WeightFormat::fp8 || F == WeightFormat::int8 || F == WeightFormat::int4;
  static constexpr int kFlushes = F == WeightFormat::int4 ? kChunks : 1;  // of the unscaled sums, per group
};

// Which of the 32 vectors of a chunk in memory is the lane's.
template <WeightFormat F>
__device__ inline int vector_of(int lane) {
  return F == WeightFormat::fp8 ? lane ^ lane / 8 : lane;
}

// A lane's 16 bytes of rows 0-7 and of rows 8-15, to its first or second chunk for the tensor core.
__device__ inline uint4 interleaved(const uint4& low, const uint4& high, int second) {
  return second ? uint4{low.z, high.z, low.w, high.w} : uint4{low.x, high.x, low.y, high.y};
}

// Chunk c for the tensor core, of the group's chunks as they lie in memory, a vector of each: four bytes of row g, of row
// g + 8, the next four of both. FP8 in memory has rows 0-7 and rows 8-15 apart.
template <WeightFormat F>
__device__ inline uint4 chunk_of(const uint4 (&stored)[Stream<F>::kChunks], int c) {
  if constexpr (F == WeightFormat::fp8) {
    return interleaved(stored[c / 2], stored[2 + c / 2], c % 2);
  } else {
    return stored[c];
  }
}

// Whether nobody needs stored chunk c any more once chunk c of the tensor core, and all before it, have been made.
template <WeightFormat F>
__device__ constexpr bool frees(int made, int stored) {
  return F == WeightFormat::fp8 ? made % 2 == 1 && stored % 2 == made / 2 : stored == made;
}

// Two E4M3 codes in bytes (0, 2) of `word`, or (1, 3) when `high`, to BF16: the exponent field lands 120 too low, which a
// multiplication by 2^120 puts right, denormal codes included.
template <bool high>
__device__ inline uint32_t fp8_pair(uint32_t word) {
  const uint32_t sign = (high ? word : word << 8) & 0x80008000u;
  const uint32_t magnitude = (high ? word >> 4 : word << 4) & 0x07f007f0u;
  const uint32_t bits = sign | magnitude;
  const __nv_bfloat162 scaled = __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits),
                                        __nv_bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80)));
  return reinterpret_cast<const uint32_t&>(scaled);
}

// Two's complement in bytes (0, 2) of `word`, or (1, 3) when `high`, to BF16: 0x4300 | v is 128 + v for the low seven bits, and
// 0x4300 with the sign bit in place is 128 or 256.
template <bool high>
__device__ inline uint32_t int8_pair(uint32_t word) {
  const uint32_t codes = high ? word >> 8 : word;
  const uint32_t bits = (codes & 0x007f007fu) | 0x43004300u, less = (codes & 0x00800080u) | 0x43004300u;
  const __nv_bfloat162 value =
      __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), reinterpret_cast<const __nv_bfloat162&>(less));
  return reinterpret_cast<const uint32_t&>(value);
}

// Nibbles i and i + 4 of `word`, minus 8, to BF16: 0x4300 | v is 128 + v.
__device__ inline uint32_t int4_pair(uint32_t word, int i) {
  const uint32_t bits = (word >> (4 * i) & 0x000f000fu) | 0x43004300u;
  const __nv_bfloat162 value = __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits),
                                       __nv_bfloat162(__ushort_as_bfloat16(0x4308), __ushort_as_bfloat16(0x4308)));
  return reinterpret_cast<const uint32_t&>(value);
}

// One chunk of weights as tensor-core operands.
template <WeightFormat F>
__device__ inline void unpack(const uint4& w, uint32_t (&a)[Stream<F>::kProducts][4]) {
  if constexpr (F == WeightFormat::fp8) {
    a[0][0] = fp8_pair<false>(w.x), a[0][1] = fp8_pair<false>(w.y), a[0][2] = fp8_pair<true>(w.x),
    a[0][3] = fp8_pair<true>(w.y);
    a[1][0] = fp8_pair<false>(w.z), a[1][1] = fp8_pair<false>(w.w), a[1][2] = fp8_pair<true>(w.z),
    a[1][3] = fp8_pair<true>(w.w);
  } else if constexpr (F == WeightFormat::int8) {
    a[0][0] = int8_pair<false>(w.x), a[0][1] = int8_pair<false>(w.y), a[0][2] = int8_pair<true>(w.x),
    a[0][3] = int8_pair<true>(w.y);
    a[1][0] = int8_pair<false>(w.z), a[1][1] = int8_pair<false>(w.w), a[1][2] = int8_pair<true>(w.z),
    a[1][3] = int8_pair<true>(w.w);
  } else if constexpr (F == WeightFormat::bf16) {
    a[0][0] = w.x, a[0][1] = w.y, a[0][2] = w.z, a[0][3] = w.w;
  } else if constexpr (F == WeightFormat::int4) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = m < 2 ? w.x : w.z, high = m < 2 ? w.y : w.w;
      const int i = m % 2 * 2;
      a[m][0] = int4_pair(low, i), a[m][1] = int4_pair(high, i), a[m][2] = int4_pair(low, i + 1),
      a[m][3] = int4_pair(high, i + 1);
    }
  } else {
    a[0][0] = pack_bf16(__uint_as_float(w.x), __uint_as_float(w.z));
    a[0][1] = pack_bf16(__uint_as_float(w.y), __uint_as_float(w.w));
  }
}

// sum (16 rows, 8 tokens) += the chunk times the lane's kLaneK activations, as BF16 pairs in x.
template <WeightFormat F>
__device__ inline void multiply(float (&sum)[4], const uint32_t (&a)[Stream<F>::kProducts][4], const uint32_t* x) {
  if constexpr (F == WeightFormat::f32)
    mma_bf16_k8(sum, a[0][0], a[0][1], x[0]);
  else
#pragma unroll
    for (int m = 0; m < Stream<F>::kProducts; ++m) mma_bf16(sum, a[m][0], a[m][1], a[m][2], a[m][3], x[2 * m], x[2 * m + 1]);
}

// N activations from `row` + k as BF16 pairs; `whole`: aligned and below k_end, else elements at or past k_end are zero.
template <int N>
__device__ inline void load_x(const __nv_bfloat16* row, int k, int k_end, bool whole, uint32_t* x) {
  if (whole) {
    if constexpr (N == 2) {
      x[0] = *reinterpret_cast<const uint32_t*>(row + k);
    } else if constexpr (N == 4) {
      const uint2 v = *reinterpret_cast<const uint2*>(row + k);
      x[0] = v.x, x[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < N / 8; ++i) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + k + 8 * i);
        x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
      }
    }
  } else {
    const auto* bits = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
    for (int i = 0; i < N / 2; ++i)
      x[i] = (k + 2 * i < k_end ? bits[k + 2 * i] : 0u) |
             (k + 2 * i + 1 < k_end ? static_cast<uint32_t>(bits[k + 2 * i + 1]) << 16 : 0u);
  }
}

}  // namespace sigmoe::cuda
