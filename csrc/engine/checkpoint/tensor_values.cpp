#include "engine/checkpoint/tensor_values.h"

#include <cmath>
#include <cstring>

namespace sigmoe {

[[noreturn]] void bad_value(const std::string& name) {
  throw EngineError(ErrorCode::bad_checkpoint, name + " holds a NaN or an infinity",
                    "the file is damaged; fetch it again and compare its checksum");
}

void to_f32(const TensorEntry& entry, const std::byte* data, int64_t n, float* out) {
  if (entry.dtype == DType::f32)
    std::memcpy(out, data, static_cast<size_t>(n) * 4);
  else
    for (int64_t i = 0; i < n; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data + 2 * i, 2);
      out[i] = bf16_to_f32(bits);
    }
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) finite &= std::isfinite(out[i]);
  if (!finite) bad_value(entry.name);
}

// Adding one to an exponent of all ones carries into the sign bit, which the mask has cleared: eight bytes are tested at a time
// without a branch.
bool all_finite(DType dtype, const std::byte* data, size_t bytes) {
  const uint64_t exponents = dtype == DType::f32 ? 0x7f8000007f800000u : 0x7f807f807f807f80u;
  const uint64_t ones = dtype == DType::f32 ? 0x0080000000800000u : 0x0080008000800080u;
  const uint64_t signs = dtype == DType::f32 ? 0x8000000080000000u : 0x8000800080008000u;
  uint64_t carried = 0;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    carried |= (word & exponents) + ones;
  }
  if (const size_t rest = bytes % 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + bytes - rest, rest);
    carried |= (word & exponents) + ones;
  }
  return (carried & signs) == 0;
}

}  // namespace sigmoe
