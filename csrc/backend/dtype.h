// Element types that tensors and checkpoints use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sigmoe {

enum class DType : uint8_t { f32, bf16, f16, f8_e4m3, i8, u8, i32, i64, boolean };

constexpr size_t dtype_bytes(DType type) {
  switch (type) {
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::i64: return 8;
    default: return 1;
  }
}

constexpr const char* dtype_name(DType type) {
  switch (type) {
    case DType::f32: return "F32";
    case DType::bf16: return "BF16";
    case DType::f16: return "F16";
    case DType::f8_e4m3: return "F8_E4M3";
    case DType::i8: return "I8";
    case DType::u8: return "U8";
    case DType::i32: return "I32";
    case DType::i64: return "I64";
    case DType::boolean: return "BOOL";
  }
  return "?";
}

inline float bf16_to_f32(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// E4M3 (no infinities, NaN = S.1111.111): s eeee mmm with bias 7. The exponent difference to float32 is 120, so
// shifting the magnitude into place and multiplying by 2^120 is exact for normal and denormal codes alike.
inline float f8e4m3_to_f32(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : magnitude << 20;
  float value;
  std::memcpy(&value, &bits, 4);
  if (magnitude != 0x7fu) value *= 0x1p120f;
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace sigmoe
