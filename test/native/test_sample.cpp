#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "backend/registry.h"
#include "cpu/reference.h"
#include "cpu/sample.h"
#include "doctest/doctest.h"

using namespace sigmoe;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// One row with all its arrays.
struct Case {
  explicit Case(std::vector<float> logits) : logits(std::move(logits)), counts(this->logits.size(), 0) {}
  int vocab() const { return static_cast<int>(logits.size()); }

  std::vector<float> logits;
  std::vector<uint32_t> counts;
  SampleRow row;
  std::vector<int32_t> bias_ids, ban_ids;
  std::vector<float> bias_values;
  std::vector<uint32_t> mask;
};

struct Outcome {
  int32_t token = -1;
  float logprob = -7.0f;
  std::vector<int32_t> top_ids = std::vector<int32_t>(kMaxLogprobs, -7);
  std::vector<float> top_logprobs = std::vector<float>(kMaxLogprobs, -7.0f);
  std::vector<uint32_t> counts;
  bool operator==(const Outcome&) const = default;
};

Outcome run(const Case& c, bool fast) {
  Outcome out;
  out.counts = c.counts;
  SampleRow row = c.row;
  row.bias_end = static_cast<int32_t>(c.bias_ids.size());
  row.ban_end = static_cast<int32_t>(c.ban_ids.size());
  row.mask_row = c.mask.empty() ? -1 : 0;
  SampleArgs args;
  args.logits = c.logits.data();
  args.n_rows = 1;
  args.vocab_size = c.vocab();
  args.rows = &row;
  args.bias_ids = c.bias_ids.data();
  args.bias_values = c.bias_values.data();
  args.ban_ids = c.ban_ids.data();
  args.masks = c.mask.data();
  args.counts = out.counts.data();
  args.tokens = &out.token;
  args.logprobs = &out.logprob;
  args.top_ids = out.top_ids.data();
  args.top_logprobs = out.top_logprobs.data();
  if (fast) {
    SampleScratch scratch;
    sample_row(args, 0, scratch);
  } else {
    ReferenceBackend(BackendOptions{}).sample(args);
  }
  return out;
}

// Both samplers, which must agree in everything.
Outcome both(const Case& c) {
  const Outcome fast = run(c, true), naive = run(c, false);
  CHECK(fast.token == naive.token);
  CHECK(fast == naive);
  return fast;
}

std::vector<float> gaussian(int n, float spread, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

// Chi-square of `draws` tokens, one per position, against probabilities; bins expected below five are pooled.
void check_distribution(Case c, const std::vector<double>& probabilities, int draws) {
  std::vector<int> seen(probabilities.size());
  for (int i = 0; i < draws; ++i) {
    c.row.position = i;
    ++seen[run(c, true).token];
  }
  double chi = 0, pooled_expected = 0, pooled_seen = 0;
  int bins = 0;
  const auto add = [&](double expected, double found) {
    chi += (found - expected) * (found - expected) / expected;
    ++bins;
  };
  for (size_t id = 0; id < probabilities.size(); ++id) {
    const double expected = probabilities[id] * draws;
    if (probabilities[id] == 0.0) CHECK(seen[id] == 0);
    if (expected >= 5)
      add(expected, seen[id]);
    else
      pooled_expected += expected, pooled_seen += seen[id];
  }
  if (pooled_expected > 0) add(pooled_expected, pooled_seen);
  const double freedom = bins - 1;
  // Wilson-Hilferty: the cube root of chi / freedom is normal; 4 standard deviations.
  const double z = (std::cbrt(chi / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom));
  CAPTURE(chi);
  CAPTURE(bins);
  CHECK(z < 4.0);
}

std::vector<double> softmax(const std::vector<float>& x, double temperature) {
  const double highest = *std::max_element(x.begin(), x.end());
  std::vector<double> out;
  double total = 0;
  for (const float value : x) total += out.emplace_back(std::exp((value - highest) / temperature));
  for (double& p : out) p /= total;
  return out;
}

// Keeps the ids that `keep` accepts and renormalises.
template <typename Keep>
std::vector<double> restricted(std::vector<double> p, Keep keep) {
  double total = 0;
  for (size_t id = 0; id < p.size(); ++id) total += p[id] = keep(id) ? p[id] : 0.0;
  for (double& value : p) value /= total;
  return p;
}

}  // namespace

