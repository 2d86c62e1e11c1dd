// Sampling without sorting the vocabulary. Dense passes over V (copy, penalties, maximum, weights) are plain loops the
// compiler vectorises; what needs an order works on candidates: the top k by a rising threshold, the top p and the draw by
// selection on cumulative weight, which over the whole vocabulary is a bisection of dense passes.
#include "cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sigmoe {
namespace {

// One body, compiled for each vector width and chosen when the library is loaded. The bits are the same: no contraction.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define SIGMOE_EVERY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SIGMOE_EVERY_WIDTH
#endif

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int kBlock = 256;  // logits looked at together before any one of them

SIGMOE_EVERY_WIDTH void copy_finite(const float* logits, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = finite_logit(logits[i]);
}

SIGMOE_EVERY_WIDTH void penalise(float* x, const uint32_t* counts, int n, float repetition, float presence, float frequency) {
  for (int i = 0; i < n; ++i) x[i] = penalised(x[i], counts[i], repetition, presence, frequency);
}

// Maximum of 16 interleaved lanes: a single running maximum would be one long chain.
SIGMOE_EVERY_WIDTH float highest_of(const float* x, int n) {
  float lanes[16];
  for (float& lane : lanes) lane = kNever;
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  float highest = lanes[0];
  for (const float lane : lanes) highest = lane > highest ? lane : highest;
  return highest;
}

// The lowest logit at or above `least`, which one of them is.
SIGMOE_EVERY_WIDTH float lowest_from(const float* x, int n, float least) {
  float lanes[16];
  for (float& lane : lanes) lane = -kNever;
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) {
      const float value = x[i + j] >= least ? x[i + j] : -kNever;
      lanes[j] = value < lanes[j] ? value : lanes[j];
    }
  for (; i < n; ++i) lanes[0] = x[i] >= least && x[i] < lanes[0] ? x[i] : lanes[0];
  float lowest = lanes[0];
  for (const float lane : lanes) lowest = lane < lowest ? lane : lowest;
  return lowest;
}

// Weight and number of the logits at or above `least`.
struct Mass {
  uint64_t weight = 0;
  int64_t count = 0;
};

SIGMOE_EVERY_WIDTH Mass mass_of(const float* x, int n, float highest, float temperature, float least) {
  uint64_t weight = 0;
  int64_t count = 0;
  for (int i = 0; i < n; ++i) {
    const uint64_t mask = x[i] >= least ? ~uint64_t{0} : 0;
    weight += sample_weight((x[i] - highest) / temperature) & mask;
    count -= static_cast<int64_t>(mask);
  }
  return {weight, count};
}

bool more_likely(const SampleCandidate& a, const SampleCandidate& b) { return a.x != b.x ? a.x > b.x : a.id < b.id; }

// Calls visit(id) for every x[id] > threshold, which visit may raise.
template <typename Visit>
void for_each_above(const float* x, int n, const float& threshold, Visit visit) {
  for (int begin = 0; begin < n; begin += kBlock) {
    const int end = std::min(begin + kBlock, n);
    if (!(highest_of(x + begin, end - begin) > threshold)) continue;
    for (int i = begin; i < end; ++i)
      if (x[i] > threshold) visit(i);
  }
}

// The k most likely, in no order. Ids come in rising order, so an equal logit met later never displaces an earlier one.
void take_top_k(const float* x, int n, int k, float threshold, std::vector<SampleCandidate>& out) {
  out.clear();
  const size_t limit = 2 * static_cast<size_t>(k) + 64;
  const auto shrink = [&] {
    if (out.size() <= static_cast<size_t>(k)) return;
    std::nth_element(out.begin(), out.begin() + (k - 1), out.end(), more_likely);
    out.resize(static_cast<size_t>(k));
    threshold = out.back().x;
  };
  for_each_above(x, n, threshold, [&](int id) {
    out.push_back({x[id], id, 0});
    if (out.size() == limit) shrink();
  });
  shrink();
}

// Moves the candidate at which the cumulative weight, in order of likelihood, first exceeds `target` to the index it
// returns, and all more likely ones before it; `before` is their weight. The weight of all exceeds target.
size_t select_by_weight(std::vector<SampleCandidate>& candidates, uint64_t target, uint64_t& before) {
  constexpr size_t kFew = 32;
  size_t begin = 0, end = candidates.size();
  before = 0;
  while (end - begin > kFew) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(candidates.begin() + begin, candidates.begin() + middle, candidates.begin() + end, more_likely);
    uint64_t half = 0;
    for (size_t i = begin; i < middle; ++i) half += candidates[i].weight;
    if (before + half > target) {
      end = middle;
    } else {
      before += half;
      begin = middle;
    }
  }
  std::sort(candidates.begin() + begin, candidates.begin() + end, more_likely);
  while (begin + 1 < end && before + candidates[begin].weight <= target) before += candidates[begin++].weight;
  return begin;
}

