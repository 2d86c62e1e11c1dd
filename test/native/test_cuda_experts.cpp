// The experts of the CUDA backend against the reference: formats, shared experts, empty and crowded lists, missing shares.
#include <map>

#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

constexpr double kFp8Inner = 0.04;  // expert activations rounded to E4M3 between the two products: 2^-4 at most each

struct ExpertCase {
  std::string name;
  int width, inner, shared_inner, n_experts, n_active;
  WeightFormat format, shared_format;
  bool some_missing;
};

struct ExpertSet {
  std::vector<std::unique_ptr<LinearWeight>> owned;
  ExpertWeights weights;
};

ExpertSet make_experts(Backend& backend, const ExpertCase& c) {
  ExpertSet set;
  const auto make = [&](WeightFormat format, int64_t n, int64_t k, bool gate_up, uint64_t seed) -> const LinearWeight* {
    using enum WeightFormat;
    const std::vector<int64_t> bounds = format == fp8 || format == int4 ? blocks_of(k, 128)
                                        : format == int8                ? blocks_of(k, k)
                                                                        : std::vector<int64_t>{};
    const HostWeight host = random_weight(format, n, k, bounds, format == fp8 ? 128 : 1, seed, gate_up);
    return set.owned.emplace_back(host.put(backend)).get();
  };
  for (int e = 0; e < c.n_experts; ++e) {
    const bool missing = c.some_missing && e % 3 == 1;
    set.weights.gate_up.push_back(missing ? nullptr : make(c.format, 2 * c.inner, c.width, true, 100 + e));
    set.weights.down.push_back(missing ? nullptr : make(c.format, c.width, c.inner, false, 500 + e));
  }
  if (c.shared_inner > 0) {
    set.weights.shared_gate_up = make(c.shared_format, 2 * c.shared_inner, c.width, true, 91);
    set.weights.shared_down = make(c.shared_format, c.width, c.shared_inner, false, 92);
  }
  return set;
}

}  // namespace

TEST_CASE("cuda experts: formats, shared experts, empty and crowded lists, missing shares") {
  std::map<std::string, std::vector<float>> known;  // the reference's results, of all backends
  on_cuda([&](Backend& backend, DType compute) {
    using enum WeightFormat;
    for (const ExpertCase& c :
         {ExpertCase{"fp8", 256, 128, 128, 16, 4, fp8, fp8, false},
          ExpertCase{"fp8 real width", 1024, 512, 512, 8, 2, fp8, fp8, false},
          ExpertCase{"fp8 four slices of k", 4096, 512, 0, 2, 1, fp8, fp8, false},
          ExpertCase{"bf16 four slices of k", 4096, 256, 0, 2, 1, bf16, bf16, false},
          ExpertCase{"fp8 missing shares", 512, 512, 512, 6, 2, fp8, fp8, true},
          ExpertCase{"fp8 ragged", 192, 160, 160, 8, 3, fp8, fp8, false},
          ExpertCase{"bf16", 64, 32, 64, 16, 4, bf16, bf16, false}, ExpertCase{"f32", 50, 20, 20, 4, 2, f32, f32, false},
          ExpertCase{"int4", 256, 128, 128, 6, 2, int4, int4, false},
          ExpertCase{"int8", 256, 128, 128, 6, 2, int8, int8, false},
          ExpertCase{"bf16 shared", 256, 128, 256, 6, 2, fp8, bf16, false},
          ExpertCase{"no shared", 64, 32, 0, 6, 2, bf16, bf16, false},
          ExpertCase{"missing shares", 64, 32, 32, 6, 2, bf16, bf16, true},
          ExpertCase{"dense only", 128, 0, 384, 0, 0, fp8, fp8, false},
          ExpertCase{"nothing", 64, 0, 0, 0, 0, fp8, fp8, false}}) {
      if (small_run() && compute == DType::f32 && c.width > 256) continue;
      const ExpertSet on_device = make_experts(backend, c), on_host = make_experts(*reference(), c);
      const int n_slots = c.n_active + (c.n_active == 0 || c.shared_inner > 0 ? 1 : 0);
      std::vector<float> together[3];  // the most rows that have one kernel on every card, which come first
      for (const int n_tokens : sizes<int>({40, 1, 2, 3, 8, 17, 150, 48, 64, 77, 300, 256}, {24, 2, 56, 256}))
        for (const bool crowded : {false, true}) {
          if (n_tokens > 200 && c.width > 1000) continue;  // the reference takes its time
          CAPTURE(c.name);
          CAPTURE(n_tokens);
          CAPTURE(crowded);
          const std::vector<float> x = on_fp8_grid(gaussian(n_tokens * c.width, 21), c.width);
          std::vector<int32_t> ids, offsets(c.n_experts + 1), order;
          std::vector<float> weights = gaussian(n_tokens * c.n_active, 22);
          for (int t = 0; t < n_tokens; ++t)
            for (int a = 0; a < c.n_active; ++a) ids.push_back(crowded ? a : (t * 5 + a * 3 + t / 7) % c.n_experts);
          for (int t = 0; t < n_tokens; ++t)  // distinct within a token
            for (int a = 1; a < c.n_active; ++a)
              while (std::find(&ids[t * c.n_active], &ids[t * c.n_active + a], ids[t * c.n_active + a]) !=
                     &ids[t * c.n_active + a])
                ids[t * c.n_active + a] = (ids[t * c.n_active + a] + 1) % c.n_experts;
          for (int e = 0; e < c.n_experts; ++e) {
            for (size_t i = 0; i < ids.size(); ++i)
              if (ids[i] == e) order.push_back(static_cast<int32_t>(i));
            offsets[e + 1] = static_cast<int32_t>(order.size());
          }
          std::vector<float>& expected = known[std::string(c.name) + std::to_string(n_tokens) + (crowded ? "crowded" : "")];
          const bool fresh = expected.empty();
          expected.resize(static_cast<size_t>(n_tokens) * n_slots * c.width);
          if (fresh)
            reference()->experts(x.data(), on_host.weights, {ids.data(), weights.data(), offsets.data(), order.data()},
                                 c.n_active, n_tokens, c.width, expected.data());
          const OnDevice<float> in(backend, x), device_weights(backend, weights),
              out(backend, std::vector<float>(expected.size(), kPoison));
          const OnDevice<int32_t> device_ids(backend, ids), device_offsets(backend, offsets), device_order(backend, order);
          backend.experts(in.get(), on_device.weights,
                          {device_ids.get(), device_weights.get(), device_offsets.get(), device_order.get()}, c.n_active,
                          n_tokens, c.width, out.get());
          const std::vector<float> got = out.read();
          const bool fp8_inner = n_tokens >= 48 && (c.format == fp8 || c.shared_format == fp8);
          CHECK(relative_error(got, expected) < bound(compute, fp8_inner ? kFp8Inner : Tolerance::kBf16Experts));
          if (!crowded) continue;
          std::vector<float>& all = together[n_tokens < 48 ? 0 : n_tokens < 192 ? 1 : 2];
          if (all.empty())
            all = got;
          else  // the same tokens and choices among more: the same bits
            CHECK(std::equal(got.begin(), got.end(), all.begin()));
        }
    }
  });
}

