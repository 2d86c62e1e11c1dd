// Kernel sample on the twin, checks on, against the naive reference: every setting at random, ties, tails, chains, masks,
// numbers that are none, 1 to 48 cores. Tokens and counts must be the very ones; log-probabilities may differ by a rounding of
// ln.
#include "ascend/device/sample_numbers.h"
#include "ascend/host/tiling_rows.h"
#include "ascend/host/tiling_sample.h"
#include "cpu/reference.h"
#include "cpu/sample.h"
#include "kernel_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;

extern "C" __global__ __aicore__ void sigmoe_sample(GM_ADDR logits, GM_ADDR rows, GM_ADDR bias_ids, GM_ADDR bias_values,
                                                    GM_ADDR ban_ids, GM_ADDR masks, GM_ADDR counts, GM_ADDR tokens,
                                                    GM_ADDR logprobs, GM_ADDR top_ids, GM_ADDR top_logprobs, GM_ADDR workspace,
                                                    SampleTiling tiling);

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Request {
  int vocab = 0;
  std::vector<SampleRow> rows;
  std::vector<float> logits, bias_values;
  std::vector<int32_t> bias_ids, ban_ids;
  std::vector<uint32_t> masks, counts;

  void add(SampleRow row, const std::vector<float>& values) {
    vocab = static_cast<int>(values.size());
    rows.push_back(row);
    logits.insert(logits.end(), values.begin(), values.end());
  }
};

struct Result {
  std::vector<int32_t> tokens, top_ids;
  std::vector<float> logprobs, top_logprobs;
  std::vector<uint32_t> counts;
};

Result expected_of(const Request& r) {
  const size_t n = r.rows.size();
  Result out{std::vector<int32_t>(n), std::vector<int32_t>(n * kMaxLogprobs), std::vector<float>(n),
             std::vector<float>(n * kMaxLogprobs), r.counts};
  SampleArgs args;
  args.logits = r.logits.data();
  args.n_rows = static_cast<int>(n);
  args.vocab_size = r.vocab;
  args.rows = r.rows.data();
  args.bias_ids = r.bias_ids.data();
  args.bias_values = r.bias_values.data();
  args.ban_ids = r.ban_ids.data();
  args.masks = r.masks.data();
  args.counts = out.counts.data();
  args.tokens = out.tokens.data();
  args.logprobs = out.logprobs.data();
  args.top_ids = out.top_ids.data();
  args.top_logprobs = out.top_logprobs.data();
  reference_backend()->sample(args);
  return out;
}

Result on_twin(const Request& r, const Cores& cores) {
  const size_t n = r.rows.size();
  const SampleTiling tiling = make_sample_tiling(static_cast<int>(n), r.vocab);
  Gm<float> logits(r.logits), bias_values(r.bias_values), logprobs(n, -7.0f), top_logprobs(n * kMaxLogprobs, -7.0f),
      workspace(sample_workspace_bytes(tiling, cores) / sizeof(float), NAN);
  Gm<SampleRow> rows(r.rows);
  Gm<int32_t> bias_ids(r.bias_ids), ban_ids(r.ban_ids), tokens(n, -7), top_ids(n * kMaxLogprobs, -7);
  Gm<uint32_t> masks(r.masks), counts(r.counts);
  twin::launch(twin::Kind::aiv, sample_blocks(tiling, cores), [&] {
    sigmoe_sample(logits.address(), rows.address(), bias_ids.address(), bias_values.address(), ban_ids.address(),
                  masks.address(), counts.address(), tokens.address(), logprobs.address(), top_ids.address(),
                  top_logprobs.address(), workspace.address(), tiling);
  });
  return {tokens.values(), top_ids.values(), logprobs.values(), top_logprobs.values(), counts.values()};
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < b.size(); ++i)
    if (a[i] != b[i] && !(std::abs(a[i] - b[i]) <= 1e-6f * std::max(1.0f, std::abs(b[i])))) return false;
  return true;
}

void check(const Request& request, const Cores& cores) {
  const Result expected = expected_of(request), result = on_twin(request, cores);
  CHECK(result.tokens == expected.tokens);
  CHECK(result.top_ids == expected.top_ids);
  CHECK(result.counts == Gm<uint32_t>(expected.counts).values());
  CHECK(close(result.logprobs, expected.logprobs));
  CHECK(close(result.top_logprobs, expected.top_logprobs));
}

// A request of one row.
struct One : Request {
  explicit One(const std::vector<float>& logits) {
    add({}, logits);
    counts.resize(logits.size());
  }
  SampleRow& row() { return rows[0]; }
};

}  // namespace

