// The two ops of the CUDA backend that choose: experts of a token, and the next token. Choices equal the reference's exactly.
#include <limits>

#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

struct Routed {
  std::vector<float> logits, weights;
  std::vector<int32_t> ids, offsets, order;
};

Routed route(Backend& backend, const LinearWeight& gate, const std::vector<float>& x, const std::vector<float>& bias,
             const RouterShape& shape, int n_tokens, const int32_t* forced) {
  const size_t n_slots = static_cast<size_t>(n_tokens) * shape.n_active;
  const OnDevice<float> in(backend, x), device_bias(backend, bias),
      logits(backend, std::vector<float>(static_cast<size_t>(n_tokens) * shape.n_experts, kPoison)),
      weights(backend, std::vector<float>(n_slots, kPoison));
  const OnDevice<int32_t> ids(backend, std::vector<int32_t>(n_slots, -7)),
      offsets(backend, std::vector<int32_t>(shape.n_experts + 1, -7)), order(backend, std::vector<int32_t>(n_slots, -7));
  backend.route(in.get(), gate, device_bias.get(), shape, n_tokens, forced, logits.get(),
                {ids.get(), weights.get(), offsets.get(), order.get()});
  return {logits.read(), weights.read(), ids.read(), offsets.read(), order.read()};
}

RouterShape router(int n_experts, int n_active, int n_groups, int n_kept, bool normalise, float scaling) {
  RouterShape shape;
  shape.n_experts = n_experts, shape.n_active = n_active, shape.n_groups = n_groups, shape.n_groups_kept = n_kept;
  shape.normalise = normalise, shape.scaling = scaling;
  return shape;
}

}  // namespace

TEST_CASE("cuda route: choices, weights and lists equal the reference's, ties and forced choices included") {
  on_cuda([](Backend& backend, DType) {
    for (const RouterShape& shape :
         {router(256, 8, 8, 4, true, 2.5f), router(16, 4, 4, 2, true, 1.0f), router(16, 4, 1, 1, false, 1.0f),
          router(24, 3, 3, 2, true, 2.0f), router(60, 6, 6, 3, true, 1.0f), router(1, 1, 1, 1, true, 1.0f),
          router(512, 22, 16, 8, true, 2.0f), router(8, 2, 8, 4, true, 1.0f)})
      for (const int n_tokens : sizes<int>({1, 2, 7, 40, 128, 200}, {1, 40, 200}))
        for (const bool ties : {false, true})
          for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::f32}) {
            CAPTURE(shape.n_experts);
            CAPTURE(n_tokens);
            CAPTURE(ties);
            const int64_t width = shape.n_experts == 256 && n_tokens == 40 ? 4096 : 200;
            const HostWeight host = random_weight(format, shape.n_experts, width, {}, 0, 3);
            const auto weight = host.put(backend), expected_weight = host.put(*reference());
            std::vector<float> x = gaussian(n_tokens * width, 4), bias = gaussian(shape.n_experts, 5, 0.1f);
            if (ties) std::fill(x.begin(), x.end(), 0.0f), std::fill(bias.begin(), bias.end(), 0.25f);
            const Routed expected = route(*reference(), *expected_weight, x, bias, shape, n_tokens, nullptr);
            const Routed got = route(backend, *weight, x, bias, shape, n_tokens, nullptr);
            CHECK(got.ids == expected.ids);
            CHECK(got.offsets == expected.offsets);
            CHECK(got.order == expected.order);
            CHECK(relative_error(got.logits, expected.logits) < Tolerance::kFloat32);
            CHECK(relative_error(got.weights, expected.weights) < Tolerance::kFloat32);
            std::vector<int32_t> forced(expected.ids.size());
            for (size_t i = 0; i < forced.size(); ++i)
              forced[i] = static_cast<int32_t>((i % shape.n_active + i / shape.n_active * 3) % shape.n_experts);
            const Routed expected_forced = route(*reference(), *expected_weight, x, bias, shape, n_tokens, forced.data());
            const Routed got_forced = route(backend, *weight, x, bias, shape, n_tokens, forced.data());
            CHECK(got_forced.ids == forced);
            CHECK(got_forced.order == expected_forced.order);
            CHECK(relative_error(got_forced.weights, expected_forced.weights) < Tolerance::kFloat32);
          }
  });
}