TEST_CASE("sample: Philox4x32-10 known answers") {
  using Words = std::array<uint32_t, 4>;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("sample: weights are exp to the precision they claim") {
  CHECK(sample_weight(0.0f) == uint64_t{1} << 40);
  CHECK(sample_weight(-kInf) == 0);
  CHECK(sample_weight(std::nanf("")) == 0);
  double worst = 0;
  for (float x = 0.0f; x > -12.0f; x -= 1e-4f) {
    const double exact = std::exp(static_cast<double>(x)) * kWeightOne;
    worst = std::max(worst, std::fabs(static_cast<double>(sample_weight(x)) / exact - 1.0));
  }
  CHECK(worst < 3e-7);
  for (float x = -12.0f; x > -50.0f; x -= 1e-3f)  // further down the rounding to an integer dominates
    CHECK(std::fabs(static_cast<double>(sample_weight(x)) - std::exp(static_cast<double>(x)) * kWeightOne) < 3.0);
}

TEST_CASE("sample: greedy takes the highest, the lowest id among equals") {
  Case c({1.0f, 3.0f, 2.0f, 3.0f});
  c.row.temperature = 0.0f;
  CHECK(both(c).token == 1);
  c.row.temperature = 1.0f;
  c.row.top_k = 1;
  CHECK(both(c).token == 1);
  c.row.top_k = 0;
  c.row.top_p = 0.0f;
  CHECK(both(c).token == 1);
  c.row.top_p = 1.0f;
  c.row.min_p = 1.0f;  // both maxima stay
  for (c.row.position = 0; c.row.position < 50; ++c.row.position) CHECK(both(c).token % 2 == 1);
}

TEST_CASE("sample: bans, bias and penalties, each by hand") {
  Case c({2.0f, 1.9f, -1.0f, 0.5f});
  c.row.temperature = 0.0f;
  c.ban_ids = {0};
  CHECK(both(c).token == 1);
  c.ban_ids = {0, 1, 0};
  CHECK(both(c).token == 3);
  c.ban_ids = {0};
  c.bias_ids = {0, 3};
  c.bias_values = {100.0f, 2.0f};  // a ban outranks a bias
  CHECK(both(c).token == 3);

  Case repetition({2.0f, 1.9f, -1.0f, -1.05f});
  repetition.row.temperature = 0.0f;
  repetition.row.repetition_penalty = 1.1f;
  repetition.counts[0] = 0x80000000u;  // in the prompt: 2.0 / 1.1 < 1.9
  CHECK(both(repetition).token == 1);
  repetition.counts[1] = 5;  // generated: divided once, however often
  CHECK(both(repetition).token == 0);
  repetition.ban_ids = {0, 1};
  repetition.counts[2] = 1;  // negative logits are multiplied: -1.1 < -1.05
  CHECK(both(repetition).token == 3);

  Case presence({2.0f, 1.9f});
  presence.row.temperature = 0.0f;
  presence.row.presence_penalty = 0.2f;
  presence.counts[0] = 0x80000000u;  // the prompt does not count
  CHECK(both(presence).token == 0);
  presence.counts[0] = 0x80000003u;
  CHECK(both(presence).token == 1);
  presence.row.presence_penalty = 0.0f;
  presence.row.frequency_penalty = 0.03f;
  CHECK(both(presence).token == 0);
  presence.counts[0] = 0x80000004u;
  CHECK(both(presence).token == 1);
}

TEST_CASE("sample: the token is counted in its row") {
  Case c({0.0f, 5.0f});
  c.row.temperature = 0.0f;
  c.counts[1] = 0x80000002u;
  CHECK(both(c).counts[1] == 0x80000003u);
}

TEST_CASE("sample: logits that are not numbers") {
  const float nan = std::nanf("");
  for (const float temperature : {0.0f, 1.0f}) {
    for (const std::vector<float>& logits :
         {std::vector<float>{nan, nan, nan}, std::vector<float>{-kInf, -kInf, -kInf}, std::vector<float>{nan, -kInf, nan}}) {
      Case c(logits);
      c.row.temperature = temperature;
      c.row.n_logprobs = 3;
      CHECK(both(c).token == 0);
      c.ban_ids = {1, 0, 0};
      CHECK(both(c).token == 2);
      c.ban_ids = {0, 1, 2};
      CHECK(both(c).token == 0);
      CHECK(std::isfinite(both(c).logprob));
    }
    Case one({nan, 1.0f, -kInf, 0.0f});
    one.row.temperature = temperature;
    one.row.top_p = 0.5f;
    one.row.n_logprobs = 4;
    CHECK(both(one).token == 1);
    Case infinite({1.0f, kInf, 2.0f, kInf});
    infinite.row.temperature = temperature;
    infinite.row.repetition_penalty = 0.5f;
    infinite.counts[1] = 1;
    CHECK(both(infinite).token % 2 == 1);
  }
}

TEST_CASE("sample: a vocabulary of one and of two") {
  Case one({-3.0f});
  one.row.n_logprobs = 5;
  const Outcome out = both(one);
  CHECK(out.token == 0);
  CHECK(out.logprob == 0.0f);
  CHECK(out.top_ids[0] == 0);
  CHECK(out.top_ids[1] == -1);
  check_distribution(Case({0.0f, std::log(3.0f)}), {0.25, 0.75}, 4000);
}

TEST_CASE("sample: logprobs are the log-softmax of the unmodified logits") {
  Case c(gaussian(320, 2.0f, 3));
  c.row.n_logprobs = 20;
  c.row.temperature = 0.3f;
  c.row.repetition_penalty = 2.0f;
  std::fill(c.counts.begin(), c.counts.end(), 1u);
  const Outcome out = both(c);
  const std::vector<double> p = softmax(c.logits, 1.0);
  CHECK(out.logprob == doctest::Approx(std::log(p[out.token])).epsilon(1e-5));
  std::vector<int32_t> order(320);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return c.logits[a] > c.logits[b]; });
  for (int i = 0; i < 20; ++i) {
    CHECK(out.top_ids[i] == order[i]);
    CHECK(out.top_logprobs[i] == doctest::Approx(std::log(p[order[i]])).epsilon(1e-5));
  }
  c.row.n_logprobs = 0;
  CHECK(both(c).top_ids[0] == -1);
  CHECK(both(c).logprob < 0.0f);
  c.row.n_logprobs = -1;
  CHECK(both(c).logprob == 0.0f);
}

