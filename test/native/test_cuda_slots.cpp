// What experts of many rows leave behind: the backend keeps it in BF16, and whoever reads it, sums or bytes, must not notice.
// Without a device the case prints why and passes.
#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

TEST_CASE("cuda slots: sums and downloads see the same values, in plain and in recorded steps") {
  on_cuda([](Backend& backend, DType) {
    constexpr int kTokens = 70, kActive = 2, kExperts = 6, kInner = 128, kSlots = kActive + 1;
    for (const int width : {512, 264, 300}) {  // packed by the norm behind; not; rows that are no whole 16 bytes
      CAPTURE(width);
      std::vector<std::unique_ptr<LinearWeight>> owned;
      const auto make = [&](int64_t n, int64_t k, bool gate_up, uint64_t seed) {
        return owned.emplace_back(random_weight(WeightFormat::fp8, n, k, blocks_of(k, 128), 128, seed, gate_up).put(backend))
            .get();
      };
      ExpertWeights weights;
      for (int e = 0; e < kExperts; ++e) {
        weights.gate_up.push_back(make(2 * kInner, width, true, 40 + e));
        weights.down.push_back(make(width, kInner, false, 60 + e));
      }
      weights.shared_gate_up = make(2 * kInner, width, true, 80);
      weights.shared_down = make(width, kInner, false, 81);
      std::vector<int32_t> ids, offsets(kExperts + 1), order;
      for (int i = 0; i < kTokens * kActive; ++i) ids.push_back((i / kActive + i % kActive * 2) % kExperts);
      for (int e = 0; e < kExperts; ++e) {
        for (int i = 0; i < kTokens * kActive; ++i)
          if (ids[i] == e) order.push_back(i);
        offsets[e + 1] = static_cast<int32_t>(order.size());
      }
      const std::vector<float> before = gaussian(kTokens * width, 3);
      const OnDevice<float> x(backend, gaussian(kTokens * width, 1)), shares(backend, gaussian(kTokens * kActive, 2)),
          norm(backend, gaussian(width, 4)), slots(backend, std::vector<float>(kTokens * kSlots * width, kPoison)),
          normed(backend, std::vector<float>(kTokens * width, kPoison)), residual(backend, before);
      const OnDevice<int32_t> device_ids(backend, ids), device_offsets(backend, offsets), device_order(backend, order);
      const auto experts = [&] {
        backend.experts(x.get(), weights, {device_ids.get(), shares.get(), device_offsets.get(), device_order.get()}, kActive,
                        kTokens, width, slots.get());
      };
      const auto add = [&] {
        backend.upload(residual.get(), before.data(), before.size() * sizeof(float));
        backend.reduce_add_rms_norm(residual.get(), slots.get(), kSlots, nullptr, norm.get(), 1e-6f, kTokens, width,
                                    normed.get());
        return std::pair{residual.read(), normed.read()};
      };
      experts();
      const std::vector<float> values = slots.read();
      CHECK(slots.read() == values);
      const auto read_first = add();
      experts();
      CHECK(add() == read_first);
      std::vector<float> sums = before;
      for (int t = 0; t < kTokens; ++t)
        for (int s = 0; s < kSlots; ++s)
          for (int i = 0; i < width; ++i) sums[t * width + i] += values[(t * kSlots + s) * width + i];
      CHECK(relative_error(read_first.first, sums) < Tolerance::kFloat32);
      for (int run = 0; run < 4; ++run) {
        CAPTURE(run);
        backend.upload(slots.get(), std::vector<float>(values.size(), kPoison).data(), values.size() * sizeof(float));
        backend.run_recorded(width, experts);
        CHECK((run % 2 == 0 ? add() == read_first : slots.read() == values));
      }
    }
  });
}