namespace {

struct Sampled {
  std::vector<int32_t> tokens, top_ids;
  std::vector<float> logprobs, top_logprobs;
  std::vector<uint32_t> counts;
};

Sampled sample(Backend& backend, const std::vector<float>& logits, int vocab, const std::vector<SampleRow>& rows,
               const std::vector<int32_t>& bias_ids, const std::vector<float>& bias_values, const std::vector<int32_t>& ban_ids,
               const std::vector<uint32_t>& masks, const std::vector<int32_t>& prompt, const std::vector<int32_t>& generated) {
  const int n_rows = static_cast<int>(rows.size());
  const OnDevice<float> device_logits(backend, logits), device_bias(backend, bias_values),
      logprobs(backend, std::vector<float>(n_rows, kPoison)),
      top_logprobs(backend, std::vector<float>(n_rows * kMaxLogprobs, kPoison));
  const OnDevice<SampleRow> device_rows(backend, rows);
  const OnDevice<int32_t> device_bias_ids(backend, bias_ids), device_bans(backend, ban_ids),
      tokens(backend, std::vector<int32_t>(n_rows, -5)), top_ids(backend, std::vector<int32_t>(n_rows * kMaxLogprobs, -5));
  const OnDevice<uint32_t> device_masks(backend, masks),
      counts(backend, std::vector<uint32_t>(static_cast<size_t>(n_rows) * vocab, 99));
  for (int r = 0; r < n_rows; ++r)
    backend.reset_counts(counts.get() + static_cast<size_t>(r) * vocab, vocab, prompt.data(), static_cast<int>(prompt.size()),
                         generated.data(), static_cast<int>(generated.size()));
  SampleArgs args;
  args.logits = device_logits.get();
  args.n_rows = n_rows;
  args.vocab_size = vocab;
  args.rows = device_rows.get();
  args.bias_ids = device_bias_ids.get();
  args.bias_values = device_bias.get();
  args.ban_ids = device_bans.get();
  args.masks = device_masks.get();
  args.counts = counts.get();
  args.tokens = tokens.get();
  args.logprobs = logprobs.get();
  args.top_ids = top_ids.get();
  args.top_logprobs = top_logprobs.get();
  backend.sample(args);
  return {tokens.read(), top_ids.read(), logprobs.read(), top_logprobs.read(), counts.read()};
}

}  // namespace

TEST_CASE("cuda sample: the very tokens of the reference, over every option, spread, tie and non-finite logit") {
  if (!have_cuda()) return;
  const auto backend = cuda(DType::bf16);
  std::mt19937_64 random(77);
  const auto uniform = [&] { return std::uniform_real_distribution<float>(0.0f, 1.0f)(random); };
  for (const int vocab : sizes<int>({1, 2, 320, 6144, 157184}, {320, 6144, 157184}))
    for (int round = 0; round < (vocab > 10000 ? 4 : 12); ++round) {
      CAPTURE(vocab);
      CAPTURE(round);
      constexpr int kRows = 8;
      std::vector<float> logits = gaussian(static_cast<size_t>(kRows) * vocab, 900 + round,
                                           round % 4 == 0   ? 0.1f
                                           : round % 4 == 1 ? 8.0f
                                                            : 2.5f);
      if (round % 3 == 1)  // many ties
        for (float& value : logits) value = std::round(value);
      for (int i = 0; i < vocab / 50 && round % 4 == 2; ++i) {
        logits[random() % logits.size()] = std::numeric_limits<float>::quiet_NaN();
        logits[random() % logits.size()] = -std::numeric_limits<float>::infinity();
      }
      if (round == 3) std::fill(logits.begin(), logits.begin() + vocab, -std::numeric_limits<float>::infinity());
      std::vector<int32_t> bias_ids, ban_ids, prompt, generated;
      std::vector<float> bias_values;
      std::vector<uint32_t> masks(3 * mask_words(vocab));
      for (uint32_t& word : masks) word = random() % 2 ? 0u : static_cast<uint32_t>(random());
      for (int i = 0; i < 6; ++i) {
        bias_ids.push_back(random() % vocab), bias_values.push_back(10 * uniform() - 5);
        if (vocab > 6) ban_ids.push_back(random() % vocab);
        prompt.push_back(random() % vocab), generated.push_back(random() % vocab), generated.push_back(generated[0]);
      }
      std::vector<SampleRow> rows(kRows);
      for (int r = 0; r < kRows; ++r) {
        SampleRow& row = rows[r];
        row.slot = r;
        row.position = static_cast<int32_t>(random() % 1000);
        row.seed = random();
        row.temperature = r == 0 ? 0.0f : 0.2f + 1.5f * uniform();
        row.top_p = r % 2 ? uniform() : 1.0f;
        row.min_p = r % 3 == 2 ? 0.2f * uniform() : 0.0f;
        row.top_k = r % 4 == 3 ? static_cast<int32_t>(random() % 60) + 1 : 0;
        if (r > 2)
          row.repetition_penalty = 0.5f + uniform(), row.presence_penalty = uniform(), row.frequency_penalty = uniform() - 0.5f;
        row.n_logprobs = r % 2 ? static_cast<int32_t>(random() % (kMaxLogprobs + 1)) : -1;
        if (r > 3) row.bias_end = static_cast<int32_t>(bias_ids.size());
        if (r > 4) row.ban_end = static_cast<int32_t>(ban_ids.size());
        if (r % 3 == 0 && round % 2) row.mask_row = r / 3;
        if (r == 5 && round % 3 == 0) row.forced_token = static_cast<int32_t>(random() % vocab);
        if (r == 1) row.slot = -1;
      }
      const Sampled expected =
          sample(*reference(), logits, vocab, rows, bias_ids, bias_values, ban_ids, masks, prompt, generated);
      const Sampled got = sample(*backend, logits, vocab, rows, bias_ids, bias_values, ban_ids, masks, prompt, generated);
      CHECK(got.tokens == expected.tokens);
      CHECK(got.top_ids == expected.top_ids);
      CHECK(got.counts == expected.counts);
      for (size_t i = 0; i < expected.logprobs.size(); ++i)
        CHECK(got.logprobs[i] == doctest::Approx(expected.logprobs[i]).epsilon(1e-5));
      for (size_t i = 0; i < expected.top_logprobs.size(); ++i)
        CHECK(got.top_logprobs[i] == doctest::Approx(expected.top_logprobs[i]).epsilon(1e-5));
    }
}
