#include "engine/speculation/speculation.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace sigmoe {

Speculation::Speculation(std::unique_ptr<Drafter> drafter, int max_depth, bool adaptive, int max_seqs)
    : drafter_(std::move(drafter)), control_(max_depth, adaptive), n_ring_rows_(max_seqs * kRingRows) {}

bool Speculation::may_draft(const Generation& generation) { return generation.request.max_draft != 0; }

void Speculation::begin(Generation& generation) {
  Generation::Drafting& drafting = generation.drafting;
  drafting.followed = may_draft(generation) && control_.worth_following();
  drafting.n_seen = generation.n_computed;
  drafting.staged_row = -1;
  drafting.n_placed_from = 0;
  rest_ = 0;
  if (!drafting.record.begun) drafting.record = control_.begin();
}

// Rows of prompts are read right after the step, and lie in the order of the step behind the rings.
void Speculation::place_features(const std::vector<Chunk>& chunks, StepInputs& inputs) const {
  const auto is_followed = [](const Chunk& chunk) {
    return chunk.sequence->samples && static_cast<Generation*>(chunk.sequence)->drafting.followed;
  };
  if (!drafter_->reads_features() || std::none_of(chunks.begin(), chunks.end(), is_followed)) return;
  if (rest_ > kRingRows) {
    for (const Chunk& chunk : chunks)
      if (chunk.sequence->samples) static_cast<Generation*>(chunk.sequence)->drafting.n_placed_from = chunk.begin + chunk.n;
    return;
  }
  inputs.feature_rows.reserve(inputs.n_tokens());
  for (const Chunk& chunk : chunks) {
    const int32_t staged = n_ring_rows_ + static_cast<int32_t>(inputs.feature_rows.size());
    const bool in_ring = chunk.sequence->samples && chunk.n <= kRingRows;
    if (chunk.sequence->samples) static_cast<Generation*>(chunk.sequence)->drafting.staged_row = in_ring ? -1 : staged;
    for (int64_t i = 0; i < chunk.n; ++i)
      inputs.feature_rows.push_back(in_ring
                                        ? chunk.sequence->slot * kRingRows + static_cast<int32_t>((chunk.begin + i) % kRingRows)
                                        : staged + static_cast<int32_t>(i));
  }
}

void Speculation::observe(const Chunk& chunk, int64_t n_taken, bool ended) {
  if (!chunk.reaches_end || !chunk.sequence->samples) return;
  auto& drafting = static_cast<Generation*>(chunk.sequence)->drafting;
  const bool refused = std::exchange(drafting.refused, false);
  if (chunk.n_drafts == 0 && !refused) return;
  const int64_t n_accepted = n_taken - 1;
  stats_.n_checks += chunk.n_drafts > 0;
  stats_.n_drafted += chunk.n_drafts;
  stats_.n_accepted += n_accepted;
  for (int64_t i = 0; i < n_accepted; ++i) ++stats_.accepted_at[i];
  // Of drafts behind an end nobody knows whether they were right; the one that a mask refused was wrong.
  const int64_t n_known = ended ? n_accepted : chunk.n_drafts + (refused ? 1 : 0);
  control_.observe_drafts(drafting.record, static_cast<int>(n_known), static_cast<int>(n_accepted));
}

// Rows of a step that reads no prompt, of which the cost of a draft's row can be learned; else 0.
int Speculation::rows_to_time(const std::vector<Chunk>& chunks) {
  int64_t n_rows = 0;
  for (const Chunk& chunk : chunks) {
    if (!chunk.reaches_end || chunk.n - chunk.n_drafts > 1) return 0;
    n_rows += chunk.n;
  }
  return static_cast<int>(n_rows);
}

// Where marks cost time, most of the steps without drafts go without.
bool Speculation::wants_time(const std::vector<Chunk>& chunks, bool marks_cost) {
  constexpr int kTimedOneIn = 4;
  const int n_rows = rows_to_time(chunks);
  if (n_rows == 0) return false;
  if (!marks_cost || !control_.adaptive() || n_rows > static_cast<int>(chunks.size())) return true;
  return ++n_untimed_ % kTimedOneIn == 0;
}

void Speculation::observe_step(const std::vector<Chunk>& chunks, double ms) {
  const bool waited = std::any_of(chunks.begin(), chunks.end(), [](const Chunk& chunk) { return chunk.reaches_end; });
  if (n_timed_ > 0 && waited) observe_drafting(drafter_->device_ms());  // the tokens came, so the drafts before them are made
  const int n_rows = rows_to_time(chunks);
  if (n_rows == 0) return;
  if (ms > 0)
    control_.observe_step(n_rows, ms);
  else
    ms = control_.step_ms(n_rows);
  const bool verifies = n_rows > static_cast<int>(chunks.size());
  ++(verifies ? stats_.n_verify_steps : stats_.n_plain_steps);
  (verifies ? stats_.verify_ms : stats_.plain_ms) += ms;
}