TEST_CASE("sample: distributions") {
  Case c(gaussian(40, 1.5f, 11));
  c.row.seed = 99;
  constexpr int kDraws = 20000;
  check_distribution(c, softmax(c.logits, 1.0), kDraws);
  c.row.temperature = 0.6f;
  check_distribution(c, softmax(c.logits, 0.6), kDraws);

  std::vector<int> order(40), rank(40);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return c.logits[a] > c.logits[b]; });
  for (int i = 0; i < 40; ++i) rank[order[i]] = i;
  const std::vector<double> p = softmax(c.logits, 0.6);
  c.row.top_k = 5;
  const std::vector<double> top5 = restricted(p, [&](size_t id) { return rank[id] < 5; });
  check_distribution(c, top5, kDraws);

  // The smallest set of most likely tokens with cumulative probability >= p.
  const auto smallest = [&](const std::vector<double>& probabilities, double wanted) {
    double sum = 0;
    int n = 0;
    while (sum < wanted) sum += probabilities[order[n++]];
    return restricted(probabilities, [&](size_t id) { return rank[id] < n; });
  };
  c.row.top_p = 0.8f;
  check_distribution(c, smallest(top5, 0.8), kDraws);  // of the probabilities renormalised after top-k
  c.row.top_k = 0;
  check_distribution(c, smallest(p, 0.8), kDraws);
  c.row.top_p = 1.0f;
  c.row.min_p = 0.1f;
  check_distribution(c, restricted(p, [&](size_t id) { return p[id] >= 0.1 * p[order[0]]; }), kDraws);
}

