// Kernels of steps of some to some hundred rows, against the kernels whose bits they promise.
#include <algorithm>

#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

TEST_CASE("cuda linear: weights held in registers, with the bits of the kernel that streams them") {
  if (!have_cuda()) return;
  const auto backend = cuda(DType::bf16);
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

// Steps of 48 to 256 tokens have a kernel of their own; 300 take the one for any number.
TEST_CASE("cuda experts: some hundred tokens have the bits of more") {
  if (!have_cuda()) return;
  const auto backend = cuda(DType::bf16);
  struct Case {
    int width, inner, n_experts, n_active;
    bool shared;
  };
  constexpr int kMany = 300;
  for (const Case& c :
       {Case{1024, 512, 24, 4, true}, Case{4096, 1024, 5, 2, true}, Case{512, 512, 3, 1, false}, Case{512, 1024, 0, 0, true}}) {
    std::vector<std::unique_ptr<LinearWeight>> owned;
    const auto make = [&](int64_t n, int64_t k, bool gate_up, uint64_t seed) -> const LinearWeight* {
      const HostWeight host = random_weight(WeightFormat::fp8, n, k, blocks_of(k, 128), 128, seed, gate_up);
      return owned.emplace_back(host.put(*backend)).get();
    };
    ExpertWeights weights;
    for (int e = 0; e < c.n_experts; ++e) {
      weights.gate_up.push_back(make(2 * c.inner, c.width, true, 100 + e));
      weights.down.push_back(make(c.width, c.inner, false, 500 + e));
    }
    if (c.shared) {
      weights.shared_gate_up = make(2 * c.inner, c.width, true, 91);
      weights.shared_down = make(c.width, c.inner, false, 92);
    }
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
      const OnDevice<float> in(*backend, {x.begin(), x.begin() + n_tokens * c.width}), device_scores(*backend, scores),
          out(*backend, std::vector<float>(static_cast<size_t>(n_tokens) * n_slots * c.width, kPoison));
      const OnDevice<int32_t> device_ids(*backend, ids), device_offsets(*backend, offsets), device_order(*backend, order);
      backend->experts(in.get(), weights, {device_ids.get(), device_scores.get(), device_offsets.get(), device_order.get()},
                       c.n_active, n_tokens, c.width, out.get());
      return out.read();
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
