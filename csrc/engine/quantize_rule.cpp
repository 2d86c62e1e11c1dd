#include "engine/quantize_rule.h"

#include <algorithm>
#include <bit>

namespace sigmoe {
namespace {

constexpr float kFp8Max = 448.0f, kInt8Max = 127.0f;
constexpr int kLanes = 8;  // independent sums, so that additions need not wait for each other

void widen(DType dtype, const std::byte* from, int64_t n, float* out) {
  if (dtype == DType::f32) {
    std::memcpy(out, from, static_cast<size_t>(n) * 4);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * i, 2);
    out[i] = bf16_to_f32(bits);
  }
}

// The bits of the largest magnitude. Bits of magnitudes sort as the magnitudes do, infinities and NaN above all.
uint32_t largest_bits(const float* values, int64_t n, uint32_t largest) {
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
  return largest;
}

constexpr uint32_t kInfinityBits = 0x7f800000u;

// The nearest E4M3 code of a magnitude, ties to even; at most 448. Below 2^-6 values lie 2^-9 apart, as float32 values do
// from 2^14 on: adding 2^14 rounds there. From 2^-6 on the mantissa is rounded to three bits in place.
inline uint32_t nearest_e4m3(float magnitude) {
  const float value = std::min(magnitude, kFp8Max);
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t fine = std::bit_cast<uint32_t>(value + 0x1p14f) - std::bit_cast<uint32_t>(0x1p14f);
  const uint32_t coarse = ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3);
  return value < 0x1p-6f ? fine : coarse;
}

inline uint8_t to_e4m3(float value) {
  const uint32_t sign = std::bit_cast<uint32_t>(value) >> 31;
  const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7fffffffu);
  return static_cast<uint8_t>(sign << 7 | nearest_e4m3(magnitude));
}

inline float from_e4m3(uint8_t code) {  // f8e4m3_to_f32 without its test for NaN, which no code here is
  const float magnitude = std::bit_cast<float>(static_cast<uint32_t>(code & 0x7fu) << 20) * 0x1p120f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | static_cast<uint32_t>(code & 0x80u) << 24);
}

inline int8_t to_int8(float value) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  return static_cast<int8_t>(std::clamp(value + magic - magic, -kInt8Max, kInt8Max));
}

// codes (n) of values (n) by one scale, and the error.
template <typename Encode, typename Decode>
void encode_row(const float* values, int64_t n, float scale, uint8_t* codes, QuantError& error, Encode encode, Decode decode) {
  double errors[kLanes] = {}, weights[kLanes] = {};
  const auto one = [&](int64_t i, int lane) {
    const uint8_t code = encode(values[i] / scale);
    const double value = values[i], difference = value - static_cast<double>(decode(code) * scale);
    codes[i] = code;
    errors[lane] += difference * difference;
    weights[lane] += value * value;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) one(i + lane, lane);
  for (; i < n; ++i) one(i, 0);
  for (int lane = 0; lane < kLanes; ++lane) error.add({errors[lane], weights[lane]});
}

bool fp8_blocks(bool power_of_two, DType dtype, const std::byte* rows, int64_t n_rows, int64_t k, uint8_t* codes, float* scales,
                QuantError& error) {
  const int64_t width = static_cast<int64_t>(dtype_bytes(dtype));
  std::vector<float> tile(static_cast<size_t>(n_rows * kQuantBlock));
  for (int64_t begin = 0; begin < k; begin += kQuantBlock) {
    const int64_t n = std::min(kQuantBlock, k - begin);
    uint32_t largest = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
      widen(dtype, rows + (row * k + begin) * width, n, &tile[row * n]);
      largest = largest_bits(&tile[row * n], n, largest);
    }
    if (largest >= kInfinityBits) return false;
    const float scale = fp8_scale(std::bit_cast<float>(largest), power_of_two);
    scales[begin / kQuantBlock] = scale;
    for (int64_t row = 0; row < n_rows; ++row)
      encode_row(&tile[row * n], n, scale, codes + row * k + begin, error, to_e4m3, from_e4m3);
  }
  return true;
}

bool int8_channels(DType dtype, const std::byte* rows, int64_t n_rows, int64_t k, uint8_t* codes, float* scales,
                   QuantError& error) {
  const int64_t width = static_cast<int64_t>(dtype_bytes(dtype));
  std::vector<float> values(static_cast<size_t>(k));
  for (int64_t row = 0; row < n_rows; ++row) {
    widen(dtype, rows + row * k * width, k, values.data());
    const uint32_t largest = largest_bits(values.data(), k, 0);
    if (largest >= kInfinityBits) return false;
    scales[row] = int8_scale(std::bit_cast<float>(largest));
    encode_row(
        values.data(), k, scales[row], codes + row * k, error, [](float value) { return static_cast<uint8_t>(to_int8(value)); },
        [](uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); });
  }
  return true;
}

}  // namespace

float fp8_scale(float largest, bool power_of_two) {
  const float scale = std::max(largest, 1e-4f) / kFp8Max;
  if (!power_of_two) return scale;
  const uint32_t bits = std::bit_cast<uint32_t>(scale);  // a normal number: at least 1e-4 / 448
  return std::bit_cast<float>((bits + 0x7fffffu) & 0x7f800000u);
}

float int8_scale(float largest) { return std::max(largest, 1e-30f) / kInt8Max; }

bool quantize_rows(QuantTarget target, bool power_of_two, DType dtype, const std::byte* rows, int64_t n_rows, int64_t k,
                   uint8_t* codes, float* scales, QuantError& error) {
  return target == QuantTarget::fp8_block ? fp8_blocks(power_of_two, dtype, rows, n_rows, k, codes, scales, error)
                                          : int8_channels(dtype, rows, n_rows, k, codes, scales, error);
}

}  // namespace sigmoe