TEST_CASE("sample: seeds and positions are independent streams") {
  Case a(std::vector<float>(1000, 0.0f)), b = a;
  b.row.seed = 1;
  int same_seed = 0, same_position = 0;
  int32_t last = -1;
  for (int i = 0; i < 2000; ++i) {
    a.row.position = b.row.position = i;
    const int32_t token = run(a, true).token;
    same_seed += token == run(b, true).token;
    same_position += token == last;
    last = token;
  }
  CHECK(same_seed < 20);  // two expected
  CHECK(same_position < 20);
  a.row.seed = uint64_t{1} << 32;  // the high half of the key matters as well
  CHECK(run(a, true).token != last);
}

TEST_CASE("sample: the fast sampler and the naive one agree on random requests") {
  std::mt19937_64 random(2024);
  const auto uniform = [&](float low, float high) { return std::uniform_real_distribution<float>(low, high)(random); };
  const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
  for (int i = 0; i < 3000; ++i) {
    CAPTURE(i);
    const int vocab = chance(0.1) ? 1 + static_cast<int>(random() % 4) : chance(0.1) ? 6144 : 320;
    Case c(gaussian(vocab, chance(0.2) ? 0.01f : uniform(0.5f, 12.0f), random()));
    if (chance(0.3))
      for (float& x : c.logits) x = std::round(x);  // many equal logits
    if (chance(0.1))
      for (float& x : c.logits)
        if (chance(0.3)) x = chance(0.5) ? -kInf : chance(0.5) ? kInf : std::nanf("");
    c.row.temperature = chance(0.15) ? 0.0f : uniform(0.05f, 3.0f);
    c.row.top_p = chance(0.4) ? 1.0f : uniform(0.0f, 1.0f);
    c.row.top_k = chance(0.4) ? 0 : static_cast<int32_t>(random() % (2 * vocab));
    c.row.min_p = chance(0.7) ? 0.0f : uniform(0.0f, 1.0f);
    c.row.seed = random();
    c.row.position = static_cast<int32_t>(random() % 131072);
    c.row.repetition_penalty = chance(0.5) ? 1.0f : uniform(0.5f, 2.0f);
    c.row.presence_penalty = chance(0.7) ? 0.0f : uniform(-2.0f, 2.0f);
    c.row.frequency_penalty = chance(0.7) ? 0.0f : uniform(-2.0f, 2.0f);
    c.row.n_logprobs = chance(0.5) ? -1 : static_cast<int32_t>(random() % 21);
    for (uint32_t& count : c.counts)
      if (chance(0.2)) count = (chance(0.5) ? 0x80000000u : 0u) | static_cast<uint32_t>(random() % 5);
    for (uint64_t n = random() % 4; n > 0; --n) c.ban_ids.push_back(static_cast<int32_t>(random() % vocab));
    for (uint64_t n = random() % 4; n > 0; --n) {
      c.bias_ids.push_back(static_cast<int32_t>(random() % vocab));
      c.bias_values.push_back(uniform(-20.0f, 20.0f));
    }
    if (chance(0.3)) {
      c.mask.resize(mask_words(vocab));
      for (uint32_t& word : c.mask) word = chance(0.5) ? 0u : static_cast<uint32_t>(random());
    }
    if (chance(0.1)) c.row.slot = -1;
    if (chance(0.1)) c.row.forced_token = static_cast<int32_t>(random() % vocab);
    const Outcome out = both(c);
    CHECK(out.token >= 0);
    CHECK(out.token < vocab);
  }
}

TEST_CASE("sample: a mask leaves only what it allows, whatever else is asked") {
  std::mt19937_64 random(5);
  for (const int vocab : {1, 31, 32, 33, 320, 6144}) {
    Case c(gaussian(vocab, 3.0f, 11));
    for (const float temperature : {0.0f, 1.0f, 50.0f})
      for (int draw = 0; draw < 50; ++draw) {
        std::vector<int32_t> allowed;
        for (int n = 1 + static_cast<int>(random() % 3); n > 0; --n) allowed.push_back(static_cast<int32_t>(random() % vocab));
        c.mask.assign(mask_words(vocab), 0);
        for (const int32_t id : allowed) c.mask[id / 32] |= 1u << (id % 32);
        c.row.temperature = temperature;
        c.row.position = draw;
        c.bias_ids = {0};
        c.bias_values = {100.0f};
        CHECK(std::count(allowed.begin(), allowed.end(), both(c).token) > 0);
      }
  }
}

