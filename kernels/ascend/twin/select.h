// Comparing to bits, selecting by bits, and gathering by offset or pattern (pipe V).
#pragma once

#include "ascend/twin/vector.h"

namespace AscendC {

struct GatherMaskParams {  // strides in blocks of 32 bytes
  std::uint8_t src0BlockStride = 1;
  std::uint16_t repeatTimes = 1, src0RepeatStride = 0;
  std::uint8_t src1RepeatStride = 0;
  GatherMaskParams() = default;
  GatherMaskParams(std::uint8_t block, std::uint16_t repeats, std::uint16_t repeat, std::uint8_t pattern_repeat)
      : src0BlockStride(block), repeatTimes(repeats), src0RepeatStride(repeat), src1RepeatStride(pattern_repeat) {}
};

}  // namespace AscendC

namespace twin {

template <typename T>
bool compare(AscendC::CMPMODE mode, T a, T b) {
  const auto x = plain(a), y = plain(b);
  switch (mode) {
    case AscendC::CMPMODE::LT: return x < y;
    case AscendC::CMPMODE::GT: return x > y;
    case AscendC::CMPMODE::EQ: return x == y;
    case AscendC::CMPMODE::LE: return x <= y;
    case AscendC::CMPMODE::GE: return x >= y;
    case AscendC::CMPMODE::NE: break;
  }
  return x != y;
}

template <typename T>
void check_compare(const Instruction& i, AscendC::CMPMODE mode, std::uint32_t n) {
  i.require(n > 0 && n * sizeof(T) % 256 == 0, "compares whole repeats of 256 bytes");
  i.require(!std::is_same_v<T, std::int32_t> || mode == AscendC::CMPMODE::EQ, "int32 has EQ only");
}

template <typename T, typename Second>
void compare_bits(std::uint8_t* bits, const T* a, Second second, AscendC::CMPMODE mode, std::uint32_t n) {
  for (std::uint32_t first = 0; first < n; first += 8) {
    std::uint8_t byte = 0;
    for (std::uint32_t j = 0; j < 8; ++j)
      byte |= static_cast<std::uint8_t>(compare<T>(mode, a[first + j], second(first + j)) << j);
    bits[first / 8] = byte;
  }
}

template <typename T, typename U, typename Second>
void select(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& bits, const AscendC::LocalTensor<T>& a,
            std::uint32_t n, Second second) {
  const auto* mask = reinterpret_cast<const std::uint8_t*>(bits.data());
  for (std::uint32_t i = 0; i < n; ++i) dst.data()[i] = mask[i / 8] >> (i % 8) & 1 ? a.data()[i] : second(i);
}

// The lanes that a built-in pattern keeps.
inline bool pattern_keeps(int pattern, std::uint32_t lane) {
  switch (pattern) {
    case 1:
    case 2: return lane % 2 == static_cast<std::uint32_t>(pattern - 1);
    case 7: return true;
    default: return lane % 4 == static_cast<std::uint32_t>(pattern - 3);
  }
}

// GatherMask: `keeps(repeat, lane)` decides; results lie one after the other.
template <typename T, typename Keeps>
std::uint64_t gather_mask(Instruction* i, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, bool counted,
                          std::uint32_t mask, const AscendC::GatherMaskParams& p, Keeps keeps) {
  const Walk s{p.src0BlockStride, p.src0RepeatStride};
  const std::uint32_t lanes = counted ? mask : 256 / sizeof(T);
  if (i) {
    i->operand(src.local(), Arena::ub);
    i->operand(dst.local(), Arena::ub);
    i->require(p.repeatTimes >= 1, "no repeats");
    i->require(lanes >= 1, "an empty mask");
    for (int r = 0; r < p.repeatTimes; ++r)
      for (std::uint32_t l = 0; l < lanes; l += kBlock / sizeof(T))
        i->read(src.local(), lane_offset<T>(s, r, static_cast<int>(l)), std::min<std::size_t>(kBlock, (lanes - l) * sizeof(T)));
  }
  std::vector<T> kept;
  for (int r = 0; r < p.repeatTimes; ++r)
    for (std::uint32_t l = 0; l < lanes; ++l)
      if (keeps(r, l)) kept.push_back(*reinterpret_cast<const T*>(src.local().at + lane_offset<T>(s, r, static_cast<int>(l))));
  if (i) i->write(dst.local(), 0, kept.size() * sizeof(T));
  std::copy(kept.begin(), kept.end(), dst.data());
  return kept.size();
}

}  // namespace twin

namespace AscendC {

// Bit i of dst: whether src0[i] stands so to src1[i].
template <typename T, typename U>
twin::Only<T, half, float, std::int32_t> Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0,
                                                 const LocalTensor<T>& src1, CMPMODE mode, std::uint32_t n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("Compare", PIPE_V, where);
    twin::check_compare<T>(i, mode, n);
    twin::read_count<T>(i, src0.local(), n);
    twin::read_count<T>(i, src1.local(), n);
    twin::write_count<std::uint8_t>(i, dst.local(), n / 8);
  }
  twin::compare_bits<T>(
      reinterpret_cast<std::uint8_t*>(dst.data()), src0.data(), [&](std::uint32_t i) { return src1.data()[i]; }, mode, n);
}

