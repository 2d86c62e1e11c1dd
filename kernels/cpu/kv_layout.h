// How this backend keeps a (page, KV head) block of the cache: as packed panels (simd.h), so that attention is two calls
// of the same matrix kernels that read weights. P = kPageTokens positions.
//   K  positions are the output rows: [P/16][Dh/2][16 positions][2] BF16, or [P/16][Dh][16 positions] float32
//   V  dims are the output rows:      [Dh/16][P/2][16 dims][2] BF16,      or [Dh/16][P][16 dims] float32
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "cpu/simd.h"

namespace sigmoe {

// Elements before the block of (page, head); a block holds P * Dh elements.
inline int64_t kv_block(const AttentionShape& shape, int64_t page, int head) {
  return (page * shape.n_kv_heads + head) * kPageTokens * shape.head_dim;
}

// Element of one position and dim within a K block of BF16 (k_line = 2) or float32 (k_line = 1).
inline int64_t k_element(const AttentionShape& shape, int k_line, int position, int dim) {
  const int64_t line = static_cast<int64_t>(position / kPanelRows) * (shape.head_dim / k_line) + dim / k_line;
  return (line * kPanelRows + position % kPanelRows) * k_line + dim % k_line;
}

inline int64_t v_element(int k_line, int position, int dim) {
  const int64_t line = static_cast<int64_t>(dim / kPanelRows) * (kPageTokens / k_line) + position / k_line;
  return (line * kPanelRows + dim % kPanelRows) * k_line + position % k_line;
}

// Dh must fill whole panels.
inline void check_head_dim(const AttentionShape& shape) {
  if (shape.head_dim % kPanelRows != 0)
    throw EngineError(ErrorCode::unsupported,
                      "head_dim " + std::to_string(shape.head_dim) + ": the fast CPU kernels need a multiple of " +
                          std::to_string(kPanelRows),
                      "use kernels 'reference'");
}

}  // namespace sigmoe