// As many as can still become tokens: the last one that may come is sampled behind them.
int Speculation::most_drafts(const Generation& generation, int64_t context) const {
  const GenerateRequest& request = generation.request;
  int64_t left = context - generation.length();
  if (request.max_tokens >= 0) left = std::min(left, request.max_tokens - generation.n_generated());
  const int64_t asked = request.max_draft < 0 ? control_.max_depth() : request.max_draft;
  const int wanted = static_cast<int>(std::min({left - 1, asked, static_cast<int64_t>(control_.max_depth())}));
  return wanted > 0 ? drafter_->most(generation, wanted) : 0;
}

// Of a chain that lies on the device when the next is made there, what no step has checked is gone.
void Speculation::forget_device_drafts(Scheduler& scheduler) {
  for (const uint64_t id : std::exchange(on_device_, {}))
    if (Sequence* sequence = scheduler.find(id); sequence && !sequence->drafts.empty() && sequence->drafts[0] < 0)
      sequence->drafts.clear();
}

void Speculation::draft(const std::vector<Chunk>& chunks, Scheduler& scheduler, int64_t context) {
  ++n_since_choice_;
  if (rest_ > 0) {
    const bool fewer = 4 * chunks.size() < 3 * n_chosen_;  // another choice may be right for them
    rest_ = fewer ? 0 : rest_ - 1;
    return;
  }
  forget_device_drafts(scheduler);
  std::vector<DraftTask> tasks;
  std::vector<DraftCandidate> candidates;  // the first tasks
  int n_rows = 0;                          // of the next step without drafts
  bool reads_prompts = false;
  for (const bool goes_on : {true, false})
    for (const Chunk& chunk : chunks) {
      if (!chunk.sequence->samples || chunk.reaches_end != goes_on) continue;
      auto& generation = static_cast<Generation&>(*chunk.sequence);
      n_rows += goes_on;
      Generation::Drafting& drafting = generation.drafting;
      if (!drafting.followed) continue;
      DraftTask task;
      task.sequence = &generation;
      task.end = generation.n_computed;
      const bool staged = drafting.staged_row >= 0;
      reads_prompts = reads_prompts || staged;
      if (staged) {
        task.begin = chunk.begin;
        task.first_feature_row = drafting.staged_row;
      } else {
        task.begin = std::max({drafting.n_seen, drafting.n_placed_from, task.end - kRingRows});
        task.feature_rows = kRingRows;
        task.ring_row = generation.slot * kRingRows;
      }
      const bool seen = !drafter_->reads_features() || task.begin < task.end;
      if (goes_on) candidates.push_back({&drafting.record, seen ? most_drafts(generation, context) : 0});
      tasks.push_back(std::move(task));
    }
  rest_ = control_.choose(candidates, n_rows, std::exchange(n_since_choice_, 0));
  n_chosen_ = chunks.size();
  if (reads_prompts || n_rows < static_cast<int>(chunks.size())) rest_ = 0;
  for (size_t i = 0; i < candidates.size(); ++i)
    if (candidates[i].depth > 0)
      tasks[i].depth = static_cast<int>(scheduler.make_room_behind(*tasks[i].sequence, candidates[i].depth));
  // A step's tokens are taken in when something is drafted behind them, and those of a prompt always.
  std::erase_if(tasks, [&](const DraftTask& task) {
    const bool of_prompt = task.feature_rows == 0 || task.sequence->n_pending() > 1;
    return task.depth == 0 && !(of_prompt && drafter_->reads_features());
  });
  make(tasks, reads_prompts);
}

void Speculation::make(std::vector<DraftTask>& tasks, bool reads_prompts) {
  if (tasks.empty()) return;
  const auto start = std::chrono::steady_clock::now();
  drafter_->draft(tasks);
  const auto on_device = [](const DraftTask& task) { return !task.drafts.empty() && task.drafts[0] < 0; };
  const bool stay = std::any_of(tasks.begin(), tasks.end(), on_device);
  if (stay && std::any_of(tasks.begin(), tasks.end(),
                          [](const DraftTask& task) { return static_cast<const Generation&>(*task.sequence).is_steered(); }))
    drafter_->fetch(tasks);
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  int deepest = 0;
  for (const DraftTask& task : tasks) deepest = std::max(deepest, task.depth);
  if (deepest > 0 && !reads_prompts) {
    n_timed_ = static_cast<int>(tasks.size());
    timed_depth_ = deepest;
    if (!stay) observe_drafting(ms);
  }
  for (DraftTask& task : tasks) {
    static_cast<Generation*>(task.sequence)->drafting.n_seen = task.end;
    if (on_device(task)) on_device_.push_back(task.sequence->id);
    task.sequence->drafts = std::move(task.drafts);
  }
}

void Speculation::observe_drafting(double ms) {
  const int n = std::exchange(n_timed_, 0);
  if (ms <= 0) return;
  control_.observe_drafting(n, timed_depth_, ms);
  ++stats_.n_draft_passes;
  stats_.draft_ms += ms;
}

}  // namespace sigmoe
