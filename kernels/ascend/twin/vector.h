// Element-wise vector instructions (pipe V): unary, binary, with a scalar, and those that fill.
#pragma once

#include "ascend/twin/lanes.h"

namespace twin {

template <typename T, typename Op>
void unary(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, std::int64_t n, Op op,
           Where where, bool reads_dst = false) {
  if (checking()) {
    Instruction i(name, PIPE_V, where);
    read_count<T>(i, src.local(), n);
    i.no_partial_overlap(dst.local(), n * sizeof(T), src.local(), n * sizeof(T));
    if (reads_dst) read_count<T>(i, dst.local(), n);
    write_count<T>(i, dst.local(), n);
  }
  if (reads_dst)
    map_count(n, op, dst.data(), src.data(), dst.data());
  else
    map_count(
        n, [op](auto a) { return op(a, decltype(a){}); }, dst.data(), src.data());
}

template <typename T, typename Op>
void unary(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, Mask mask, int repeats,
           const AscendC::UnaryRepeatParams& p, Op op, Where where, bool reads_dst = false) {
  const Walk d{p.dstBlkStride, p.dstRepStride}, s{p.srcBlkStride, p.srcRepStride};
  if (checking()) {
    Instruction i(name, PIPE_V, where);
    require_mask<T>(i, mask);
    read_lanes<T>(i, src.local(), s, mask, repeats);
    if (reads_dst) read_lanes<T>(i, dst.local(), d, mask, repeats);
    write_lanes<T>(i, dst.local(), d, mask, repeats);
  }
  for (int r = 0; r < repeats; ++r)
    for (int l = 0; l < static_cast<int>(256 / sizeof(T)); ++l)
      if (mask[l]) {
        T& to = *reinterpret_cast<T*>(dst.local().at + lane_offset<T>(d, r, l));
        to = lane<T>(op, *reinterpret_cast<const T*>(src.local().at + lane_offset<T>(s, r, l)), to);
      }
}

template <typename T, typename Op>
void binary(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& a,
            const AscendC::LocalTensor<T>& b, std::int64_t n, Op op, Where where, bool reads_dst = false) {
  if (checking()) {
    Instruction i(name, PIPE_V, where);
    read_count<T>(i, a.local(), n);
    read_count<T>(i, b.local(), n);
    i.no_partial_overlap(dst.local(), n * sizeof(T), a.local(), n * sizeof(T));
    i.no_partial_overlap(dst.local(), n * sizeof(T), b.local(), n * sizeof(T));
    if (reads_dst) read_count<T>(i, dst.local(), n);
    write_count<T>(i, dst.local(), n);
  }
  if (reads_dst)
    map_count(n, op, dst.data(), a.data(), b.data(), dst.data());
  else
    map_count(
        n, [op](auto x, auto y) { return op(x, y, decltype(x){}); }, dst.data(), a.data(), b.data());
}

template <typename T, typename Op>
void binary(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& a,
            const AscendC::LocalTensor<T>& b, Mask mask, int repeats, const AscendC::BinaryRepeatParams& p, Op op, Where where,
            bool reads_dst = false) {
  const Walk d{p.dstBlkStride, p.dstRepStride}, s0{p.src0BlkStride, p.src0RepStride}, s1{p.src1BlkStride, p.src1RepStride};
  if (checking()) {
    Instruction i(name, PIPE_V, where);
    require_mask<T>(i, mask);
    read_lanes<T>(i, a.local(), s0, mask, repeats);
    read_lanes<T>(i, b.local(), s1, mask, repeats);
    if (reads_dst) read_lanes<T>(i, dst.local(), d, mask, repeats);
    write_lanes<T>(i, dst.local(), d, mask, repeats);
  }
  for (int r = 0; r < repeats; ++r)
    for (int l = 0; l < static_cast<int>(256 / sizeof(T)); ++l)
      if (mask[l]) {
        T& to = *reinterpret_cast<T*>(dst.local().at + lane_offset<T>(d, r, l));
        to = lane<T>(op, *reinterpret_cast<const T*>(a.local().at + lane_offset<T>(s0, r, l)),
                     *reinterpret_cast<const T*>(b.local().at + lane_offset<T>(s1, r, l)), to);
      }
}

// What the vector unit makes of an approximate reciprocal: 11 bits.
inline float coarse(float value) { return float_of(bits_of(value) & ~0xfffu); }

}  // namespace twin