// Tiles of rows come in every multiple of 16 up to 128, in more than one tile for the longest lists; a row's bits are the same
// in each of them.
TEST_CASE("cuda experts: lists of every length of a tile, and the same rows in shorter ones") {
  constexpr int kTokens = 320, kActive = 4, kExperts = 16, kWidth = 512;
  const ExpertCase c{"fp8 lists", kWidth, 256, 0, kExperts, kActive, WeightFormat::fp8, WeightFormat::fp8, false};
  std::vector<int32_t> ids(kTokens * kActive);
  for (int i = 0, e = 0, n = 0; i < kTokens * kActive; ++i, ++n) {  // expert e has 16 (e % 8 + 1) slots, the last has the rest
    if (n == 16 * (e % 8 + 1) && e + 1 < kExperts) ++e, n = 0;
    ids[i % kTokens * kActive + i / kTokens] = e;
  }
  const std::vector<float> x = on_fp8_grid(gaussian(kTokens * kWidth, 21), kWidth), all_weights = gaussian(ids.size(), 22);
  const auto run = [&](Backend& backend, const ExpertWeights& experts, int n_tokens) {
    std::vector<int32_t> offsets(kExperts + 1), order;
    for (int e = 0; e < kExperts; ++e) {
      for (int i = 0; i < n_tokens * kActive; ++i)
        if (ids[i] == e) order.push_back(i);
      offsets[e + 1] = static_cast<int32_t>(order.size());
    }
    const OnDevice<float> in(backend, x), weights(backend, all_weights),
        out(backend, std::vector<float>(static_cast<size_t>(n_tokens) * kActive * kWidth, kPoison));
    const OnDevice<int32_t> device_ids(backend, ids), device_offsets(backend, offsets), device_order(backend, order);
    backend.experts(in.get(), experts, {device_ids.get(), weights.get(), device_offsets.get(), device_order.get()}, kActive,
                    n_tokens, kWidth, out.get());
    return out.read();
  };
  const ExpertSet on_host = make_experts(*reference(), c);
  const std::vector<float> expected = run(*reference(), on_host.weights, kTokens);
  on_cuda([&](Backend& backend, DType compute) {
    const ExpertSet set = make_experts(backend, c);
    const std::vector<float> whole = run(backend, set.weights, kTokens);
    CHECK(relative_error(whole, expected) < bound(compute, kFp8Inner));
    for (const int n_tokens : {311, 296, 257, 256}) {  // 256 on Hopper: another kernel of the same bits
      CAPTURE(n_tokens);
      const std::vector<float> part = run(backend, set.weights, n_tokens);
      CHECK(std::equal(part.begin(), part.end(), whole.begin()));
    }
  });
}
