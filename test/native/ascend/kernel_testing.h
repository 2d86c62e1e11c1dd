// What the tests of the cube kernels share: memory that the twin knows as GM, activations and weights as the backend would
// hand them over, and a launch on so many cores with the checks on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "ascend/device/args/weight_layout.h"
#include "ascend/host/cores.h"
#include "cpu_testing.h"
#include "kernel_operator.h"  // before cpu_testing.h: doctest's macros are not its business

namespace sigmoe::ascend::testing {

using namespace sigmoe::testing;

constexpr double kBf16Error = 4e-3;    // activations rounded to BF16: 2^-9 at most each
constexpr double kInt8Error = 1.5e-2;  // weights and activations rounded to 1/127 of a row's largest value
constexpr double kF32Error = 2e-5;     // float32 sums in another order

// Bytes in global memory: exactly so many are accessible, no kernel may touch what lies beside them.
template <typename T>
class Gm {
 public:
  explicit Gm(std::vector<T> values) : values_(std::move(values)) {
    if (values_.empty()) values_.resize(1);
    twin::register_gm(values_.data(), values_.size() * sizeof(T));
  }
  Gm(size_t n, T value) : Gm(std::vector<T>(n, value)) {}
  ~Gm() { twin::unregister_gm(values_.data()); }
  Gm(const Gm&) = delete;
  Gm& operator=(const Gm&) = delete;

  uint8_t* address() { return reinterpret_cast<uint8_t*>(values_.data()); }
  std::vector<T>& values() { return values_; }

 private:
  std::vector<T> values_;
};

// Values rounded to INT8, with the scale of each row.
struct Quantised {
  std::vector<int8_t> values;
  std::vector<float> scales;
};

inline Quantised quantise_rows(const std::vector<float>& values, int64_t rows, int64_t width) {
  Quantised out{std::vector<int8_t>(values.size()), std::vector<float>(rows)};
  for (int64_t r = 0; r < rows; ++r) {
    float peak = 0.0f;
    for (int64_t i = 0; i < width; ++i) peak = std::max(peak, std::abs(values[r * width + i]));
    out.scales[r] = peak / 127.0f;
    for (int64_t i = 0; i < width; ++i)
      out.values[r * width + i] = static_cast<int8_t>(peak > 0 ? std::nearbyint(values[r * width + i] * 127.0f / peak) : 0.0f);
  }
  return out;
}

// The values that the codes stand for.
inline std::vector<float> dequantised_rows(const std::vector<float>& values, int64_t rows, int64_t width) {
  const Quantised quantised = quantise_rows(values, rows, width);
  std::vector<float> out(values.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(quantised.values[i]) * quantised.scales[i / width];
  return out;
}

template <typename T>
T rounded(float value);
template <>
inline float rounded<float>(float value) {
  return value;
}
template <>
inline bfloat16_t rounded<bfloat16_t>(float value) {
  return bfloat16_t(value);
}

// Rows (rows, width) at the pitch of the backend's copies; what fills a row up is NaN or, in INT8, as wrong.
template <typename T, typename U>
std::vector<T> pitched(const std::vector<U>& values, int64_t rows, int64_t width) {
  const int64_t pitch = row_pitch(width, sizeof(T));
  std::vector<T> out(rows * pitch);
  std::memset(static_cast<void*>(out.data()), 0xff, out.size() * sizeof(T));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) {
      if constexpr (std::is_same_v<T, U>)
        out[r * pitch + i] = values[r * width + i];
      else
        out[r * pitch + i] = rounded<T>(values[r * width + i]);
    }
  return out;
}

// W (n, k) in the layout of the cube.
template <typename T, typename U>
std::vector<T> packed(const std::vector<U>& weight, int64_t n, int64_t k) {
  const WeightLayout layout{n, k, sizeof(T)};
  std::vector<T> out(layout.elements(), T{});
  for (int64_t row = 0; row < n; ++row)
    for (int64_t column = 0; column < k; ++column) {
      if constexpr (std::is_same_v<T, U>)
        out[layout.index(row, column)] = weight[row * k + column];
      else
        out[layout.index(row, column)] = rounded<T>(weight[row * k + column]);
    }
  return out;
}

// A random weight as BF16 can hold it, so that the reference computes with the same values.
inline std::vector<float> bf16_weight(int64_t n, int64_t k, uint64_t seed) {
  std::vector<float> weight = gaussian(n * k, seed, 0.05f);
  for (float& value : weight) value = static_cast<float>(bfloat16_t(value));
  return weight;
}

// The same weight for the reference backend.
inline std::unique_ptr<LinearWeight> reference_weight(Backend& reference, const std::vector<float>& weight, int64_t n,
                                                      int64_t k) {
  LinearDesc desc;
  desc.format = WeightFormat::f32;
  desc.n = n;
  desc.k = k;
  const auto builder = reference.begin_linear(desc);
  builder->put_rows(0, n, reinterpret_cast<const std::byte*>(weight.data()), k * sizeof(float));
  return builder->finish();
}

inline std::unique_ptr<Backend> reference_backend(DType compute = DType::f32) { return make_backend({"reference", compute}); }

}  // namespace sigmoe::ascend::testing
