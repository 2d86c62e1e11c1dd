// How a weight W (n, k) of y = x W^T lies in device memory, for the host that packs it and the kernels that read it.
//
//   [n / 16][k / lanes][16][lanes]      lanes = 32 bytes of k: 16 BF16, 32 INT8, 8 float32
//
// A fractal [16][lanes] is 512 bytes: 16 output channels, each with its own 32 bytes along k. That is what L0B holds, so
// a fractal travels GM -> L1 -> L0B as it is, without a transpose in any type. The 16 rows of a group and any range of k
// are one contiguous run, so a tile of any width is one DataCopy with one block per group. n and k are padded with zeros.
#pragma once

#include <cstdint>

#ifdef __aicore__
#define SIGMOE_AICORE __aicore__
#else
#define SIGMOE_AICORE
#endif

namespace sigmoe::ascend {

constexpr int64_t kGroupRows = 16;      // output channels of a fractal
constexpr int64_t kBlockBytes = 32;     // bytes along k of a fractal
constexpr int64_t kFractalBytes = 512;  // 16 rows of 32 bytes

SIGMOE_AICORE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SIGMOE_AICORE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Elements in 32 bytes of k.
SIGMOE_AICORE constexpr int64_t block_lanes(int64_t element_bytes) { return kBlockBytes / element_bytes; }

// Elements from one row of activations (bf16 or int8 copies) to the next: rows start at 32-byte boundaries.
SIGMOE_AICORE constexpr int64_t row_pitch(int64_t width, int64_t element_bytes) {
  return round_up(width, block_lanes(element_bytes));
}

struct WeightLayout {
  int64_t n = 0;
  int64_t k = 0;
  int64_t element_bytes = 2;

  SIGMOE_AICORE constexpr int64_t lanes() const { return block_lanes(element_bytes); }
  SIGMOE_AICORE constexpr int64_t groups() const { return ceil_div(n, kGroupRows); }  // of 16 output channels
  SIGMOE_AICORE constexpr int64_t blocks() const { return ceil_div(k, lanes()); }     // of 32 bytes along k
  SIGMOE_AICORE constexpr int64_t elements() const { return groups() * blocks() * kGroupRows * lanes(); }
  SIGMOE_AICORE constexpr int64_t bytes() const { return elements() * element_bytes; }

  // Element of the first lane of (group, block).
  SIGMOE_AICORE constexpr int64_t fractal(int64_t group, int64_t block) const {
    return (group * blocks() + block) * kGroupRows * lanes();
  }
  // Element of W[row, column].
  SIGMOE_AICORE constexpr int64_t index(int64_t row, int64_t column) const {
    return fractal(row / kGroupRows, column / lanes()) + (row % kGroupRows) * lanes() + column % lanes();
  }
};

}  // namespace sigmoe::ascend
