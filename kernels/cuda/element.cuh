// Where element (n, k) of a weight lies in its tiles, and its value: the definition of the layout that weight.h describes,
// used by packing and by the float32 mode.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "cuda/weight.h"

namespace sigmoe::cuda {

// Tile and row within it of row n.
__host__ __device__ inline void locate_row(const WeightView& w, int n, int& tile, int& row) {
  if (!w.gate_up) {
    tile = n / 16;
    row = n % 16;
    return;
  }
  const int half = w.n / 2;
  const int column = n < half ? n : n - half;
  tile = column / 8;
  row = column % 8 + (n < half ? 0 : 8);
}

// Row n of the weight that tile row `row` holds; -1 for padding.
__host__ __device__ inline int row_in_tile(const WeightView& w, int tile, int row) {
  if (!w.gate_up) return tile * 16 + row < w.n ? tile * 16 + row : -1;
  const int half = w.n / 2, column = tile * 8 + row % 8;
  if (column >= half) return -1;
  return row < 8 ? column : half + column;
}

// Where word `word` of the 32 of a group of FP8 lies among them: a lane's words of two chunks follow each other.
__host__ __device__ constexpr int fp8_word(int word) { return word / 16 * 16 + word % 8 / 2 * 4 + word / 8 % 2 * 2 + word % 2; }

// k that one word of 4 bytes holds.
__host__ __device__ inline int word_k(WeightFormat format) { return chunk_k(format) / 8; }

// Byte offset of word `word` of row `row`: a row's k run is cut into words of 4 bytes. FP8: 16 words of a row lie together, in
// swizzled pieces of four; others: eight words are a chunk's, two a lane's.
__host__ __device__ inline size_t word_offset(const WeightView& w, int tile, int row, int word) {
  if (w.format == WeightFormat::fp8) {
    const size_t group = static_cast<size_t>(tile) * w.n_groups + word / 32;
    const int place = fp8_word(word % 32), piece = place / 4 % 4 ^ row / 2 % 4;
    return group * 2048 + row / 8 * 1024 + place / 16 * 512 + row % 8 * 64 + piece * 16 + place % 4 * 4;
  }
  const size_t n_chunks = static_cast<size_t>(w.n_groups) * (kGroup / chunk_k(w.format));
  const int lane = row % 8 * 4 + word / 2 % 4;
  return ((tile * n_chunks + word / 8) * 32 + lane) * 16 + word % 2 * 8 + (row >= 8 ? 4 : 0);
}

// Within a word FP8 and INT8 bytes and INT4 nibbles are permuted, so that pairs of neighbours come out of it by one mask:
// bytes (0, 2) and (1, 3), nibbles (0, 4), (1, 5), (2, 6) and (3, 7).
__host__ __device__ inline int byte_place(int k) { return k == 1 ? 2 : k == 2 ? 1 : k; }
__host__ __device__ inline int int4_place(int k) { return k / 2 + k % 2 * 4; }

// Stored value of (n, k), before its scale.
__device__ inline float stored_element(const WeightView& w, int tile, int row, int k) {
  const int i = k % word_k(w.format);
  const auto* word = reinterpret_cast<const uint8_t*>(w.tiles) + word_offset(w, tile, row, k / word_k(w.format));
  switch (w.format) {
    case WeightFormat::f32: return *reinterpret_cast<const float*>(word);
    case WeightFormat::bf16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(word)[i]);
    case WeightFormat::fp8: {
      __nv_fp8_e4m3 value;
      value.__x = word[byte_place(i)];
      return static_cast<float>(value);
    }
    case WeightFormat::int4: {
      const int place = int4_place(i);
      return static_cast<float>(((word[place / 2] >> (place % 2 * 4)) & 15) - 8);
    }
    case WeightFormat::int8: return static_cast<float>(static_cast<int8_t>(word[byte_place(i)]));
  }
  return 0.0f;
}

__device__ inline float element(const WeightView& w, int n, int k) {
  int tile, row;
  locate_row(w, n, tile, row);
  const float value = stored_element(w, tile, row, k);
  return w.scales ? value * w.scales[static_cast<size_t>(n >> w.row_shift) * w.scale_columns + (k >> w.k_shift)] : value;
}

}  // namespace sigmoe::cuda