TEST_CASE("sample: a forced token is taken, counted, and scored by the logits as they are") {
  Case c({0.0f, 1.0f, 2.0f, 3.0f});
  c.row.forced_token = 1;
  c.row.n_logprobs = 2;
  c.ban_ids = {1};
  const Outcome out = both(c);
  CHECK(out.token == 1);
  CHECK(out.counts == std::vector<uint32_t>{0, 1, 0, 0});
  CHECK(out.logprob == doctest::Approx(std::log(softmax(c.logits, 1.0)[1])).epsilon(1e-5));
  CHECK(out.top_ids[0] == 3);
  c.row.slot = -1;
  CHECK(both(c).counts == std::vector<uint32_t>(4, 0));
}

TEST_CASE("sample: the two agree over the full vocabulary, flat and peaked") {
  for (const float spread : {0.0f, 0.5f, 4.0f}) {
    Case c(gaussian(157184, spread, 17));
    c.row.repetition_penalty = 1.05f;
    c.row.n_logprobs = 20;
    for (int i = 0; i < 157184; i += 97) c.counts[i] = 0x80000001u;
    for (const auto& [temperature, top_p, top_k] :
         {std::tuple(0.6f, 0.95f, 20), std::tuple(1.0f, 1.0f, 0), std::tuple(1.0f, 0.9f, 0), std::tuple(1.5f, 0.99f, 5000),
          std::tuple(0.0f, 1.0f, 0)}) {
      c.row.temperature = temperature;
      c.row.top_p = top_p;
      c.row.top_k = top_k;
      ++c.row.position;
      both(c);
    }
  }
}

TEST_CASE("sample: counts of a sequence's history") {
  std::vector<uint32_t> counts = {7, 7, 7, 7};
  const int32_t prompt[] = {1, 1, 2}, generated[] = {2, 3, 3};
  ReferenceBackend(BackendOptions{}).reset_counts(counts.data(), 4, prompt, 3, generated, 3);
  CHECK(counts == std::vector<uint32_t>{0, 0x80000000u, 0x80000001u, 2});
}

