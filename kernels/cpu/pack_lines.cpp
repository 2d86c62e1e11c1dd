// Checkpoint rows to packed lines: a transpose of dwords, 16 rows by 64 bytes at a time, with the small shuffle that
// simd.h describes: of nibbles in a dword (INT4), or of words in a quarter of a line (FP8, INT8). Four-lane vectors reach
// memory speed, given byte shuffles (SSSE3, every x86-64 since 2006-2011) and stores that do not read the line they replace.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/packed_weight.h"

namespace sigmoe {
namespace {

using Vec = uint32_t __attribute__((vector_size(16)));  // four dwords

// Even nibbles to the low half of a dword, odd ones to the high half.
Vec split_nibbles(Vec x) {
  const auto gather = [](Vec nibbles) {
    nibbles = (nibbles | nibbles >> 4) & 0x00ff00ffu;
    return (nibbles | nibbles >> 8) & 0x0000ffffu;
  };
  return gather(x & 0x0f0f0f0fu) | gather((x >> 4) & 0x0f0f0f0fu) << 16;
}

// The low words of four dwords, then the high words.
Vec split_words(Vec x) {
  using Words = uint16_t __attribute__((vector_size(16)));
  return (Vec)__builtin_shufflevector((Words)x, (Words)x, 0, 2, 4, 6, 1, 3, 5, 7);
}

// Elements of a byte: four rows share a quarter of a line.
constexpr bool has_quarters(LineFormat format) { return format == LineFormat::fp8 || format == LineFormat::int8; }

// Nonzero where a dword holds a code that stands for NaN or infinity: all exponent bits set (FP8: all magnitude bits).
Vec not_finite(LineFormat format, Vec x) {
  switch (format) {
    case LineFormat::f32: return ((x & 0x7f800000u) + 0x00800000u) & 0x80000000u;
    case LineFormat::bf16: return ((x & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
    case LineFormat::fp8: return ((x & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
    case LineFormat::int4:
    case LineFormat::int8: return Vec{};
  }
  return Vec{};
}

// 16 rows of 64 bytes, `stride` apart, to 16 lines; ORs not_finite() of all dwords into `bad`.
template <LineFormat F>
void transpose_block(const std::byte* source, size_t stride, uint8_t* lines, int64_t line_stride, Vec& bad) {
  for (int row = 0; row < kPanelRows; row += 4)
    for (int column = 0; column < 64; column += 16) {
      Vec in[4];
      for (int i = 0; i < 4; ++i) {
        std::memcpy(&in[i], source + (row + i) * stride + column, 16);
        bad |= not_finite(F, in[i]);
        if (F == LineFormat::int4) in[i] = split_nibbles(in[i]);
      }
      const Vec low01 = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5),
                high01 = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
      const Vec low23 = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5),
                high23 = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
      const Vec out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                          __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                          __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) {
        const Vec quarter = has_quarters(F) ? split_words(out[i]) : out[i];
        std::memcpy(lines + (column / 4 + i) * line_stride + row * 4, &quarter, 16);
      }
    }
}

// A whole aligned line past the caches: it is read next when the model runs, and fetching what it replaces would cost as
// much as writing it.
inline void stream_line(uint8_t* to, const uint8_t* from) {
#if defined(__x86_64__)
  for (int i = 0; i < 64; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
#else
  std::memcpy(to, from, 64);
#endif
}

// Orders streamed lines before whatever tells other threads of them.
inline void end_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// What rows [lane, lane + rows) of a panel have in one line; other threads may be writing the rest.
template <LineFormat F>
void copy_lanes(const uint8_t* from, int lane, int rows, uint8_t* to) {
  if (!has_quarters(F)) {
    std::memcpy(to + lane * 4, from + lane * 4, rows * 4);
    return;
  }
  for (int r = lane; r < lane + rows; ++r) {
    const int at = r / 4 * 16 + r % 4 * 2;
    std::memcpy(to + at, from + at, 2);
    std::memcpy(to + at + 8, from + at + 8, 2);
  }
}

template <LineFormat F>
bool pack(const std::byte* source, size_t stride, int64_t n_bytes, int lane, int rows, uint8_t* lines, int64_t line_stride) {
  Vec bad{};
  int64_t at = 0;
  alignas(64) uint8_t block[16 * 64];
  if (rows == kPanelRows) {
    for (; at + 64 <= n_bytes; at += 64) {
      transpose_block<F>(source + at, stride, block, 64, bad);
      for (int line = 0; line < 16; ++line) stream_line(lines + (at / 4 + line) * line_stride, block + line * 64);
    }
    end_stream();
  }
  for (; at < n_bytes; at += 64) {  // a part of a panel, or the end of the rows: through zero-padded copies
    std::byte padded[kPanelRows][64] = {};
    const int64_t n = std::min<int64_t>(n_bytes - at, 64);
    for (int r = 0; r < rows; ++r) std::memcpy(padded[lane + r], source + r * stride + at, n);
    transpose_block<F>(padded[0], 64, block, 64, bad);
    for (int64_t line = 0; line < (n + 3) / 4; ++line)
      copy_lanes<F>(block + line * 64, lane, rows, lines + (at / 4 + line) * line_stride);
  }
  return (bad[0] | bad[1] | bad[2] | bad[3]) == 0;
}

inline bool pack_any(LineFormat format, const std::byte* source, size_t stride, int64_t n_bytes, int lane, int rows,
                     uint8_t* lines, int64_t line_stride) {
  switch (format) {
    case LineFormat::f32: return pack<LineFormat::f32>(source, stride, n_bytes, lane, rows, lines, line_stride);
    case LineFormat::bf16: return pack<LineFormat::bf16>(source, stride, n_bytes, lane, rows, lines, line_stride);
    case LineFormat::fp8: return pack<LineFormat::fp8>(source, stride, n_bytes, lane, rows, lines, line_stride);
    case LineFormat::int4: return pack<LineFormat::int4>(source, stride, n_bytes, lane, rows, lines, line_stride);
    case LineFormat::int8: return pack<LineFormat::int8>(source, stride, n_bytes, lane, rows, lines, line_stride);
  }
  return false;
}

#if defined(__x86_64__)
// flatten: the vectors above become byte shuffles only where they are inlined here.
[[gnu::target("ssse3"), gnu::flatten]] bool pack_ssse3(LineFormat format, const std::byte* source, size_t stride,
                                                       int64_t n_bytes, int lane, int rows, uint8_t* lines,
                                                       int64_t line_stride) {
  return pack_any(format, source, stride, n_bytes, lane, rows, lines, line_stride);
}
#endif

}  // namespace

bool pack_lines(LineFormat format, const std::byte* source, size_t stride_bytes, int64_t n_bytes, int lane, int rows,
                uint8_t* lines, int64_t line_stride) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("ssse3")) return pack_ssse3(format, source, stride_bytes, n_bytes, lane, rows, lines, line_stride);
#endif
  return pack_any(format, source, stride_bytes, n_bytes, lane, rows, lines, line_stride);
}

}  // namespace sigmoe
