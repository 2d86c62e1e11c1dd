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
  bool some_missing, scaled_by_rows = false;

  int n_slots() const { return n_active + (n_active == 0 || shared_inner > 0 ? 1 : 0); }
};

struct ExpertSet {
  std::vector<std::unique_ptr<LinearWeight>> owned;
  ExpertWeights weights;
};

ExpertSet make_experts(Backend& backend, const ExpertCase& c) {
  ExpertSet set;
  const auto make = [&](WeightFormat format, int64_t n, int64_t k, bool gate_up, uint64_t seed) -> const LinearWeight* {
    using enum WeightFormat;
    const bool by_rows = format == int8 || (format == fp8 && c.scaled_by_rows);
    const std::vector<int64_t> bounds = by_rows                           ? blocks_of(k, k)
                                        : format == fp8 || format == int4 ? blocks_of(k, 128)
                                                                          : std::vector<int64_t>{};
    const HostWeight host = random_weight(format, n, k, bounds, format == fp8 && !by_rows ? 128 : 1, seed, gate_up);
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

// A step's rows and choices; those of fewer tokens are the first of those of more. Crowded: all at the same experts.
struct Step {
  int n_tokens;
  std::vector<float> x, weights;
  std::vector<int32_t> ids, offsets, order;
};

Step make_step(const ExpertCase& c, int n_tokens, bool crowded) {
  Step step{n_tokens, on_fp8_grid(gaussian(n_tokens * c.width, 21), c.width), gaussian(n_tokens * c.n_active, 22), {}, {}, {}};
  std::vector<int32_t>& ids = step.ids;
  for (int t = 0; t < n_tokens; ++t)
    for (int a = 0; a < c.n_active; ++a) ids.push_back(crowded ? a : (t * 5 + a * 3 + t / 7) % c.n_experts);
  for (int t = 0; t < n_tokens; ++t)  // distinct within a token
    for (int a = 1; a < c.n_active; ++a)
      while (std::find(&ids[t * c.n_active], &ids[t * c.n_active + a], ids[t * c.n_active + a]) != &ids[t * c.n_active + a])
        ids[t * c.n_active + a] = (ids[t * c.n_active + a] + 1) % c.n_experts;
  step.offsets.resize(c.n_experts + 1);
  for (int e = 0; e < c.n_experts; ++e) {
    for (size_t i = 0; i < ids.size(); ++i)
      if (ids[i] == e) step.order.push_back(static_cast<int32_t>(i));
    step.offsets[e + 1] = static_cast<int32_t>(step.order.size());
  }
  return step;
}

struct StepOnDevice {
  Backend& backend;
  const ExpertCase& expert_case;
  int n_tokens;
  OnDevice<float> x, weights, out;
  OnDevice<int32_t> ids, offsets, order;

  StepOnDevice(Backend& backend, const ExpertCase& c, const Step& step)
      : backend(backend),
        expert_case(c),
        n_tokens(step.n_tokens),
        x(backend, step.x),
        weights(backend, step.weights),
        out(backend, std::vector<float>(static_cast<size_t>(n_tokens) * c.n_slots() * c.width, kPoison)),
        ids(backend, step.ids),
        offsets(backend, step.offsets),
        order(backend, step.order) {}

  std::vector<float> run(const ExpertWeights& experts) const {
    const Routing routing{ids.get(), weights.get(), offsets.get(), order.get()};
    backend.experts(x.get(), experts, routing, expert_case.n_active, n_tokens, expert_case.width, out.get());
    return out.read();
  }
};

}  // namespace

// Shared memory keeps what the kernel before left in it, so what a kernel reads without having written it differs from one run
// to the next. Inner widths that fill no block of columns leave the most of it beside what is computed. Every repeat has an
// order of its own.
TEST_CASE("cuda experts: a step has the same bits whatever ran before it") {
  on_cuda([](Backend& backend, DType) {
    using enum WeightFormat;
    const std::vector<ExpertCase> cases = {{"bf16 narrow", 64, 32, 64, 16, 4, bf16, bf16, false},
                                           {"bf16 wide", 256, 224, 96, 6, 2, bf16, bf16, false},
                                           {"fp8", 256, 128, 128, 16, 4, fp8, fp8, false},
                                           {"fp8 ragged", 192, 160, 160, 8, 3, fp8, fp8, false},
                                           {"fp8 scaled by rows", 192, 32, 160, 8, 3, fp8, fp8, false, true},
                                           {"int4", 256, 128, 128, 6, 2, int4, int4, false}};
    struct Run {
      const ExpertCase* expert_case;
      const ExpertWeights* weights;
      std::unique_ptr<StepOnDevice> step;
      std::vector<float> first;
    };
    std::vector<ExpertSet> sets;
    for (const ExpertCase& c : cases) sets.push_back(make_experts(backend, c));
    std::vector<Run> runs;
    for (const int n_tokens : sizes<int>({700, 300, 17, 256, 64}, {256, 56}))
      for (size_t i = 0; i < cases.size(); ++i)
        runs.push_back({&cases[i],
                        &sets[i].weights,
                        std::make_unique<StepOnDevice>(backend, cases[i], make_step(cases[i], n_tokens, true)),
                        {}});
    std::mt19937_64 random(3);
    for (int repeat = 0; repeat < (small_run() ? 2 : 20); ++repeat) {
      std::shuffle(runs.begin(), runs.end(), random);
      for (Run& run : runs) {
        const std::vector<float> got = run.step->run(*run.weights);
        if (run.first.empty()) run.first = got;
        const ExpertCase& c = *run.expert_case;
        const size_t at = std::mismatch(got.begin(), got.end(), run.first.begin()).first - got.begin(), row = at / c.width;
        CAPTURE(c.name);
        CAPTURE(run.step->n_tokens);
        CAPTURE(repeat);
        INFO("token ", row / c.n_slots(), ", slot ", row % c.n_slots(), ", column ", at % c.width);
        CHECK(at == got.size());
      }
    }
  });
}

TEST_CASE("cuda experts: formats, shared experts, empty and crowded lists, missing shares") {
  std::map<std::string, std::vector<float>> known;  // the reference's results, of all backends
  on_cuda([&](Backend& backend, DType compute) {
    using enum WeightFormat;
    for (const ExpertCase& c :
         {ExpertCase{"fp8", 256, 128, 128, 16, 4, fp8, fp8, false},
          ExpertCase{"fp8 real width", 1024, 512, 512, 8, 2, fp8, fp8, false},
          ExpertCase{"fp8 four slices of k", 4096, 512, 0, 2, 1, fp8, fp8, false},
          ExpertCase{"bf16 four slices of k", 4096, 256, 0, 2, 1, bf16, bf16, false},
          ExpertCase{"fp8 pairs of blocks", 512, 256, 256, 2, 2, fp8, fp8, false},
          ExpertCase{"fp8 missing shares", 512, 512, 512, 6, 2, fp8, fp8, true},
          ExpertCase{"fp8 ragged", 192, 160, 160, 8, 3, fp8, fp8, false},
          ExpertCase{"fp8 scaled by rows", 192, 160, 32, 8, 3, fp8, fp8, false, true},
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
      std::vector<float> together[3];  // the most rows that have one kernel on every card, which come first
      for (const int n_tokens : sizes<int>({40, 1, 2, 3, 8, 17, 150, 48, 64, 77, 300, 256}, {24, 2, 56, 300, 256}))
        for (const bool crowded : {false, true}) {
          if (n_tokens > 200 && c.width > 1000) continue;  // the reference takes its time
          CAPTURE(c.name);
          CAPTURE(n_tokens);
          CAPTURE(crowded);
          Step step = make_step(c, n_tokens, crowded);
          std::vector<float>& expected = known[std::string(c.name) + std::to_string(n_tokens) + (crowded ? "crowded" : "")];
          const bool fresh = expected.empty();
          expected.resize(static_cast<size_t>(n_tokens) * c.n_slots() * c.width);
          if (fresh)
            reference()->experts(step.x.data(), on_host.weights,
                                 {step.ids.data(), step.weights.data(), step.offsets.data(), step.order.data()}, c.n_active,
                                 n_tokens, c.width, expected.data());
          const std::vector<float> got = StepOnDevice(backend, c, step).run(on_device.weights);
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
  for (int i = 0, e = 0, n = 0; i < kTokens * kActive; ++i, ++n) {  // expert e has 16 (e % 9 + 1) slots, the last has the rest
    if (n == 16 * (e % 9 + 1) && e + 1 < kExperts) ++e, n = 0;
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