TEST_CASE("sample: a chain gives the tokens of sampling one by one, ends at its first wrong draft and counts what it gave") {
  std::mt19937_64 random(77);
  const auto uniform = [&](float low, float high) { return std::uniform_real_distribution<float>(low, high)(random); };
  const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
  int n_accepted = 0, n_ended = 0;
  for (int round = 0; round < 400; ++round) {
    CAPTURE(round);
    const int vocab = chance(0.2) ? 5 : 320, n_chains = 1 + static_cast<int>(random() % 5);
    std::vector<SampleRow> rows;
    std::vector<float> logits;
    std::vector<uint32_t> counts(static_cast<size_t>(n_chains) * vocab);
    for (uint32_t& count : counts)
      if (chance(0.2)) count = (chance(0.5) ? 0x80000000u : 0u) | static_cast<uint32_t>(random() % 3);
    // What sampling one by one gives: a draft is right as long as it names the token that comes.
    std::vector<uint32_t> expected_counts = counts;
    std::vector<Outcome> expected;
    for (int c = 0; c < n_chains; ++c) {
      SampleRow row;
      row.slot = c;
      row.temperature = chance(0.3) ? 0.0f : uniform(0.3f, 1.5f);
      row.top_p = chance(0.5) ? 1.0f : uniform(0.3f, 1.0f);
      row.top_k = chance(0.5) ? 0 : 4;
      row.repetition_penalty = chance(0.5) ? 1.0f : uniform(1.0f, 2.0f);
      row.presence_penalty = chance(0.5) ? 0.0f : uniform(-1.0f, 2.0f);
      row.frequency_penalty = chance(0.5) ? 0.0f : uniform(-1.0f, 2.0f);
      row.seed = random();
      row.n_logprobs = chance(0.5) ? -1 : 3;
      bool alive = true;
      int32_t before = -1;
      for (int depth = static_cast<int>(random() % 6), i = 0; i <= depth; ++i) {
        Case one(gaussian(vocab, 2.0f, random()));
        one.counts.assign(expected_counts.begin() + c * vocab, expected_counts.begin() + (c + 1) * vocab);
        one.row = row;
        one.row.slot = 0;
        one.row.if_previous = -1;
        one.row.position = row.position = 100 + i;
        if (i > 0) row.if_previous = chance(0.8) && before >= 0 ? before : static_cast<int32_t>(random() % vocab);
        alive = alive && (i == 0 || row.if_previous == before);
        rows.push_back(row);
        logits.insert(logits.end(), one.logits.begin(), one.logits.end());
        Outcome out;
        if (alive)
          out = run(one, false);
        else
          out.token = -1, out.logprob = 0.0f, out.top_ids.assign(kMaxLogprobs, -1), out.top_logprobs.assign(kMaxLogprobs, 0.0f);
        if (alive) std::copy(out.counts.begin(), out.counts.end(), expected_counts.begin() + c * vocab);
        out.counts.clear();
        before = out.token;
        n_accepted += alive && i > 0;
        n_ended += !alive;
        expected.push_back(out);
      }
    }
    for (const char* kernels : {"reference", "generic"}) {
      CAPTURE(kernels);
      BackendOptions options;
      options.kernels = kernels;
      options.n_threads = 2;
      const auto backend = create_backend("cpu", options);
      const size_t n = rows.size();
      std::vector<int32_t> tokens(n), top_ids(n * kMaxLogprobs);
      std::vector<float> logprobs(n), top_logprobs(n * kMaxLogprobs);
      std::vector<uint32_t> after = counts;
      SampleArgs args;
      args.logits = logits.data();
      args.n_rows = static_cast<int>(n);
      args.vocab_size = vocab;
      args.rows = rows.data();
      args.counts = after.data();
      args.tokens = tokens.data();
      args.logprobs = logprobs.data();
      args.top_ids = top_ids.data();
      args.top_logprobs = top_logprobs.data();
      backend->sample(args);
      CHECK(after == expected_counts);
      for (size_t r = 0; r < n; ++r) {
        Outcome got;
        got.token = tokens[r];
        got.logprob = logprobs[r];
        got.top_ids.assign(top_ids.begin() + r * kMaxLogprobs, top_ids.begin() + (r + 1) * kMaxLogprobs);
        got.top_logprobs.assign(top_logprobs.begin() + r * kMaxLogprobs, top_logprobs.begin() + (r + 1) * kMaxLogprobs);
        CHECK(got == expected[r]);
      }
    }
  }
  CHECK(n_accepted > 500);
  CHECK(n_ended > 200);
}

TEST_CASE("copy_rows: picked rows to picked places, on every path") {
  std::vector<float> from(7 * 10);
  std::iota(from.begin(), from.end(), 0.0f);
  const std::vector<int32_t> from_ids{6, 0, 3}, to_ids{1, 4, 2};
  for (const char* kernels : {"reference", "generic"}) {
    CAPTURE(kernels);
    BackendOptions options;
    options.kernels = kernels;
    const auto backend = create_backend("cpu", options);
    std::vector<float> to(5 * 8, -1.0f), expected = to;
    backend->copy_rows(from.data() + 2, from_ids.data(), 10, to.data() + 1, to_ids.data(), 8, 3, 4);
    for (int i = 0; i < 3; ++i)
      for (int d = 0; d < 4; ++d) expected[to_ids[i] * 8 + 1 + d] = from[from_ids[i] * 10 + 2 + d];
    CHECK(to == expected);
    backend->copy_rows(from.data(), nullptr, 10, to.data(), nullptr, 8, 5, 8);
    for (int i = 0; i < 5; ++i)
      for (int d = 0; d < 8; ++d) CHECK(to[i * 8 + d] == from[i * 10 + d]);
  }
}
