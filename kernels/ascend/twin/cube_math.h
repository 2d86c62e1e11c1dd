// What the cube side of a core does to bytes: the four data movements and the matrix product, as plain functions over
// arrays. cube.h and fixpipe.h put the AscendC names, the true buffers and the checks around them.
//
// A fractal is 512 bytes: 16 rows of 32 bytes. `lanes` is the number of elements in 32 bytes.
//   L1   NZ  [k / lanes][rows][lanes]
//   L0A  Zz  [m / 16][k / lanes][16][lanes]
//   L0B  Zn  [k / lanes][n / 16][16 of n][lanes of k]
//   L0C  Nz  [n / 16][m rounded to 16][16], 4 bytes an element
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace twin::cube {

constexpr int kFractal = 512;
constexpr int kRow = 32;
constexpr int kSide = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One row of `width` elements into NZ: 32-byte blocks `block_stride` blocks apart; the last is filled up with zeros.
inline void row_to_nz(uint8_t* to, const uint8_t* from, int64_t row_bytes, int64_t block_stride) {
  for (int64_t at = 0; at < row_bytes; at += kRow, to += block_stride * kRow) {
    const int64_t n = row_bytes - at < kRow ? row_bytes - at : kRow;
    std::memcpy(to, from + at, n);
    std::memset(to + n, 0, kRow - n);
  }
}

// A fractal of 2-byte elements, turned.
inline void transpose_fractal(uint8_t* to, const uint8_t* from) {
  uint16_t in[kSide * kSide], out[kSide * kSide];
  std::memcpy(in, from, kFractal);
  for (int row = 0; row < kSide; ++row)
    for (int column = 0; column < kSide; ++column) out[column * kSide + row] = in[row * kSide + column];
  std::memcpy(to, out, kFractal);
}

inline float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float widen(int8_t value) { return value; }
inline float widen(float value) { return value; }

using Lane16 = float __attribute__((vector_size(64)));
using Int16Lanes = int32_t __attribute__((vector_size(64)));

// Several instruction sets in one binary, picked when it starts; sanitizers do not get along with that.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define TWIN_CUBE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TWIN_CUBE_CLONES
#endif

// c (m, 16) += a (m, k) b (k, 16): a's rows are `a_stride` apart, in float32. Sums run along k in order.
TWIN_CUBE_CLONES inline void multiply_column(float* c, const float* a, int64_t a_stride, const float* b, int64_t m, int64_t k) {
  for (int64_t row = 0; row < m; ++row, a += a_stride, c += kSide) {
    Lane16 sum;
    std::memcpy(&sum, c, sizeof sum);
    for (int64_t j = 0; j < k; ++j) {
      Lane16 lane;
      std::memcpy(&lane, b + j * kSide, sizeof lane);
      sum += a[j] * lane;
    }
    std::memcpy(c, &sum, sizeof sum);
  }
}

// The same for INT8 operands held as floats. A float32 counts integers exactly to 2^24, and 512 products of 2^14 stay
// within that, so each piece of k is exact and is added as integers.
TWIN_CUBE_CLONES inline void multiply_column(int32_t* c, const float* a, int64_t a_stride, const float* b, int64_t m,
                                             int64_t k) {
  constexpr int64_t kExact = 512;
  for (int64_t row = 0; row < m; ++row, a += a_stride, c += kSide) {
    Int16Lanes total;
    std::memcpy(&total, c, sizeof total);
    for (int64_t from = 0; from < k; from += kExact) {
      Lane16 sum = {};
      for (int64_t j = from; j < k && j < from + kExact; ++j) {
        Lane16 lane;
        std::memcpy(&lane, b + j * kSide, sizeof lane);
        sum += a[j] * lane;
      }
      total += __builtin_convertvector(sum, Int16Lanes);
    }
    std::memcpy(c, &total, sizeof total);
  }
}

// The product of L0A (m, k) and L0B (k, n) added to L0C (m, n), or stored there. It multiplies whole 32-byte blocks along
// k: a kernel must not count on lanes past k being skipped. m = 1 reads L0A as one vector along k, as the hardware does.
template <typename Sum, typename T>
void multiply(Sum* c, const T* a, const T* b, int64_t m, int64_t n, int64_t k, bool accumulate) {
  constexpr int64_t kLanes = kRow / sizeof(T);
  const int64_t k_blocks = ceil_div(k, kLanes), n_blocks = ceil_div(n, kSide), m_blocks = ceil_div(m, kSide);
  const int64_t k_lanes = k_blocks * kLanes;
  thread_local std::vector<float> wide_a, wide_b;
  wide_a.resize(m * k_lanes);
  wide_b.resize(k_lanes * kSide);
  for (int64_t row = 0; row < m; ++row)
    for (int64_t block = 0; block < k_blocks; ++block) {
      const int64_t at = m == 1 ? block * kLanes : ((row / kSide) * k_blocks + block) * kSide * kLanes + (row % kSide) * kLanes;
      for (int64_t lane = 0; lane < kLanes; ++lane) wide_a[row * k_lanes + block * kLanes + lane] = widen(a[at + lane]);
    }
  for (int64_t column = 0; column < n_blocks; ++column) {
    for (int64_t block = 0; block < k_blocks; ++block) {
      const T* fractal = b + (block * n_blocks + column) * kSide * kLanes;
      float* turned = wide_b.data() + block * kLanes * kSide;
      for (int64_t i = 0; i < kSide; ++i)
        for (int64_t lane = 0; lane < kLanes; ++lane) turned[lane * kSide + i] = widen(fractal[i * kLanes + lane]);
    }
    Sum* sums = c + column * m_blocks * kSide * kSide;
    if (!accumulate) std::memset(sums, 0, m * kSide * sizeof(Sum));
    multiply_column(sums, wide_a.data(), k_lanes, wide_b.data(), m, k_lanes);
  }
}

}  // namespace twin::cube
