// What kernel add_rms_norm is told by value.
#pragma once

#include <cstdint>

namespace sigmoe::ascend {

// A copy of float rows for the cube, which multiplies BF16 or INT8.
enum ShadowKind : int32_t {
  kNoShadow = 0,
  kShadowBf16 = 1,
  kShadowInt8 = 2,  // and one float scale per row: value = code * scale
};

struct AddRmsNormTiling {
  int32_t n_tokens;       // T
  int32_t width;          // D
  int32_t n_slots;        // rows of addend per token; 0: nothing is added
  int32_t rows_per_core;  // a block takes these many consecutive rows
  int32_t n_buffers;      // 1 or 2: of every queue
  int32_t row_bytes;      // of a float row in UB, a multiple of 32
  int32_t has_out;
  int32_t shadow;         // ShadowKind
  int64_t out_stride;     // floats from one row of out to the next
  int64_t shadow_stride;  // elements from one row of the shadow to the next
  float eps;
  float one_over_width;
};

}  // namespace sigmoe::ascend