template <typename T, typename U>
twin::Only<T, half, float, std::int32_t> CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1,
                                                       CMPMODE mode, std::uint32_t n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("CompareScalar", PIPE_V, where);
    twin::check_compare<T>(i, mode, n);
    twin::read_count<T>(i, src0.local(), n);
    twin::write_count<std::uint8_t>(i, dst.local(), n / 8);
  }
  twin::compare_bits<T>(
      reinterpret_cast<std::uint8_t*>(dst.data()), src0.data(), [&](std::uint32_t) { return src1; }, mode, n);
}

// Where the bit is 1 src0, else src1.
template <typename T, typename U>
twin::Only<T, half, float> Select(const LocalTensor<T>& dst, const LocalTensor<U>& bits, const LocalTensor<T>& src0,
                                  const LocalTensor<T>& src1, SELMODE mode, std::uint32_t n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("Select", PIPE_V, where);
    i.require(mode == SELMODE::VSEL_TENSOR_TENSOR_MODE, "two tensors by count need VSEL_TENSOR_TENSOR_MODE");
    twin::read_count<std::uint8_t>(i, bits.local(), (n + 7) / 8);
    twin::read_count<T>(i, src0.local(), n);
    twin::read_count<T>(i, src1.local(), n);
    twin::write_count<T>(i, dst.local(), n);
  }
  twin::select(dst, bits, src0, n, [&](std::uint32_t i) { return src1.data()[i]; });
}

template <typename T, typename U>
twin::Only<T, half, float> Select(const LocalTensor<T>& dst, const LocalTensor<U>& bits, const LocalTensor<T>& src0, T src1,
                                  SELMODE mode, std::uint32_t n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("Select", PIPE_V, where);
    i.require(mode == SELMODE::VSEL_TENSOR_SCALAR_MODE, "a tensor and a scalar need VSEL_TENSOR_SCALAR_MODE");
    twin::read_count<std::uint8_t>(i, bits.local(), (n + 7) / 8);
    twin::read_count<T>(i, src0.local(), n);
    twin::write_count<T>(i, dst.local(), n);
  }
  twin::select(dst, bits, src0, n, [&](std::uint32_t) { return src1; });
}

// dst[i] = the element of src at byte base + offset[i].
template <typename T>
twin::Only<T, half, bfloat16_t, float, std::int16_t, std::uint16_t, std::int32_t, std::uint32_t> Gather(
    const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<std::uint32_t>& offset, const std::uint32_t base,
    const std::uint32_t n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("Gather", PIPE_V, where);
    twin::read_count<std::uint32_t>(i, offset.local(), n);
    i.operand(src.local(), twin::Arena::ub);
    for (std::uint32_t j = 0; j < n; ++j) {
      const std::uint64_t at = std::uint64_t{base} + offset.data()[j];
      i.require(at % sizeof(T) == 0, "an offset that is not a multiple of the element's size");
      i.read(src.local(), static_cast<std::int64_t>(at), sizeof(T));
    }
    twin::write_count<T>(i, dst.local(), n);
  }
  for (std::uint32_t j = 0; j < n; ++j) dst.data()[j] = src.data()[(base + offset.data()[j]) / sizeof(T)];
}

// The elements of src that a built-in pattern keeps: 1 even, 2 odd, 3 to 6 those of i mod 4 = 0 to 3, 7 all. With `counted`
// a repeat is `mask` elements, else 256 bytes. `kept` is how many there were.
template <typename T>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::uint8_t pattern, const bool counted,
                const std::uint32_t mask, const GatherMaskParams& params, std::uint64_t& kept, TWIN_WHERE) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "elements of 2 or 4 bytes");
  const auto keeps = [pattern](int, std::uint32_t lane) { return twin::pattern_keeps(pattern, lane); };
  if (twin::checking()) {
    twin::Instruction i("GatherMask", PIPE_V, where);
    i.require(pattern >= 1 && pattern <= 7, "patterns are 1 to 7");
    kept = twin::gather_mask(&i, dst, src, counted, mask, params, keeps);
  } else {
    kept = twin::gather_mask<T>(nullptr, dst, src, counted, mask, params, keeps);
  }
}

// Likewise by the bits of a tensor, of which each repeat takes the words from src1RepeatStride blocks further on.
template <typename T, typename U>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<U>& pattern, const bool counted,
                const std::uint32_t mask, const GatherMaskParams& params, std::uint64_t& kept, TWIN_WHERE) {
  static_assert((sizeof(T) == 2 || sizeof(T) == 4) && sizeof(U) == sizeof(T),
                "elements and pattern words of one size, 2 or 4 bytes");
  const auto* bits = reinterpret_cast<const std::uint8_t*>(pattern.data());
  const auto keeps = [&](int repeat, std::uint32_t lane) {
    return bits[repeat * params.src1RepeatStride * twin::kBlock + lane / 8] >> (lane % 8) & 1;
  };
  if (twin::checking()) {
    twin::Instruction i("GatherMask", PIPE_V, where);
    const std::uint32_t lanes = counted ? mask : 256 / sizeof(T);
    i.operand(pattern.local(), twin::Arena::ub);
    for (int r = 0; r < params.repeatTimes; ++r)
      i.read(pattern.local(), std::int64_t{r} * params.src1RepeatStride * twin::kBlock, (lanes + 7) / 8);
    kept = twin::gather_mask(&i, dst, src, counted, mask, params, keeps);
  } else {
    kept = twin::gather_mask<T>(nullptr, dst, src, counted, mask, params, keeps);
  }
}

}  // namespace AscendC