TEST_CASE("ascend sample: random requests, whole batches of them") {
  std::mt19937_64 random(2024);
  const auto uniform = [&](float low, float high) { return std::uniform_real_distribution<float>(low, high)(random); };
  const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
  for (int round = 0; round < 120; ++round) {
    CAPTURE(round);
    const int vocab = chance(0.15)  ? 1 + static_cast<int>(random() % 70)
                      : chance(0.1) ? 6144
                      : chance(0.1) ? 4096 + static_cast<int>(random() % 5000)
                                    : 320 + static_cast<int>(random() % 40);
    const int n_rows = 1 + static_cast<int>(random() % (vocab > 1000 ? 3 : 12));
    Request r;
    r.counts.resize(static_cast<size_t>(n_rows) * vocab);
    for (uint32_t& count : r.counts)
      if (chance(0.2)) count = (chance(0.5) ? 0x80000000u : 0u) | static_cast<uint32_t>(random() % 5);
    for (int i = 0; i < n_rows; ++i) {
      std::vector<float> logits = gaussian(vocab, random(), chance(0.2) ? 0.01f : uniform(0.5f, 12.0f));
      if (chance(0.3))
        for (float& x : logits) x = std::round(x);  // many equal logits
      if (chance(0.1))
        for (float& x : logits)
          if (chance(0.3)) x = chance(0.5) ? -kInf : chance(0.5) ? kInf : std::nanf("");
      SampleRow row;
      row.slot = chance(0.1) ? -1 : i;
      row.temperature = chance(0.2) ? 0.0f : uniform(0.05f, 3.0f);
      row.top_p = chance(0.4) ? 1.0f : uniform(0.0f, 1.0f);
      row.top_k = chance(0.4) ? 0 : static_cast<int32_t>(random() % (2 * vocab));
      row.min_p = chance(0.7) ? 0.0f : uniform(0.0f, 1.0f);
      row.seed = random();
      row.position = static_cast<int32_t>(random() % 131072);
      row.repetition_penalty = chance(0.5) ? 1.0f : uniform(0.5f, 2.0f);
      row.presence_penalty = chance(0.7) ? 0.0f : uniform(-2.0f, 2.0f);
      row.frequency_penalty = chance(0.7) ? 0.0f : uniform(-2.0f, 2.0f);
      row.n_logprobs = chance(0.5) ? -1 : static_cast<int32_t>(random() % 21);
      row.ban_begin = static_cast<int32_t>(r.ban_ids.size());
      for (uint64_t n = random() % 4; n > 0; --n) r.ban_ids.push_back(static_cast<int32_t>(random() % vocab));
      row.ban_end = static_cast<int32_t>(r.ban_ids.size());
      row.bias_begin = static_cast<int32_t>(r.bias_ids.size());
      for (uint64_t n = random() % 4; n > 0; --n) {
        r.bias_ids.push_back(static_cast<int32_t>(random() % vocab));
        r.bias_values.push_back(uniform(-20.0f, 20.0f));
      }
      row.bias_end = static_cast<int32_t>(r.bias_ids.size());
      if (chance(0.3)) {
        row.mask_row = static_cast<int32_t>(r.masks.size()) / mask_words(vocab);
        for (int w = 0; w < mask_words(vocab); ++w) r.masks.push_back(chance(0.5) ? 0u : static_cast<uint32_t>(random()));
      }
      if (chance(0.1)) row.forced_token = static_cast<int32_t>(random() % vocab);
      r.add(row, logits);
    }
    check(r, {20, 1 + static_cast<int>(random() % 48)});
  }
}

TEST_CASE("ascend sample: the whole vocabulary, flat and peaked, with more equal logits than are sorted") {
  for (const float spread : {0.0f, 0.5f, 4.0f}) {
    One one(gaussian(157184, 17, spread));
    one.row().repetition_penalty = 1.05f;
    one.row().n_logprobs = 2;
    for (int i = 0; i < 157184; i += 97) one.counts[i] = 0x80000001u;
    for (const auto& [temperature, top_p, top_k] : {std::tuple(0.6f, 0.95f, 20), std::tuple(1.0f, 0.9f, 5000)}) {
      one.row().temperature = temperature;
      one.row().top_p = top_p;
      one.row().top_k = top_k;
      ++one.row().position;
      check(one, {20, 40});
    }
  }
}