namespace AscendC {

// The three forms of an instruction: by count, by a number of leading lanes and repeats, by a bit mask and repeats.
#define TWIN_BINARY(Name, reads_dst, op, ...)                                                                                 \
  template <typename T>                                                                                                       \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,          \
                                  const std::int32_t& n, TWIN_WHERE) {                                                        \
    twin::binary(#Name, dst, src0, src1, n, op, where, reads_dst);                                                            \
  }                                                                                                                           \
  template <typename T>                                                                                                       \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,          \
                                  std::uint64_t mask, std::uint8_t repeats, const BinaryRepeatParams& params, TWIN_WHERE) {   \
    twin::binary(#Name, dst, src0, src1, twin::Mask::first(mask), repeats, params, op, where, reads_dst);                     \
  }                                                                                                                           \
  template <typename T>                                                                                                       \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,          \
                                  std::uint64_t mask[], std::uint8_t repeats, const BinaryRepeatParams& params, TWIN_WHERE) { \
    twin::binary(#Name, dst, src0, src1, twin::Mask::bits(mask), repeats, params, op, where, reads_dst);                      \
  }

#define TWIN_UNARY(Name, op, ...)                                                                                            \
  template <typename T>                                                                                                      \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t& n, TWIN_WHERE) { \
    twin::unary(#Name, dst, src, n, op, where);                                                                              \
  }                                                                                                                          \
  template <typename T>                                                                                                      \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, std::uint64_t mask,                  \
                                  std::uint8_t repeats, const UnaryRepeatParams& params, TWIN_WHERE) {                       \
    twin::unary(#Name, dst, src, twin::Mask::first(mask), repeats, params, op, where);                                       \
  }                                                                                                                          \
  template <typename T>                                                                                                      \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, std::uint64_t mask[],                \
                                  std::uint8_t repeats, const UnaryRepeatParams& params, TWIN_WHERE) {                       \
    twin::unary(#Name, dst, src, twin::Mask::bits(mask), repeats, params, op, where);                                        \
  }

#define TWIN_SCALAR(Name, reads_dst, op, ...)                                                                                  \
  template <typename T>                                                                                                        \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar,                       \
                                  const std::int32_t& n, TWIN_WHERE) {                                                         \
    const auto s = twin::plain(scalar);                                                                                        \
    twin::unary(#Name, dst, src, n, op, where, reads_dst);                                                                     \
  }                                                                                                                            \
  template <typename T>                                                                                                        \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, std::uint64_t mask,   \
                                  std::uint8_t repeats, const UnaryRepeatParams& params, TWIN_WHERE) {                         \
    const auto s = twin::plain(scalar);                                                                                        \
    twin::unary(#Name, dst, src, twin::Mask::first(mask), repeats, params, op, where, reads_dst);                              \
  }                                                                                                                            \
  template <typename T>                                                                                                        \
  twin::Only<T, __VA_ARGS__> Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, std::uint64_t mask[], \
                                  std::uint8_t repeats, const UnaryRepeatParams& params, TWIN_WHERE) {                         \
    const auto s = twin::plain(scalar);                                                                                        \
    twin::unary(#Name, dst, src, twin::Mask::bits(mask), repeats, params, op, where, reads_dst);                               \
  }

TWIN_BINARY(
    Add, false, [](auto a, auto b, auto) { return a + b; }, half, float, std::int16_t, std::int32_t)
TWIN_BINARY(
    Sub, false, [](auto a, auto b, auto) { return a - b; }, half, float, std::int16_t, std::int32_t)
TWIN_BINARY(
    Mul, false, [](auto a, auto b, auto) { return a * b; }, half, float, std::int16_t, std::int32_t)
TWIN_BINARY(
    Div, false, [](auto a, auto b, auto) { return a / b; }, half, float)
TWIN_BINARY(
    Max, false, [](auto a, auto b, auto) { return a > b ? a : b; }, half, float, std::int16_t, std::int32_t)
TWIN_BINARY(
    Min, false, [](auto a, auto b, auto) { return a < b ? a : b; }, half, float, std::int16_t, std::int32_t)
TWIN_BINARY(
    And, false, [](auto a, auto b, auto) { return a & b; }, std::int16_t, std::uint16_t)
TWIN_BINARY(
    Or, false, [](auto a, auto b, auto) { return a | b; }, std::int16_t, std::uint16_t)
TWIN_BINARY(
    MulAddDst, true, [](auto a, auto b, auto d) { return a * b + d; }, half, float)

TWIN_UNARY(
    Exp, [](auto a, auto) { return std::exp(a); }, half, float)
TWIN_UNARY(
    Ln, [](auto a, auto) { return std::log(a); }, half, float)
TWIN_UNARY(
    Abs, [](auto a, auto) { return std::fabs(a); }, half, float)
TWIN_UNARY(
    Sqrt, [](auto a, auto) { return std::sqrt(a); }, half, float)
TWIN_UNARY(
    Rsqrt, [](auto a, auto) { return twin::coarse(1.0f / std::sqrt(a)); }, half, float)
TWIN_UNARY(
    Reciprocal, [](auto a, auto) { return twin::coarse(1.0f / a); }, half, float)
TWIN_UNARY(
    Relu, [](auto a, auto) { return a > 0 ? a : decltype(a){}; }, half, float, std::int32_t)
TWIN_UNARY(
    Not, [](auto a, auto) { return ~a; }, std::int16_t, std::uint16_t)

}  // namespace AscendC

