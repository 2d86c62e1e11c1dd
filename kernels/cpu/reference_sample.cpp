// The naive sampler: every step as backend.h words it, over a fully sorted vocabulary. It shares with the fast one only
// what defines a result: the random stream and the integer weight of a logit (cpu/sample.h).
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "cpu/reference.h"
#include "cpu/sample.h"

namespace sigmoe {
namespace {

struct Choice {
  float x;  // logit
  int32_t id;
};

// Most likely first; equal ones by id.
std::vector<Choice> sorted(const std::vector<float>& logits) {
  std::vector<Choice> out;
  for (size_t id = 0; id < logits.size(); ++id) out.push_back({logits[id], static_cast<int32_t>(id)});
  std::sort(out.begin(), out.end(), [](const Choice& a, const Choice& b) { return a.x != b.x ? a.x > b.x : a.id < b.id; });
  return out;
}

float bounded(float x) {
  if (std::isnan(x)) return -std::numeric_limits<float>::infinity();
  return std::min(x, std::numeric_limits<float>::max());
}

int32_t choose(const SampleArgs& args, const SampleRow& row, const float* logits, const uint32_t* counts) {
  if (row.forced_token >= 0) return row.forced_token;
  const int V = args.vocab_size;
  std::set<int32_t> banned(args.ban_ids + row.ban_begin, args.ban_ids + row.ban_end);
  if (row.mask_row >= 0)
    for (int id = 0; id < V; ++id)
      if (!(args.masks[static_cast<int64_t>(row.mask_row) * mask_words(V) + id / 32] >> (id % 32) & 1)) banned.insert(id);
  std::vector<float> x(logits, logits + V);
  for (float& value : x) value = bounded(value);
  for (int i = row.bias_begin; i < row.bias_end; ++i) x[args.bias_ids[i]] = bounded(x[args.bias_ids[i]] + args.bias_values[i]);
  for (int id = 0; id < V; ++id) {
    if (!counts) break;
    const int times = static_cast<int>(counts[id] & 0x7fffffffu);
    if (counts[id] != 0) x[id] = x[id] > 0 ? x[id] / row.repetition_penalty : x[id] * row.repetition_penalty;
    x[id] = bounded(x[id] - ((times > 0 ? row.presence_penalty : 0.0f) + row.frequency_penalty * static_cast<float>(times)));
  }
  for (const int32_t id : banned) x[id] = -std::numeric_limits<float>::infinity();

  std::vector<Choice> choices = sorted(x);
  const float highest = choices[0].x;
  if (std::isinf(highest)) {  // nothing can be sampled
    for (int id = 0; id < V; ++id)
      if (!banned.contains(id)) return id;
    return 0;
  }
  if (!(row.temperature > 0)) return choices[0].id;

  // min-p: probability at least min_p of the highest, that is (x - highest) / temperature >= ln(min_p).
  if (row.min_p > 0) {
    const float least = std::min(highest, highest + row.temperature * std::log(row.min_p));
    while (choices.back().x < least) choices.pop_back();
  }
  if (row.top_k > 0 && row.top_k < static_cast<int>(choices.size())) choices.resize(row.top_k);

  std::vector<uint64_t> weights;
  uint64_t total = 0;
  for (const Choice& choice : choices) total += weights.emplace_back(sample_weight((choice.x - highest) / row.temperature));
  if (row.top_p < 1) {  // of what top-k left, renormalised
    const auto needed = static_cast<uint64_t>(std::ceil(std::max(row.top_p, 0.0f) * static_cast<double>(total)));
    uint64_t cumulative = 0;
    size_t n = 0;
    while (n < choices.size() && (n == 0 || cumulative < needed)) cumulative += weights[n++];
    choices.resize(n);
    total = cumulative;
  }
  uint64_t left = draw_below(total, row.seed, row.position);
  size_t i = 0;
  while (i + 1 < choices.size() && left >= weights[i]) left -= weights[i++];
  return choices[i].id;
}

}  // namespace

void ReferenceBackend::sample(const SampleArgs& args) {
  const int V = args.vocab_size;
  for (int64_t r = 0; r < args.n_rows; ++r) {
    const SampleRow& row = args.rows[r];
    const float* logits = args.logits + r * V;
    uint32_t* counts = row.slot < 0 ? nullptr : args.counts + static_cast<int64_t>(row.slot) * V;
    args.logprobs[r] = 0.0f;
    std::fill_n(args.top_ids + r * kMaxLogprobs, kMaxLogprobs, -1);
    std::fill_n(args.top_logprobs + r * kMaxLogprobs, kMaxLogprobs, 0.0f);
    args.tokens[r] = -1;
    if (row.if_previous >= 0 && args.tokens[r - 1] != row.if_previous) continue;  // the chain ended before this row
    const int32_t token = choose(args, row, logits, counts);
    args.tokens[r] = token;
    if (counts) ++counts[token];

    if (row.n_logprobs < 0) continue;
    std::vector<float> x(logits, logits + V);
    for (float& value : x) value = bounded(value);
    const std::vector<Choice> choices = sorted(x);
    const float highest = choices[0].x;
    uint64_t total = 0;
    for (const float value : x) total += sample_weight(value - highest);
    const float log_total = static_cast<float>(std::log(static_cast<double>(total) / kWeightOne));
    const auto logprob = [&](float value) {
      return std::isinf(highest) ? -std::log(static_cast<float>(V)) : (value - highest) - log_total;
    };
    args.logprobs[r] = logprob(x[token]);
    for (int i = 0; i < std::min({row.n_logprobs, kMaxLogprobs, V}); ++i) {
      if (std::isinf(choices[i].x)) break;  // impossible tokens are no alternatives
      args.top_ids[r * kMaxLogprobs + i] = choices[i].id;
      args.top_logprobs[r * kMaxLogprobs + i] = logprob(choices[i].x);
    }
  }
}

void ReferenceBackend::reset_counts(uint32_t* counts_row, int vocab_size, const int32_t* prompt, int n_prompt,
                                    const int32_t* generated, int n_generated) {
  std::fill(counts_row, counts_row + vocab_size, 0u);
  for (int i = 0; i < n_prompt; ++i) counts_row[prompt[i]] |= 0x80000000u;
  for (int i = 0; i < n_generated; ++i) ++counts_row[generated[i]];
}

}  // namespace sigmoe