// Clears what the mask does not allow, 32 tokens a word; most words of a grammar's mask are empty.
SIGMOE_EVERY_WIDTH void apply_mask(float* x, const uint32_t* mask, int n) {
  for (int begin = 0; begin < n; begin += 32) {
    const uint32_t word = mask[begin / 32];
    const int end = std::min(begin + 32, n);
    for (int i = begin; i < end; ++i) x[i] = (word >> (i - begin) & 1) != 0 ? x[i] : kNever;
  }
}

class RowSampler {
 public:
  RowSampler(const SampleArgs& args, int index, SampleScratch& scratch)
      : args_(args), row_(args.rows[index]), n_(args.vocab_size), candidates_(scratch.candidates) {
    scratch.x.resize(static_cast<size_t>(n_));
    x_ = scratch.x.data();
    logits_ = args.logits + static_cast<int64_t>(index) * n_;
    counts_ = row_.slot < 0 ? nullptr : args.counts + static_cast<int64_t>(row_.slot) * n_;
    mask_ = row_.mask_row < 0 ? nullptr : args.masks + static_cast<int64_t>(row_.mask_row) * mask_words(n_);
  }

  int32_t token() {
    if (row_.forced_token >= 0) return row_.forced_token;
    copy_finite(logits_, n_, x_);
    for (int32_t i = row_.bias_begin; i < row_.bias_end; ++i)
      x_[args_.bias_ids[i]] = finite_logit(x_[args_.bias_ids[i]] + args_.bias_values[i]);
    if (counts_ && (row_.repetition_penalty != 1.0f || row_.presence_penalty != 0.0f || row_.frequency_penalty != 0.0f))
      penalise(x_, counts_, n_, row_.repetition_penalty, row_.presence_penalty, row_.frequency_penalty);
    if (mask_) apply_mask(x_, mask_, n_);
    for (int32_t i = row_.ban_begin; i < row_.ban_end; ++i) x_[args_.ban_ids[i]] = kNever;

    highest_ = highest_of(x_, n_);
    if (highest_ == kNever) return lowest_allowed();
    if (!(row_.temperature > 0.0f)) return static_cast<int32_t>(std::find(x_, x_ + n_, highest_) - x_);
    // p >= min_p * max p, as a bound on the logit; the maximum itself always passes.
    least_ = row_.min_p > 0.0f ? std::min(highest_, highest_ + row_.temperature * std::log(row_.min_p))
                               : std::numeric_limits<float>::lowest();
    return row_.top_k > 0 && row_.top_k < n_ ? draw_of_top_k() : draw_of_all();
  }

  // Log-softmax of the logits as they came. Reuses the scratch, so it runs after token().
  void logprobs(int32_t token, int out_row) {
    copy_finite(logits_, n_, x_);
    const float highest = highest_of(x_, n_);
    const double total = static_cast<double>(mass_of(x_, n_, highest, 1.0f, kNever).weight) / kWeightOne;
    const float log_total = static_cast<float>(std::log(total));
    const auto logprob = [&](float x) {
      return highest == kNever ? -std::log(static_cast<float>(n_)) : (x - highest) - log_total;
    };
    args_.logprobs[out_row] = logprob(x_[token]);
    const int wanted = std::min({row_.n_logprobs, kMaxLogprobs, n_});
    if (wanted <= 0) return;
    take_top_k(x_, n_, wanted, kNever, candidates_);
    std::sort(candidates_.begin(), candidates_.end(), more_likely);
    for (size_t i = 0; i < candidates_.size(); ++i) {
      args_.top_ids[static_cast<int64_t>(out_row) * kMaxLogprobs + i] = candidates_[i].id;
      args_.top_logprobs[static_cast<int64_t>(out_row) * kMaxLogprobs + i] = logprob(candidates_[i].x);
    }
  }

 private:
  // Every logit is -inf: the lowest id that is neither banned nor masked, else 0.
  int32_t lowest_allowed() const {
    std::vector<int32_t> banned(args_.ban_ids + row_.ban_begin, args_.ban_ids + row_.ban_end);
    std::sort(banned.begin(), banned.end());
    for (int32_t id = 0; id < n_; ++id)
      if ((!mask_ || mask_[id / 32] >> (id % 32) & 1) && !std::binary_search(banned.begin(), banned.end(), id)) return id;
    return 0;
  }

  uint64_t weight(float x) const { return sample_weight((x - highest_) / row_.temperature); }