TEST_CASE("ascend sample: nothing that can be sampled, and the extremes of every setting") {
  const float nan = std::nanf("");
  for (const float temperature : {0.0f, 1.0f})
    for (const std::vector<float>& logits : {std::vector<float>{nan, nan, nan},
                                             {-kInf, -kInf, -kInf},
                                             {nan, -kInf, nan},
                                             {nan, 1.0f, -kInf},
                                             {kInf, 2.0f, kInf},
                                             {-3.0f}}) {
      One one(logits);
      one.row().temperature = temperature;
      one.row().n_logprobs = 3;
      check(one, {20, 40});
      one.ban_ids = {0};
      one.row().ban_end = 1;
      check(one, {20, 40});
      one.masks = {2};
      one.row().mask_row = 0;
      check(one, {20, 40});
    }
  One one(gaussian(70, 3));
  for (const float top_p : {0.0f, -1.0f, 1e-30f, 0.5f, 0.99999994f, 1.0f})
    for (const float min_p : {0.0f, 1e-30f, 1.0f})
      for (const int top_k : {0, 1, 69, 70, 1 << 30}) {
        one.row().top_p = top_p;
        one.row().min_p = min_p;
        one.row().top_k = top_k;
        check(one, {20, 40});
      }
}

TEST_CASE("ascend sample: a share of a sum is what doubles give") {
  std::mt19937_64 random(4);
  int wrong = 0;
  const auto compare = [&](float p, uint64_t total) {
    wrong += sigmoe_sample_kernel::share_of(p, total) !=
             static_cast<uint64_t>(std::ceil(static_cast<double>(p) * static_cast<double>(total)));
  };
  for (int i = 0; i < 200000; ++i) {
    const float p = std::ldexp(std::uniform_real_distribution<float>(0.5f, 1.0f)(random), -static_cast<int>(random() % 60));
    compare(p, random() >> (5 + random() % 40));
    compare(0.5f + 0.25f * static_cast<float>(random() % 2), (random() >> 40) << 30 | 1u << random() % 12);  // ties
  }
  CHECK(wrong == 0);
  CHECK(sigmoe_sample_kernel::share_of(0.0f, 5) == 0);
  CHECK(sigmoe_sample_kernel::share_of(1e-45f, 5) == 1);
  for (int i = 0; i < 40; ++i) {
    One one(std::vector<float>(2 + random() % 900, 1.0f));
    one.row().top_p = static_cast<float>(1 + random() % one.logits.size()) / static_cast<float>(one.logits.size());
    one.row().seed = random();
    check(one, {20, 40});
  }
}

TEST_CASE("ascend sample: the last bit of a weight counts") {
  // Thousands of equal tokens of some 2,000 parts in 2^40 each: one part more or less per token moves a draw among them.
  constexpr int kTokens = 8192;
  for (int i = 0; i < 8; ++i) {
    std::vector<float> logits(kTokens + 1, -20.0f - 0.013f * static_cast<float>(i));
    logits[0] = 0.0f;
    One one(logits);
    const uint64_t highest = uint64_t{1} << 40, each = sample_weight(logits[1]), total = highest + kTokens * each;
    while (draw_below(total, one.row().seed, 0) < highest + kTokens / 2 * each) ++one.row().seed;  // a draw of the later ones
    check(one, {20, 40});
  }
}

TEST_CASE("ascend sample: chains run in order on one core, end at the first wrong draft, and count what they gave") {
  std::mt19937_64 random(77);
  const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
  for (int n = 1; n <= 48; n += n < 4 ? 1 : 4) {
    CAPTURE(n);
    Request r;
    const int vocab = 67, n_chains = 1 + static_cast<int>(random() % 9);
    r.counts.resize(n_chains * vocab);
    for (int c = 0; c < n_chains; ++c)
      for (int i = 0; i < 4; ++i) {
        SampleRow row;
        row.slot = c;
        row.position = i;
        row.temperature = chance(0.5) ? 0.0f : 0.7f;
        row.repetition_penalty = 1.5f;
        row.presence_penalty = 0.5f;
        row.n_logprobs = 2;
        row.if_previous = -1;
        r.add(row, gaussian(vocab, random(), 2.0f));
        if (i > 0) {  // mostly the token that comes
          r.rows.back().if_previous = 0;
          const int32_t before = expected_of(r).tokens[r.rows.size() - 2];
          r.rows.back().if_previous = chance(0.8) && before >= 0 ? before : static_cast<int32_t>(random() % vocab);
        }
      }
    check(r, {std::max(1, n / 2), n});
  }
}

TEST_CASE("ascend sample: tiling") {
  const SampleTiling tiling = make_sample_tiling(64, 157184);
  CHECK(ub_bytes(tiling) <= kUbBytes);
  CHECK(sample_blocks(tiling, {20, 40}) == 40);
  CHECK(sample_blocks(tiling, {24, 48}) == 48);
  CHECK(sample_workspace_bytes(tiling, {20, 40}) == size_t{40} * 157184 * 4);
  CHECK(sample_blocks(make_sample_tiling(3, 1000), {20, 40}) == 3);
  CHECK_THROWS_AS(make_sample_tiling(1, 0), EngineError);
}
