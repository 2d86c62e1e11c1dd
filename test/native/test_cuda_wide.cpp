// Kernels of steps of some to some hundred rows, against the kernels whose bits they promise.
#include <algorithm>
#include <numeric>

#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

std::unique_ptr<Backend> device() {
  for (const DeviceReport& report : list_devices())
    if (report.device == "cuda") {
      if (report.available) {
        BackendOptions options;
        options.compute = DType::bf16;
        return create_backend("cuda", options);
      }
      std::printf("cuda steps of some rows: skipped, %s\n", report.detail.c_str());
    }
  return nullptr;
}

template <typename T>
DeviceBuffer put(Backend& backend, const std::vector<T>& values) {
  DeviceBuffer buffer = backend.alloc(std::max<size_t>(1, values.size()) * sizeof(T), "test data");
  backend.upload(buffer.data(), values.data(), values.size() * sizeof(T));
  return buffer;
}

std::vector<float> get(Backend& backend, const DeviceBuffer& buffer, size_t n) {
  std::vector<float> values(n);
  backend.download(values.data(), buffer.data(), n * sizeof(float));
  return values;
}

std::vector<float> linear(Backend& backend, const LinearWeight& weight, const std::vector<float>& x, int rows, int64_t n) {
  const DeviceBuffer in = put(backend, x), out = put(backend, std::vector<float>(rows * n, -12345.0f));
  backend.linear(in.as<float>(), weight, rows, out.as<float>());
  return get(backend, out, rows * n);
}

}  // namespace

TEST_CASE("cuda linear: weights held in registers, with the bits of the kernel that streams them") {
  const auto backend = device();
  if (!backend) return;
  constexpr int kRows = 23, kMany = 13000;  // too many for the registers of any GPU
  for (const int k : {2048, 4096}) {
    const HostWeight host = random_weight(WeightFormat::fp8, kMany, k, blocks_of(k, 128), 128, 11);
    const std::vector<float> x = gaussian(kRows * k, 3), streamed = linear(*backend, *host.put(*backend), x, kRows, kMany);
    for (const int n : {1, 16, 1000, 2560, 5120}) {
      HostWeight part = host;
      part.desc.n = n;
      const auto weight = part.put(*backend);
      for (const int rows : {5, 7, 8, 9, 16, 17, 23})
        for (const int first : {0, kRows - rows}) {
          CAPTURE(k);
          CAPTURE(n);
          CAPTURE(rows);
          const std::vector<float> got =
              linear(*backend, *weight, {x.begin() + first * k, x.begin() + (first + rows) * k}, rows, n);
          bool same = true;
          for (int row = 0; row < rows; ++row)
            same = same && std::equal(got.begin() + row * n, got.begin() + (row + 1) * n,
                                      streamed.begin() + static_cast<size_t>(first + row) * kMany);
          CHECK(same);
        }
    }
  }
}

// Weights of whole blocks of 128 rows go to shared memory at once where they fit; half a block more, and they are streamed.
TEST_CASE("cuda linear: weights held in shared memory, with the bits of the kernel that streams them") {
  const auto backend = device();
  if (!backend) return;
  for (const auto& [n, k] : {std::pair<int, int>{5120, 4096}, {4096, 4096}, {4096, 2048}, {2560, 4096}, {128, 1280}}) {
    constexpr int kRows = 300;
    const int more = n + 64;
    const HostWeight host = random_weight(WeightFormat::fp8, more, k, blocks_of(k, 128), 128, 11);
    HostWeight part = host;
    part.desc.n = n;
    const auto streamed_weight = host.put(*backend), weight = part.put(*backend);
    const std::vector<float> x = gaussian(kRows * k, 3);
    for (const int rows : {24, 31, 48, 64, 96, 100, 128, 129, 200, 256, 300}) {
      CAPTURE(n);
      CAPTURE(k);
      CAPTURE(rows);
      const std::vector<float> some(x.begin(), x.begin() + static_cast<size_t>(rows) * k);
      const std::vector<float> streamed = linear(*backend, *streamed_weight, some, rows, more),
                               got = linear(*backend, *weight, some, rows, n);
      bool same = true;
      for (int row = 0; row < rows; ++row)
        same = same && std::equal(got.begin() + static_cast<size_t>(row) * n, got.begin() + static_cast<size_t>(row + 1) * n,
                                  streamed.begin() + static_cast<size_t>(row) * more);
      CHECK(same);
    }
  }
}

// Steps of 48 to 256 tokens have a kernel of their own; 300 take the one for any number.
TEST_CASE("cuda experts: some hundred tokens have the bits of more") {
  const auto backend = device();
  if (!backend) return;
  struct Case {
    int width, inner, n_experts, n_active;
    bool shared;
  };
  constexpr int kMany = 300;
  for (const Case& c :
       {Case{1024, 512, 24, 4, true}, Case{4096, 1024, 5, 2, true}, Case{512, 512, 3, 1, false}, Case{512, 1024, 0, 0, true}}) {
    std::vector<std::unique_ptr<LinearWeight>> owned;
    const auto make = [&](int64_t n, int64_t k, bool gate_up, uint64_t seed) -> const LinearWeight* {
      return owned.emplace_back(random_weight(WeightFormat::fp8, n, k, blocks_of(k, 128), 128, seed, gate_up).put(*backend))
          .get();
    };
    ExpertWeights weights;
    for (int e = 0; e < c.n_experts; ++e) {
      weights.gate_up.push_back(make(2 * c.inner, c.width, true, 100 + e));
      weights.down.push_back(make(c.width, c.inner, false, 500 + e));
    }
    if (c.shared)
      weights.shared_gate_up = make(2 * c.inner, c.width, true, 91), weights.shared_down = make(c.width, c.inner, false, 92);
    const std::vector<float> x = gaussian(kMany * c.width, 21), scores = gaussian(kMany * c.n_active, 22);
    const int n_slots = c.n_active + (c.shared ? 1 : 0);
    const auto run = [&](int n_tokens) {
      std::vector<int32_t> ids, offsets(c.n_experts + 1), order;
      for (int t = 0; t < n_tokens; ++t)
        for (int a = 0; a < c.n_active; ++a) ids.push_back((t * t / 3 + a) % std::max(1, c.n_experts - t % 2));
      for (int e = 0; e < c.n_experts; ++e) {
        for (size_t i = 0; i < ids.size(); ++i)
          if (ids[i] == e) order.push_back(static_cast<int32_t>(i));
        offsets[e + 1] = static_cast<int32_t>(order.size());
      }
      const size_t n = static_cast<size_t>(n_tokens) * n_slots * c.width;
      const DeviceBuffer in = put(*backend, std::vector<float>(x.begin(), x.begin() + n_tokens * c.width)),
                         device_ids = put(*backend, ids), device_offsets = put(*backend, offsets),
                         device_order = put(*backend, order), device_scores = put(*backend, scores),
                         out = put(*backend, std::vector<float>(n, -12345.0f));
      backend->experts(
          in.as<float>(), weights,
          {device_ids.as<int32_t>(), device_scores.as<float>(), device_offsets.as<int32_t>(), device_order.as<int32_t>()},
          c.n_active, n_tokens, c.width, out.as<float>());
      return get(*backend, out, n);
    };
    const std::vector<float> many = run(kMany);
    for (const int n_tokens : {48, 63, 64, 128, 131, 255, 256}) {
      CAPTURE(c.width);
      CAPTURE(n_tokens);
      const std::vector<float> some = run(n_tokens);
      CHECK(std::equal(some.begin(), some.end(), many.begin()));
    }
  }
}