  // The weight that the kept set must reach: the smallest set with cumulative >= top_p of the total, so the first at
  // which the cumulative exceeds one less.
  uint64_t top_p_target(uint64_t total) const {
    const double needed = std::ceil(static_cast<double>(row_.top_p) * static_cast<double>(total));
    const uint64_t whole = needed < 1.0 ? 1 : static_cast<uint64_t>(needed);
    return std::min(whole, total) - 1;
  }

  int32_t draw_of_top_k() {
    take_top_k(x_, n_, row_.top_k, kNever, candidates_);
    std::erase_if(candidates_, [&](const SampleCandidate& candidate) { return candidate.x < least_; });
    uint64_t total = 0, before = 0;
    for (SampleCandidate& candidate : candidates_) total += candidate.weight = weight(candidate.x);
    if (row_.top_p < 1.0f) {
      candidates_.resize(select_by_weight(candidates_, top_p_target(total), before) + 1);
      total = before + candidates_.back().weight;
    }
    return candidates_[select_by_weight(candidates_, draw_below(total, row_.seed, row_.position), before)].id;
  }

  int32_t draw_of_all() {
    constexpr float kDepth = 29.0f;  // weights are zero from here on down
    least_ = std::max(least_, highest_ - kDepth * row_.temperature);
    Mass within = mass_from(least_);
    uint64_t total = within.weight, before = 0;
    if (row_.top_p < 1.0f) {
      const SampleCandidate last = select_of_all(within, top_p_target(total), before);
      total = before + last.weight;
      least_ = last.x;
      within = mass_from(least_);
    }
    return select_of_all(within, draw_below(total, row_.seed, row_.position), before).id;
  }

  Mass mass_from(float least) const { return mass_of(x_, n_, highest_, row_.temperature, least); }

  // select_by_weight over the whole vocabulary, `within` being what lies at or above least_: bisects the logits between
  // which the answer lies until few are left. Every probe is a dense pass, the first ones where the answer mostly is.
  SampleCandidate select_of_all(Mass within, uint64_t target, uint64_t& before) {
    constexpr int64_t kFew = 4096;
    float low = least_;                              // from here up the weight exceeds target
    float high = std::nextafter(highest_, -kNever);  // from here up it does not
    Mass above;
    float depth = 3.0f;
    while (within.count - above.count > kFew) {
      low = lowest_from(x_, n_, low);
      float middle = highest_ - (depth *= 2.0f) * row_.temperature;
      if (!(middle > low && middle < high)) middle = low + (high - low) / 2;
      if (!(middle > low && middle < high)) return select_of_equals(low, above.weight, target, before);
      const Mass mass = mass_from(middle);
      if (mass.weight > target)
        low = middle, within = mass;
      else
        high = middle, above = mass;
    }
    candidates_.clear();
    const float below_low = std::nextafter(low, kNever);
    for_each_above(x_, n_, below_low, [&](int id) {
      if (x_[id] < high) candidates_.push_back({x_[id], id, weight(x_[id])});
    });
    const size_t found = select_by_weight(candidates_, target - above.weight, before);
    before += above.weight;
    return candidates_[found];
  }

  // The answer is one of those equal to x, and they come by id.
  SampleCandidate select_of_equals(float x, uint64_t above, uint64_t target, uint64_t& before) const {
    const uint64_t each = weight(x);
    uint64_t skip = (target - above) / each;
    before = above + skip * each;
    int32_t id = 0;
    while (x_[id] != x || skip-- > 0) ++id;
    return {x, id, each};
  }

  const SampleArgs& args_;
  const SampleRow& row_;
  int n_;
  std::vector<SampleCandidate>& candidates_;
  float* x_ = nullptr;
  const float* logits_ = nullptr;
  const uint32_t* counts_ = nullptr;
  const uint32_t* mask_ = nullptr;
  float highest_ = kNever, least_ = kNever;
};

}  // namespace

void sample_row(const SampleArgs& args, int row, SampleScratch& scratch) {
  args.logprobs[row] = 0.0f;
  std::fill_n(args.top_ids + static_cast<int64_t>(row) * kMaxLogprobs, kMaxLogprobs, -1);
  std::fill_n(args.top_logprobs + static_cast<int64_t>(row) * kMaxLogprobs, kMaxLogprobs, 0.0f);
  args.tokens[row] = -1;
  const int32_t drafted = args.rows[row].if_previous;
  if (drafted >= 0 && args.tokens[row - 1] != drafted) return;  // the chain ended before this row
  RowSampler sampler(args, row, scratch);
  const int32_t token = sampler.token();
  args.tokens[row] = token;
  if (args.rows[row].n_logprobs >= 0) sampler.logprobs(token, row);
  if (args.rows[row].slot >= 0) ++args.counts[static_cast<int64_t>(args.rows[row].slot) * args.vocab_size + token];
}

}  // namespace sigmoe
