// Speculation around a step: where a draft model's features of the step's rows go, what of the drafts came true, and what is
// drafted for the next step. Runs on the engine thread; knows no device.
//
// A draft model must have seen every token of a sequence before it drafts for it. While it drafts, it takes each step's tokens
// in at once. While depth control holds it back, features of the last kRingRows tokens wait in a ring, so that a trial costs
// one pass for many steps; after a longer pause the tokens in between are never seen, and the drafts are a little worse for it.
// So are they behind a prefix that the cache held: its last position was drafted from with another next token. Where no trial
// is due before the ring would have been written anew (rests()), nothing is kept and nothing chosen.
//
// Where the device records passes, drafts stay there: the step that checks them reads them where they lie, and the host never
// waits for them, unless something it has to say depends on which they are.
//
// Where every token waits for a mask (GenerateRequest::masked), the drafts are told to whoever makes the masks, and the step
// checks as many of them as it then has masks for.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "engine/schedule/requests.h"
#include "engine/speculation/drafter.h"

namespace sigmoe {

struct SpeculationStats {
  uint64_t n_checks = 0;                               // chains of drafts that steps checked
  uint64_t n_drafted = 0, n_accepted = 0;              // tokens in them, and those that came true
  std::array<uint64_t, kMaxDraftDepth> accepted_at{};  // by place in the chain
  // Time, of steps that read no prompts and of the drafting behind them.
  uint64_t n_plain_steps = 0, n_verify_steps = 0, n_draft_passes = 0;
  double plain_ms = 0, verify_ms = 0, draft_ms = 0;
};

class Speculation {
 public:
  static constexpr int kRingRows = kMaxDraftDepth + 1;  // a step's rows of one sequence fit
  static int64_t n_feature_rows(int max_seqs, int64_t max_batched_tokens) { return max_seqs * kRingRows + max_batched_tokens; }

  Speculation(std::unique_ptr<Drafter> drafter, int max_depth, bool adaptive, int max_seqs);

  // The sequence was given a slot; of its tokens those that the prefix cache held are computed.
  void begin(Generation& generation);
  void place_features(const std::vector<Chunk>& chunks, StepInputs& inputs) const;
  // Whether nothing will be drafted behind the step that was launched last, whatever it gives.
  bool rests() const { return rest_ > 0; }
  // n_taken: tokens the chunk's sequence was given by the step. ended: and with the last of them it ended.
  void observe(const Chunk& chunk, int64_t n_taken, bool ended);
  bool wants_time(const std::vector<Chunk>& chunks, bool marks_cost);
  void observe_step(const std::vector<Chunk>& chunks, double ms);  // before what it gave is taken; 0: it was not timed
  // Drafts for the sequences of a step that go on, after its tokens were taken and committed.
  void draft(const std::vector<Chunk>& chunks, Scheduler& scheduler, int64_t context);

  const int32_t* chain() const { return drafter_->chain(); }
  const SpeculationStats& stats() const { return stats_; }

 private:
  static int rows_to_time(const std::vector<Chunk>& chunks);
  static bool may_draft(const Generation& generation);
  void forget_device_drafts(Scheduler& scheduler);
  int most_drafts(const Generation& generation, int64_t context) const;
  void make(std::vector<DraftTask>& tasks, bool reads_prompts);
  void observe_drafting(double ms);

  std::unique_ptr<Drafter> drafter_;
  DepthControl control_;
  int32_t n_ring_rows_;
  SpeculationStats stats_;
  // Drafts that lie on the device: whose they are, and the size of the run that made them, until its time is known.
  std::vector<uint64_t> on_device_;
  int n_timed_ = 0, timed_depth_ = 0;
  int n_untimed_ = 0;  // steps without drafts since the start
  // The last choice: for how many steps it still holds, how many there were since, and of how many sequences it was.
  int rest_ = 0, n_since_choice_ = 0;
  size_t n_chosen_ = 0;
};

}  // namespace sigmoe