namespace twin {
template <typename T>
auto plain(T value) {  // a scalar operand as its lane computes with it
  if constexpr (std::is_same_v<T, half>)
    return static_cast<float>(value);
  else
    return value;
}
}  // namespace twin

namespace AscendC {

TWIN_SCALAR(
    Adds, false, [s](auto a, auto) { return a + s; }, half, float, std::int16_t, std::int32_t)
TWIN_SCALAR(
    Muls, false, [s](auto a, auto) { return a * s; }, half, float, std::int16_t, std::int32_t)
TWIN_SCALAR(
    Maxs, false, [s](auto a, auto) { return a > s ? a : s; }, half, float, std::int16_t, std::int32_t)
TWIN_SCALAR(
    Mins, false, [s](auto a, auto) { return a < s ? a : s; }, half, float, std::int16_t, std::int32_t)
TWIN_SCALAR(
    Axpy, true, [s](auto a, auto d) { return a * s + d; }, half, float)
TWIN_SCALAR(
    ShiftLeft, false, [s](auto a, auto) { return a << s; }, std::int16_t, std::uint16_t, std::int32_t, std::uint32_t)
TWIN_SCALAR(
    ShiftRight, false, [s](auto a, auto) { return a >> s; }, std::int16_t, std::uint16_t, std::int32_t, std::uint32_t)

#undef TWIN_BINARY
#undef TWIN_UNARY
#undef TWIN_SCALAR

template <typename T>
twin::Only<T, half, bfloat16_t, float, std::int16_t, std::uint16_t, std::int32_t, std::uint32_t> Duplicate(
    const LocalTensor<T>& dst, const T& value, const std::int32_t& n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("Duplicate", PIPE_V, where);
    twin::write_count<T>(i, dst.local(), n);
  }
  std::fill_n(dst.data(), n, value);
}

template <typename T>
void twin_duplicate(const LocalTensor<T>& dst, T value, twin::Mask lanes, std::uint8_t repeats, twin::Walk d,
                    twin::Where where) {
  if (twin::checking()) {
    twin::Instruction i("Duplicate", PIPE_V, where);
    twin::require_mask<T>(i, lanes);
    twin::write_lanes<T>(i, dst.local(), d, lanes, repeats);
  }
  twin::each_piece<T>(d, lanes, repeats, 256 / sizeof(T), [&](std::size_t offset, std::size_t bytes) {
    std::fill_n(reinterpret_cast<T*>(dst.local().at + offset), bytes / sizeof(T), value);
  });
}

