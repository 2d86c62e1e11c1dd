// What the CPU kernel tests share: the paths of this machine, seeded data, weights in every format, comparison.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/registry.h"
#include "cpu/cpu_features.h"
#include "doctest/doctest.h"

namespace sigmoe::testing {

// Relative error ||a - b|| / ||b|| that an op of a path may have against the reference, and why.
struct Tolerance {
  static constexpr double kFloat32 = 2e-5;        // float32 sums in another order, some thousand terms
  static constexpr double kBf16Result = 2e-3;     // results rounded to BF16: 2^-9 at most each
  static constexpr double kBf16Linear = 4e-3;     // activations rounded to BF16: 2^-9 at most each, averaged over k
  static constexpr double kBf16Experts = 6e-3;    // two such layers one after the other
  static constexpr double kBf16Attention = 6e-3;  // queries and probabilities rounded to BF16
};

struct Path {
  std::string kernels;
  DType compute;
  std::string label() const { return kernels + "/" + dtype_name(compute); }
};

inline std::unique_ptr<Backend> make_backend(const Path& path, int n_threads = 2) {
  BackendOptions options;
  options.n_threads = n_threads;
  options.kernels = path.kernels;
  options.compute = path.compute;
  return create_cpu_backend(options);
}

// Every path the machine has, in both modes.
inline std::vector<Path> all_paths() {
  std::vector<Path> paths;
  for (const CpuPath path : cpu_paths())
    for (const DType compute : {DType::bf16, DType::f32}) paths.push_back({cpu_path_name(path), compute});
  return paths;
}

inline std::vector<float> gaussian(size_t n, uint64_t seed, float std_dev = 1.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, std_dev);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += static_cast<double>(b[i]) * b[i];
  }
  if (!std::isfinite(difference)) return difference;
  return size > 0.0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

// A linear weight as a checkpoint would hold it.
struct HostWeight {
  LinearDesc desc;
  std::vector<std::byte> rows;
  std::vector<float> scales;  // (n, blocks)

  int64_t n_blocks() const { return desc.k_bounds.empty() ? 0 : static_cast<int64_t>(desc.k_bounds.size()) - 1; }
  size_t stride() const { return weight_row_bytes(desc.format, desc.k); }

  std::unique_ptr<LinearWeight> put(Backend& backend, int64_t rows_at_once = 1 << 30) const {
    const auto builder = backend.begin_linear(desc);
    for (int64_t row = 0; row < desc.n; row += rows_at_once) {
      const int64_t count = std::min(rows_at_once, desc.n - row);
      builder->put_rows(row, count, rows.data() + row * stride(), stride());
      if (n_blocks() > 0) builder->put_scales(row, count, scales.data() + row * n_blocks());
    }
    return builder->finish();
  }
};

// Scale of row n and block b, by how often it changes along n: every row, every `block_n` rows, or never (0).
inline HostWeight random_weight(WeightFormat format, int64_t n, int64_t k, std::vector<int64_t> k_bounds, int64_t block_n,
                                uint64_t seed, bool gate_up = false) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  HostWeight weight;
  weight.desc = {format, n, k, std::move(k_bounds), gate_up, "random", LinearUse::body};
  weight.rows.resize(weight.stride() * n);
  for (size_t i = 0; i < weight.rows.size(); ++i) weight.rows[i] = static_cast<std::byte>(random());
  if (format == WeightFormat::fp8)
    for (std::byte& code : weight.rows)
      if ((code & std::byte{0x7f}) == std::byte{0x7f}) code = std::byte{0x01};  // no NaN; some more denormals
  if (format == WeightFormat::bf16)
    for (int64_t i = 0; i < n * k; ++i) reinterpret_cast<uint16_t*>(weight.rows.data())[i] = f32_to_bf16(normal(random));
  if (format == WeightFormat::f32)
    for (int64_t i = 0; i < n * k; ++i) reinterpret_cast<float*>(weight.rows.data())[i] = normal(random);
  weight.scales.resize(weight.n_blocks() * n);
  std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
  const float unit = format == WeightFormat::fp8 ? 0.0005f : 0.01f;
  for (int64_t row = 0; row < n; ++row)
    for (int64_t b = 0; b < weight.n_blocks(); ++b) {
      const bool fresh = row == 0 || (block_n > 0 && row % block_n == 0);
      weight.scales[row * weight.n_blocks() + b] =
          fresh ? unit * uniform(random) : weight.scales[(row - 1) * weight.n_blocks() + b];
    }
  return weight;
}

inline std::vector<int64_t> blocks_of(int64_t k, int64_t block, int64_t first = 0) {
  std::vector<int64_t> bounds{0};
  for (int64_t at = first ? first : block; at < k; at += block) bounds.push_back(at);
  bounds.push_back(k);
  return bounds;
}

}  // namespace sigmoe::testing
