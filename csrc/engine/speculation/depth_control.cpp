#include "engine/speculation/depth_control.h"

#include <algorithm>
#include <cmath>

namespace sigmoe {
namespace {

constexpr double kBlend = 1.0 / 32;  // weight of a new measurement
// What a measurement counts as, at most: stalls by other programs only ever add time, and add without bound.
constexpr double kLeastRatio = 0.6, kMostRatio = 1.2;
constexpr int kUnsettled = 4;               // first measurements of a size, of which the shortest counts
constexpr int kSettled = 24;                // measurements of a size that is known well
constexpr float kOwnBlend = 1.0f / 16;      // of a sequence's own drafts
constexpr float kCommonBlend = 1.0f / 128;  // of everybody's
constexpr float kFirstRate = 0.6f;          // what is hoped of a draft before any was seen
constexpr double kLeastGain = 1.08;         // drafting must promise this much more: costs are measured in passing
constexpr double kTrialShare = 0.006;       // of the time, for drafts that are not expected to pay
constexpr double kLeastSpread = 1.25;       // of sizes, before the cost of a row can be told from noise
constexpr int kPlainEvery = 32;             // drafting steps before one goes without drafts
constexpr int kSteady = 32;                 // drafting steps before one goes a place deeper, to see what that is worth
constexpr int kLeastPatience = 8, kMostPatience = 1024;
constexpr int kFollowOneIn = 8;  // new sequences, while drafting does not pay; half as many after each, down to the second
constexpr int kFollowRarely = 64;
constexpr double kRarely = 0.05;
constexpr int kMostRest = 256;      // choices that are known ahead
constexpr int kMostBarrenRest = 8;  // likewise, where nothing could be drafted

}  // namespace

int CostBySize::index_of(int size) {
  if (size <= 8) return std::max(size, 1);
  return std::min(kPoints - 1, 8 + static_cast<int>(std::log(size / 8.0) / std::log(1.2)));
}

// A machine that slows down does so for all sizes: a surprise at one of them moves the others a little too. And more never
// costs less: what a size was just seen to cost bounds the smaller ones, or drafting that looked cheap beside a plain step
// wrongly held to be dear would go on for ever.
void CostBySize::observe(int size, double ms) {
  const int index = index_of(size);
  Point& point = points_[index];
  first_ = std::min(first_, index);
  last_ = std::max(last_, index);
  if (point.n < kUnsettled) {
    point = {static_cast<double>(size), point.n == 0 ? ms : std::min(ms, point.ms), point.n + 1};
  } else {
    const double ratio = std::clamp(ms / point.ms, kLeastRatio, kMostRatio);
    for (Point& other : points_)
      if (&other != &point) other.ms *= 1 + (ratio - 1) * kBlend / 4;
    point.ms *= 1 + (ratio - 1) * std::max(kBlend, 2.0 / ++point.n);
    point.size += (size - point.size) * kBlend;
  }
  n_known_ += point.n == kSettled;
  for (Point& other : points_)
    if (other.n > 0 && other.size < point.size) other.ms = std::min(other.ms, point.ms);
}

// Sizes seen rarely count only where no two are known well.
double CostBySize::at(int size) const {
  const int least_n = n_known_ >= 2 ? kSettled : 1;
  const Point *first = nullptr, *last = nullptr, *below = nullptr, *above = nullptr;
  for (int i = first_; i <= last_; ++i) {
    const Point& point = points_[i];
    if (point.n < least_n) continue;
    if (!first) first = &point;
    last = &point;
    if (point.size <= size) below = &point;
    if (point.size > size && !above) above = &point;
  }
  if (!first) return 0.0;
  if (below && above) {
    const double part = (size - below->size) / (above->size - below->size);
    return below->ms + (above->ms - below->ms) * part;
  }
  const Point& nearest = below ? *below : *above;
  const bool slope_known = last->size >= kLeastSpread * first->size;
  const double slope =
      slope_known ? std::max(0.0, last->ms - first->ms) / (last->size - first->size) : 0.5 * nearest.ms / nearest.size;
  return nearest.ms + slope * (size - nearest.size);
}

DepthControl::DepthControl(int max_depth, bool adaptive)
    : max_depth_(std::min(max_depth, kMaxDraftDepth)), adaptive_(adaptive) {
  rate_.fill(kFirstRate);
  follow_one_in_ = kFollowOneIn;
}

DraftRecord DepthControl::begin() const {
  DraftRecord record;
  record.rate = rate_;
  record.begun = true;
  return record;
}

bool DepthControl::worth_following() {
  const bool pays = !adaptive_ || paying_ > kRarely;
  if (pays) follow_one_in_ = kFollowOneIn;
  if (!pays && ++n_unfollowed_ < follow_one_in_) return false;
  if (!pays) follow_one_in_ = std::min(2 * follow_one_in_, kFollowRarely);
  n_unfollowed_ = 0;
  return true;
}

// Depths of at most `depth`, each draft taken whose chance of coming true is above what its row costs: `worth` is the tokens
// that a millisecond gives otherwise.
DepthControl::Outlook DepthControl::try_depth(std::vector<DraftCandidate>& candidates, int n_rows, int depth,
                                              double worth) const {
  const int most_rows = n_rows + depth * static_cast<int>(candidates.size());
  const double row_ms = depth > 0 ? (steps_.at(most_rows) - steps_.at(n_rows)) / (most_rows - n_rows) : 0;
  double tokens = n_rows;
  int rows = n_rows, n_drafting = 0, deepest = 0;
  for (DraftCandidate& candidate : candidates) {
    candidate.depth = 0;
    double chance = 1;
    for (int i = 0; i < std::min(depth, candidate.most); ++i) {
      chance *= candidate.record->rate[i];
      if (chance <= worth * row_ms) break;
      tokens += chance;
      ++candidate.depth;
    }
    rows += candidate.depth;
    n_drafting += candidate.depth > 0;
    deepest = std::max(deepest, candidate.depth);
  }
  return {tokens, steps_.at(rows) + (deepest > 0 ? passes_.at(n_drafting) * deepest : 0)};
}

int DepthControl::choose(std::vector<DraftCandidate>& candidates, int n_rows, int n_steps) {
  for (DraftCandidate& candidate : candidates) {
    candidate.most = std::clamp(candidate.most, 0, max_depth_);
    candidate.depth = adaptive_ ? 0 : candidate.most;
  }
  paying_ += ((pays_ ? 1.0 : 0.0) - paying_) * (1 - std::pow(1.0 - kCommonBlend, n_steps));
  if (candidates.empty()) return kMostRest;
  if (!adaptive_) return 0;
  if (++n_since_plain_ > kPlainEvery) {  // what a step without drafts costs changes too
    n_since_plain_ = 0;
    return 0;
  }
  const bool barren = std::all_of(candidates.begin(), candidates.end(), [](const DraftCandidate& c) { return c.most == 0; });
  n_barren_ = barren ? n_barren_ + n_steps : 0;
  const double plain = try_depth(candidates, n_rows, 0, 0).rate();
  double best = plain * kLeastGain;
  int best_depth = 0;
  for (int depth = 1; depth <= max_depth_; ++depth) {
    const double rate = try_depth(candidates, n_rows, depth, plain).rate();
    if (rate > best) best = rate, best_depth = depth;
  }
  try_depth(candidates, n_rows, best_depth, plain);
  pays_ = best_depth > 0;
  int n_drafting = 0;
  const TrialCost cost = trial_cost(n_rows);
  for (DraftCandidate& candidate : candidates) {
    DraftRecord& record = *candidate.record;
    const bool idle = candidate.depth == 0 && candidate.most > 0;
    if (idle) record.n_idle += n_steps;
    record.on_trial = idle && record.n_idle >= patience(record, cost);
    if (record.on_trial) candidate.depth = 1;
    if (candidate.depth > 0) record.n_idle = 0;
    if (candidate.depth > 0 && candidate.depth < candidate.most && !record.on_trial && ++record.n_steady >= kSteady) {
      ++candidate.depth;
      record.n_steady = 0;
    }
    n_drafting += candidate.depth > 0;
  }
  if (n_drafting > 0) return 0;
  n_since_plain_ = 0;
  return rest(candidates, cost);
}

// Until the first trial is due; where nothing could be drafted, a little longer every time.
int DepthControl::rest(const std::vector<DraftCandidate>& candidates, const TrialCost& cost) const {
  int n = n_barren_ > 0 ? std::min(n_barren_ / kMostBarrenRest, kMostBarrenRest) : kMostRest;
  for (const DraftCandidate& candidate : candidates)
    if (candidate.most > 0) n = std::min(n, patience(*candidate.record, cost) - candidate.record->n_idle - 1);
  return std::max(n, 0);
}

// Of one draft for one sequence, beside a step of n_rows.
DepthControl::TrialCost DepthControl::trial_cost(int n_rows) const {
  const double step_ms = steps_.at(n_rows);
  const int more = std::max(1, n_rows / 4);
  return {n_rows, step_ms, (steps_.at(n_rows + more) - step_ms) / more + passes_.at(1)};
}

// Idle steps before a sequence's next trial. A trial goes on while its drafts come true, so that it lasts long enough to change
// a wrong opinion and ends soon where the opinion is right.
int DepthControl::patience(const DraftRecord& record, const TrialCost& cost) {
  const double rate = std::min(record.rate[0], 0.9f);
  const double loss_ms = cost.draft_ms - rate * cost.step_ms / cost.n_rows;
  const double idle = std::max(0.0, loss_ms) / (1 - rate) * cost.n_rows / (kTrialShare * cost.step_ms);
  return std::clamp(static_cast<int>(std::min<double>(idle, kMostPatience)), kLeastPatience, kMostPatience);
}

void DepthControl::observe_drafts(DraftRecord& record, int n_drafted, int n_accepted) {
  for (int i = 0; i < std::min(n_drafted, n_accepted + 1); ++i) {
    const float came_true = i < n_accepted ? 1.0f : 0.0f;
    record.rate[i] += (came_true - record.rate[i]) * kOwnBlend;
    rate_[i] += (came_true - rate_[i]) * kCommonBlend;
  }
  if (record.on_trial && n_drafted > 0 && n_accepted > 0) record.n_idle = kMostPatience;
}

}  // namespace sigmoe