template <typename T>
twin::Only<T, half, bfloat16_t, float, std::int16_t, std::uint16_t, std::int32_t, std::uint32_t> Duplicate(
    const LocalTensor<T>& dst, const T& value, std::uint64_t mask, std::uint8_t repeats, std::uint16_t block_stride,
    std::uint8_t repeat_stride, TWIN_WHERE) {
  twin_duplicate<T>(dst, value, twin::Mask::first(mask), repeats, {block_stride, repeat_stride}, where);
}

template <typename T>
twin::Only<T, half, bfloat16_t, float, std::int16_t, std::uint16_t, std::int32_t, std::uint32_t> Duplicate(
    const LocalTensor<T>& dst, const T& value, std::uint64_t mask[], std::uint8_t repeats, std::uint16_t block_stride,
    std::uint8_t repeat_stride, TWIN_WHERE) {
  twin_duplicate<T>(dst, value, twin::Mask::bits(mask), repeats, {block_stride, repeat_stride}, where);
}

// first, first + 1, ...
template <typename T>
twin::Only<T, half, float, std::int16_t, std::int32_t> CreateVecIndex(const LocalTensor<T>& dst, const T& first,
                                                                      std::uint32_t n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("CreateVecIndex", PIPE_V, where);
    twin::write_count<T>(i, dst.local(), n);
  }
  for (std::uint32_t i = 0; i < n; ++i) dst.data()[i] = T(twin::plain(first) + i);
}

struct BrcbRepeatParams {
  std::uint16_t dstBlkStride = 1, dstRepStride = 8;
  BrcbRepeatParams() = default;
  BrcbRepeatParams(std::uint16_t blk, std::uint16_t rep) : dstBlkStride(blk), dstRepStride(rep) {}
};

// Each of 8 elements a repeat fills one block of 32 bytes.
template <typename T>
twin::Only<T, half, bfloat16_t, float, std::int16_t, std::uint16_t, std::int32_t, std::uint32_t> Brcb(
    const LocalTensor<T>& dst, const LocalTensor<T>& src, std::uint8_t repeats, const BrcbRepeatParams& p, TWIN_WHERE) {
  constexpr int kPerBlock = twin::kBlock / sizeof(T);
  const twin::Walk d{p.dstBlkStride, p.dstRepStride};
  if (twin::checking()) {
    twin::Instruction i("Brcb", PIPE_V, where);
    twin::read_count<T>(i, src.local(), 8 * repeats);
    i.no_partial_overlap(dst.local(), 1, src.local(), 8 * repeats * sizeof(T));
    twin::write_lanes<T>(i, dst.local(), d, twin::Mask::first(256 / sizeof(T)), repeats);
  }
  for (int r = 0; r < repeats; ++r)
    for (int b = 0; b < 8; ++b) {
      const T value = src.data()[8 * r + b];
      std::fill_n(reinterpret_cast<T*>(dst.local().at + twin::lane_offset<T>(d, r, b * kPerBlock)), kPerBlock, value);
    }
}

// UB to UB by repeats.
template <typename T>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, std::uint64_t mask, std::uint8_t repeats,
          const CopyRepeatParams& p, TWIN_WHERE) {
  const twin::Walk d{p.dstStride, p.dstRepeatSize}, s{p.srcStride, p.srcRepeatSize};
  const twin::Mask lanes = twin::Mask::first(mask);
  if (twin::checking()) {
    twin::Instruction i("Copy", PIPE_V, where);
    twin::require_mask<T>(i, lanes);
    twin::read_lanes<T>(i, src.local(), s, lanes, repeats);
    twin::write_lanes<T>(i, dst.local(), d, lanes, repeats);
  }
  for (int r = 0; r < repeats; ++r)
    for (int l = 0; l < static_cast<int>(mask); ++l)
      std::memcpy(dst.local().at + twin::lane_offset<T>(d, r, l), src.local().at + twin::lane_offset<T>(s, r, l), sizeof(T));
}

}  // namespace AscendC
