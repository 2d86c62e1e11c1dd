// The types, macros and enumerations of AscendC that our kernels use, for g++: half and bfloat16_t in software, qualifiers
// that mean nothing on a CPU, and the names of memories, pipes and events.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define __global__
#define __aicore__
#define __gm__
#define __ubuf__
#define __cbuf__
#define GM_ADDR ::std::uint8_t*

// What a scalar unit can hold of the 16-bit floats: bits, and explicit conversions. No arithmetic: kernels have none either.
class half {
 public:
  half() = default;
  explicit half(float value);
  explicit operator float() const;
  static half from_bits(std::uint16_t bits) {
    half value;
    value.bits_ = bits;
    return value;
  }
  std::uint16_t bits() const { return bits_; }

 private:
  std::uint16_t bits_ = 0;
};

class bfloat16_t {
 public:
  bfloat16_t() = default;
  explicit bfloat16_t(float value);
  explicit operator float() const;
  static bfloat16_t from_bits(std::uint16_t bits) {
    bfloat16_t value;
    value.bits_ = bits;
    return value;
  }
  std::uint16_t bits() const { return bits_; }

 private:
  std::uint16_t bits_ = 0;
};

enum pipe_t : std::uint8_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };
enum event_t : std::uint8_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

namespace twin {

constexpr int kPipes = PIPE_ALL;

inline const char* name_of(pipe_t pipe) {
  constexpr const char* kNames[] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX", "ALL"};
  return kNames[pipe];
}

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float bf16_to_float(std::uint16_t bits) { return float_of(static_cast<std::uint32_t>(bits) << 16); }

inline std::uint16_t float_to_bf16(float value) {  // to nearest, ties to even
  const std::uint32_t bits = bits_of(value);
  if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | magnitude << 13);
  const float scaled = float_of(magnitude << 13) * 0x1p112f;  // exact: only the exponent moves, subnormals included
  return float_of(bits_of(scaled) | sign);
}

inline std::uint16_t float_to_half(float value) {  // to nearest, ties to even; too large is infinite
  const std::uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000;
  const float magnitude = float_of(bits & 0x7fffffff);
  if (value != value) return static_cast<std::uint16_t>(sign | 0x7e00);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (magnitude < 0x1p-14f)  // subnormal: adding 0.5 leaves the multiple of 2^-24 in the low bits
    return static_cast<std::uint16_t>(sign | (bits_of(magnitude + 0.5f) - 0x3f000000));
  const std::uint32_t m = bits & 0x7fffffff;
  return static_cast<std::uint16_t>(sign | ((m - 0x38000000 + 0xfff + (m >> 13 & 1)) >> 13));
}

}  // namespace twin

inline half::half(float value) : bits_(twin::float_to_half(value)) {}
inline half::operator float() const { return twin::half_to_float(bits_); }
inline bfloat16_t::bfloat16_t(float value) : bits_(twin::float_to_bf16(value)) {}
inline bfloat16_t::operator float() const { return twin::bf16_to_float(bits_); }

namespace AscendC {

using TEventID = std::int8_t;

enum class TPosition : std::uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, C2PIPE2GM, MAX };
using QuePosition = TPosition;

// Source pipe and destination pipe, as src * 8 + dst.
enum class HardEvent : std::uint8_t {
#define TWIN_EVENT(src, dst) src##_##dst = PIPE_##src * 8 + PIPE_##dst
  TWIN_EVENT(MTE2, MTE1),
  TWIN_EVENT(MTE1, MTE2),
  TWIN_EVENT(MTE1, M),
  TWIN_EVENT(M, MTE1),
  TWIN_EVENT(MTE2, V),
  TWIN_EVENT(V, MTE2),
  TWIN_EVENT(MTE3, V),
  TWIN_EVENT(V, MTE3),
  TWIN_EVENT(MTE3, MTE2),
  TWIN_EVENT(MTE2, MTE3),
  TWIN_EVENT(MTE3, MTE1),
  TWIN_EVENT(MTE1, MTE3),
  TWIN_EVENT(MTE2, M),
  TWIN_EVENT(M, MTE2),
  TWIN_EVENT(V, V),
  TWIN_EVENT(M, FIX),
  TWIN_EVENT(FIX, M),
  TWIN_EVENT(MTE1, FIX),
  TWIN_EVENT(FIX, MTE1),
  TWIN_EVENT(MTE2, FIX),
  TWIN_EVENT(FIX, MTE2),
  TWIN_EVENT(FIX, MTE3),
  TWIN_EVENT(S, V),
  TWIN_EVENT(V, S),
  TWIN_EVENT(S, MTE2),
  TWIN_EVENT(MTE2, S),
  TWIN_EVENT(S, MTE3),
  TWIN_EVENT(MTE3, S),
  TWIN_EVENT(M, S),
  TWIN_EVENT(S, M),
  TWIN_EVENT(FIX, S),
  TWIN_EVENT(S, FIX),
  TWIN_EVENT(MTE1, S),
  TWIN_EVENT(S, MTE1),
#undef TWIN_EVENT
};

enum class RoundMode : std::uint8_t { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };
enum class CMPMODE : std::uint8_t { LT, GT, EQ, LE, GE, NE };
enum class SELMODE : std::uint8_t { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };
enum class ReduceOrder : std::uint8_t { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class CacheLine : std::uint8_t { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class DcciDst : std::uint8_t { CACHELINE_ALL, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };

}  // namespace AscendC
