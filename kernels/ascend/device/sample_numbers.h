// The sampler's scalar arithmetic: ordered keys of floats, the random stream, and a product of doubles in integers, which the
// scalar unit has no doubles for. All of it gives the bits of kernels/cpu/sample.h.
#pragma once

#include "kernel_operator.h"

namespace sigmoe_sample_kernel {

__aicore__ inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
__aicore__ inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// Larger floats have larger keys; the two zeros share one.
__aicore__ inline uint32_t key_of(float value) {
  const uint32_t bits = bits_of(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__aicore__ inline float value_of(uint32_t key) { return float_of((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key); }

__aicore__ inline int32_t bit_length(uint64_t value) {
  int32_t n = 0;
  for (; value != 0; value >>= 1) ++n;
  return n;
}

// floor(a * b / 2^64)
__aicore__ inline uint64_t high_product(uint64_t a, uint64_t b) {
  const uint64_t a_low = a & 0xffffffffu, a_high = a >> 32, b_low = b & 0xffffffffu, b_high = b >> 32;
  const uint64_t middle = a_high * b_low + (a_low * b_low >> 32), other = a_low * b_high + (middle & 0xffffffffu);
  return a_high * b_high + (middle >> 32) + (other >> 32);
}

// floor(u * total) for the row's uniform u in [0, 1): Philox4x32-10 keyed by seed, counted by position.
__aicore__ inline uint64_t draw_below(uint64_t total, uint64_t seed, int32_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = 0, c2 = 0, c3 = 0;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int32_t round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return high_product(static_cast<uint64_t>(c1) << 32 | c0, total);
}

// value / 2^drop to the nearest integer, ties to even; drop below 64.
__aicore__ inline uint64_t shift_rounded(uint64_t value, int32_t drop) {
  if (drop <= 0) return value;
  const uint64_t rest = value & ((uint64_t{1} << drop) - 1), half = uint64_t{1} << (drop - 1), whole = value >> drop;
  return whole + (rest > half || (rest == half && (whole & 1) != 0) ? 1 : 0);
}

// ceil(p * total) as doubles compute it: total to 53 bits, then the product to 53 bits; 0 for p <= 0. p below 1.
__aicore__ inline uint64_t share_of(float p, uint64_t total) {
  if (!(p > 0.0f) || total == 0) return 0;
  const uint32_t bits = bits_of(p), exponent_bits = bits >> 23;
  const uint64_t fraction = exponent_bits != 0 ? (bits & 0x7fffffu) | 0x800000u : bits & 0x7fffffu;
  int32_t exponent = static_cast<int32_t>(exponent_bits != 0 ? exponent_bits : 1) - 150;  // p = fraction * 2^exponent
  const int32_t cut = bit_length(total) - 53;
  const uint64_t rounded = shift_rounded(total, cut);
  if (cut > 0) exponent += cut;
  // The product of 24 and 53 bits, as high * 2^32 + low.
  const uint64_t part = fraction * (rounded & 0xffffffffu), high = fraction * (rounded >> 32) + (part >> 32),
                 low = part & 0xffffffffu;
  const int32_t drop = bit_length(high) + 32 - 53;  // at most 24, so what is dropped lies in `low`
  uint64_t product = 0;
  if (high >> 32 == 0) {
    product = high << 32 | low;
    const int32_t extra = bit_length(product) - 53;
    product = shift_rounded(product, extra);
    if (extra > 0) exponent += extra;
  } else {
    const uint64_t rest = low & ((uint64_t{1} << drop) - 1), half = uint64_t{1} << (drop - 1);
    product = high << (32 - drop) | low >> drop;
    if (rest > half || (rest == half && (product & 1) != 0)) ++product;
    exponent += drop;
  }
  if (exponent >= 0) return product << exponent;
  if (exponent <= -64) return 1;
  const uint64_t below = (uint64_t{1} << -exponent) - 1;
  return (product >> -exponent) + ((product & below) != 0 ? 1 : 0);
}

}  // namespace sigmoe_sample_kernel
