// How this backend keeps a (page, KV head) block of the cache: as packed panels (simd.h), so that attention is two calls
// of the same matrix kernels that read weights. P = kPageTokens positions.
// Panels are in groups of four whose lines alternate; the last group of V may have fewer.
//   K  positions are the output rows: [group][Dh/2][panel][16 positions][2] BF16, or [group][Dh][panel][16] float32
//   V  dims are the output rows:      [group][P/2][panel][16 dims][2] BF16,      or [group][P][panel][16] float32
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "cpu/simd.h"

namespace sigmoe {

// Elements before the block of (page, head); a block holds P * Dh elements.
inline int64_t kv_block(const AttentionShape& shape, int64_t page, int head) {
  return (page * shape.n_kv_heads + head) * kPageTokens * shape.head_dim;
}

// Element (row, k) of a block of n_rows output rows and n_k values each, k_line (BF16: 2, float32: 1) of them in a line.
inline int64_t block_element(int n_rows, int n_k, int k_line, int row, int k) {
  const int panel = row / kPanelRows, group = panel / kGroupPanels;
  const int in_group =
      n_rows / kPanelRows - group * kGroupPanels < kGroupPanels ? n_rows / kPanelRows - group * kGroupPanels : kGroupPanels;
  const int64_t line = static_cast<int64_t>(group) * kGroupPanels * (n_k / k_line) +  // of the groups before
                       static_cast<int64_t>(k / k_line) * in_group + panel % kGroupPanels;
  return (line * kPanelRows + row % kPanelRows) * k_line + k % k_line;
}

constexpr int kMostHeadDim = 1024;

// Dh must fill whole panels.
inline void check_head_dim(const AttentionShape& shape) {
  if (shape.head_dim % kPanelRows != 0 || shape.head_dim > kMostHeadDim)
    throw EngineError(ErrorCode::unsupported,
                      "head_dim " + std::to_string(shape.head_dim) + ": the fast CPU kernels need a multiple of " +
                          std::to_string(kPanelRows) + " up to " + std::to_string(kMostHeadDim),
                      "use kernels 'reference'");
}

}  // namespace sigmoe
