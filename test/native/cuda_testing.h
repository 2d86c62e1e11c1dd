// What the CUDA op tests share: backends in both compute types, the reference, arrays on the device, activations that FP8
// kernels round to themselves. Without a device the cases print why and return.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "cpu_testing.h"

namespace sigmoe::testing {

// Relative error of an op against the reference, by compute type. Float32: sums in another order. BF16: inputs of the
// products rounded to 2^-9, and again between the two products of an expert.
inline double bound(DType compute, double bf16) { return compute == DType::f32 ? Tolerance::kFloat32 : bf16; }

inline std::unique_ptr<Backend> cuda(DType compute, const std::string& kv_cache = "auto", const std::string& kernels = "auto",
                                     const std::string& prefill_attention = "auto") {
  BackendOptions options;
  options.kernels = kernels;
  options.compute = compute;
  options.kv_cache = kv_cache;
  options.prefill_attention = prefill_attention;
  return create_backend("cuda", options);
}

inline bool have_cuda() {
  for (const DeviceReport& report : list_devices())
    if (report.device == "cuda") {
      static bool told = false;
      if (!report.available && !told) std::printf("cuda ops: skipped, %s\n", report.detail.c_str());
      told = true;
      return report.available;
    }
  return false;
}

inline const std::unique_ptr<Backend>& reference() {
  static const std::unique_ptr<Backend> backend = make_backend({"reference", DType::f32});
  return backend;
}

// A host array on a backend's device.
template <typename T>
class OnDevice {
 public:
  OnDevice(Backend& backend, const std::vector<T>& values)
      : backend_(backend), n_(values.size()), buffer_(backend.alloc(values.size() * sizeof(T), "test data")) {
    backend.upload(buffer_.data(), values.data(), values.size() * sizeof(T));
  }
  T* get() const { return buffer_.template as<T>(); }
  std::vector<T> read() const {
    std::vector<T> values(n_);
    backend_.download(values.data(), buffer_.data(), n_ * sizeof(T));
    return values;
  }

 private:
  Backend& backend_;
  size_t n_;
  DeviceBuffer buffer_;
};

constexpr float kPoison = -12345.0f;  // outputs start as this: an element nothing wrote shows

// SIGMOE_TEST_SMALL: fewer sizes of everything, no kernel left out; for sanitizers, which slow kernels down a hundred times.
inline bool small_run() { return std::getenv("SIGMOE_TEST_SMALL") != nullptr; }
template <typename T>
std::vector<T> sizes(std::vector<T> all, std::vector<T> few) {
  return small_run() ? few : all;
}

// fn(backend, compute) on the device in both compute types, and in BF16 with the kernels of cards before Hopper.
inline void on_cuda(const std::function<void(Backend&, DType)>& fn) {
  if (!have_cuda()) return;
  for (const auto& [compute, kernels] : {std::pair{DType::f32, "auto"}, {DType::bf16, "auto"}, {DType::bf16, "mma"}}) {
    CAPTURE(std::string(dtype_name(compute)));  // doctest prints the address of any other text
    CAPTURE(std::string(kernels));
    fn(*cuda(compute, "auto", kernels), compute);
  }
}

// Rows of x on the grid of E4M3 with a scale per row, as the many-row kernels of FP8 weights round them: they then compute what
// the reference does, and so do kernels that round to BF16, within its error.
inline std::vector<float> on_fp8_grid(std::vector<float> x, int64_t k) {
  std::vector<float> values;
  for (int code = 0; code < 0x7f; ++code) values.push_back(f8e4m3_to_f32(static_cast<uint8_t>(code)));
  for (size_t row = 0; row < x.size(); row += k) {
    float largest = 1e-10f;
    for (int64_t i = 0; i < k; ++i) largest = std::max(largest, std::fabs(x[row + i]));
    const float scale = largest / 448.0f;
    for (int64_t i = 0; i < k; ++i) {
      const float size = std::fabs(x[row + i]) / scale;
      const auto above = std::min(std::lower_bound(values.begin(), values.end(), size), values.end() - 1);
      const auto nearest = above != values.begin() && size - above[-1] < *above - size ? above - 1 : above;
      x[row + i] = std::copysign(*nearest * scale, x[row + i]);
    }
  }
  return x;
}

inline std::vector<float> linear(Backend& backend, const LinearWeight& weight, const std::vector<float>& x, int rows,
                                 int64_t n) {
  const OnDevice<float> in(backend, x), out(backend, std::vector<float>(rows * n, kPoison));
  backend.linear(in.get(), weight, rows, out.get());
  return out.read();
}
}  // namespace sigmoe::testing
