// Cast: the conversions the vector unit of an A2 has, and no others.
#pragma once

#include "ascend/twin/vector.h"

namespace twin {

// x rounded to a multiple of `quantum`, a power of two.
inline double round_to(double x, double quantum, AscendC::RoundMode mode) {
  using enum_type = AscendC::RoundMode;
  const double scaled = x / quantum;
  switch (mode) {
    case enum_type::CAST_FLOOR: return std::floor(scaled) * quantum;
    case enum_type::CAST_CEIL: return std::ceil(scaled) * quantum;
    case enum_type::CAST_ROUND: return std::round(scaled) * quantum;
    case enum_type::CAST_TRUNC: return std::trunc(scaled) * quantum;
    case enum_type::CAST_ODD: {  // what is not exact goes to the odd neighbour
      const double down = std::floor(scaled);
      return (down == scaled || std::fmod(down, 2.0) != 0.0 ? down : down + 1.0) * quantum;
    }
    default: return std::nearbyint(scaled) * quantum;
  }
}

template <typename To>
To saturate(double x) {
  if (x != x) return 0;
  if (x <= static_cast<double>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (x >= static_cast<double>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(x);
}

// A float as a 16-bit one with `fraction` bits of fraction and the least exponent `lowest`.
template <typename To>
To to_short_float(float x, AscendC::RoundMode mode, int fraction, int lowest) {
  if (mode == AscendC::RoundMode::CAST_RINT || mode == AscendC::RoundMode::CAST_NONE || !std::isfinite(x)) return To(x);
  int exponent = 0;
  std::frexp(x, &exponent);
  return To(static_cast<float>(round_to(x, std::ldexp(1.0, std::max(exponent - 1, lowest) - fraction), mode)));
}

template <typename To, typename From>
To convert(From x, AscendC::RoundMode mode) {
  if constexpr (std::is_same_v<To, float>) {
    return static_cast<float>(
        x);  // from s64 and s32 to nearest: the modes differ where 24 bits do not suffice, which no kernel uses
  } else if constexpr (std::is_same_v<To, half>) {
    return to_short_float<half>(static_cast<float>(x), mode, 10, -14);
  } else if constexpr (std::is_same_v<To, bfloat16_t>) {
    return to_short_float<bfloat16_t>(static_cast<float>(x), mode, 7, -126);
  } else if constexpr (std::is_integral_v<From>) {
    return saturate<To>(static_cast<double>(x));
  } else {
    return saturate<To>(round_to(static_cast<double>(static_cast<float>(x)), 1.0,
                                 mode == AscendC::RoundMode::CAST_NONE ? AscendC::RoundMode::CAST_RINT : mode));
  }
}

enum : unsigned { cast_none = 1, cast_rounding = 2, cast_odd = 4 };

// The modes in which To can be made of From; 0: not at all.
template <typename To, typename From>
constexpr unsigned cast_modes() {
  using s8 = std::int8_t;
  using u8 = std::uint8_t;
  using s16 = std::int16_t;
  using s32 = std::int32_t;
  using s64 = std::int64_t;
  constexpr auto is = [](auto from, auto to) {
    return std::is_same_v<decltype(from), From> && std::is_same_v<decltype(to), To>;
  };
  if (is(s8{}, half{}) || is(u8{}, half{})) return cast_none;
  if (is(half{}, s8{}) || is(half{}, u8{})) return cast_none | cast_rounding;
  if (is(half{}, s16{}) || is(half{}, s32{})) return cast_rounding;
  if (is(half{}, float{})) return cast_none;
  if (is(s16{}, half{})) return cast_none | cast_rounding;
  if (is(s16{}, float{})) return cast_none;
  if (is(bfloat16_t{}, float{})) return cast_none;
  if (is(bfloat16_t{}, s32{})) return cast_rounding;
  if (is(s32{}, float{})) return cast_none | cast_rounding;
  if (is(s32{}, s16{}) || is(s32{}, s64{})) return cast_none;
  if (is(s32{}, half{})) return cast_none | cast_rounding | cast_odd;  // scaled; the mode is ignored
  if (is(float{}, s16{}) || is(float{}, s32{}) || is(float{}, s64{}) || is(float{}, bfloat16_t{}) || is(float{}, float{}))
    return cast_rounding;
  if (is(float{}, half{})) return cast_none | cast_rounding | cast_odd;
  if (is(s64{}, s32{})) return cast_none;
  if (is(s64{}, float{})) return cast_rounding;
  return 0;
}

template <typename To, typename From>
void check_cast(const Instruction& instruction, AscendC::RoundMode mode) {
  constexpr unsigned kModes = cast_modes<To, From>();
  instruction.require(kModes != 0, "no such conversion on an A2");
  const unsigned asked = mode == AscendC::RoundMode::CAST_NONE  ? cast_none
                         : mode == AscendC::RoundMode::CAST_ODD ? cast_odd
                                                                : cast_rounding;
  instruction.require(kModes & asked, "this conversion has no such round mode");
}

template <typename To, typename From>
void cast_lanes(To* to, const From* from, std::int64_t n, AscendC::RoundMode mode) {
  if constexpr (std::is_same_v<From, std::int32_t> && std::is_same_v<To, half>) {
    const float scale = self->deq_scale;
    for (std::int64_t i = 0; i < n; ++i) to[i] = half(static_cast<float>(from[i]) * scale);
  } else if (mode == AscendC::RoundMode::CAST_RINT ||
             mode == AscendC::RoundMode::CAST_NONE) {  // constant: these loops vectorise
    constexpr auto kMode = AscendC::RoundMode::CAST_RINT;
    for (std::int64_t i = 0; i < n; ++i) to[i] = convert<To>(from[i], kMode);
  } else {
    for (std::int64_t i = 0; i < n; ++i) to[i] = convert<To>(from[i], mode);
  }
}

}  // namespace twin

namespace AscendC {

inline void SetDeqScale(half scale) { twin::self->deq_scale = static_cast<float>(scale); }

template <typename To, typename From>
void Cast(const LocalTensor<To>& dst, const LocalTensor<From>& src, const RoundMode& mode, const std::uint32_t n, TWIN_WHERE) {
  if (twin::checking()) {
    twin::Instruction i("Cast", PIPE_V, where);
    twin::check_cast<To, From>(i, mode);
    if (sizeof(To) == sizeof(From)) i.no_partial_overlap(dst.local(), n * sizeof(To), src.local(), n * sizeof(From));
    twin::read_count<From>(i, src.local(), n);
    twin::write_count<To>(i, dst.local(), n);
  }
  if constexpr (sizeof(To) > sizeof(From)) {  // in place a wider result must not overrun what is still to be read
    for (std::int64_t i = n; i-- > 0;) twin::cast_lanes(dst.data() + i, src.data() + i, 1, mode);
  } else {
    twin::cast_lanes(dst.data(), src.data(), n, mode);
  }
}

template <typename To, typename From>
void Cast(const LocalTensor<To>& dst, const LocalTensor<From>& src, const RoundMode& mode, const std::uint64_t mask,
          const std::uint8_t repeats, const UnaryRepeatParams& p, TWIN_WHERE) {
  const twin::Walk d{p.dstBlkStride, p.dstRepStride}, s{p.srcBlkStride, p.srcRepStride};
  constexpr int kLanes = 256 / (sizeof(To) > sizeof(From) ? sizeof(To) : sizeof(From));
  const twin::Mask lanes = twin::Mask::first(mask);
  if (twin::checking()) {
    twin::Instruction i("Cast", PIPE_V, where);
    twin::check_cast<To, From>(i, mode);
    i.require(mask >= 1 && mask <= kLanes, "a mask beyond the lanes of the wider type");
    twin::read_lanes<From>(i, src.local(), s, lanes, repeats, kLanes);
    twin::write_lanes<To>(i, dst.local(), d, lanes, repeats, kLanes);
  }
  for (int r = 0; r < repeats; ++r)
    for (int l = 0; l < static_cast<int>(mask); ++l)
      twin::cast_lanes(reinterpret_cast<To*>(dst.local().at + twin::lane_offset<To>(d, r, l)),
                       reinterpret_cast<const From*>(src.local().at + twin::lane_offset<From>(s, r, l)), 1, mode);
}

}  // namespace AscendC
