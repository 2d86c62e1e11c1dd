// How many tokens to draft for each sequence of the next step. Plain data: no tensors, no clock; the caller measures.
//
// A step of more rows costs more time and may give more tokens. What both come to is learned while running: the time of a step
// by its rows, the time of a drafting pass by its sequences, and of every sequence how often the draft at each place of its
// chain comes true once those before it have. Each step takes the depths with the most expected tokens per millisecond; zero
// where drafting would lose, with trials to notice when that changes, as many as half a percent of the time pays for. Between
// trials there is nothing to choose: the caller is told for how long, and may leave out all that drafting needs until then. A
// wrong choice costs time, never a token.
#pragma once

#include <array>
#include <vector>

namespace sigmoe {

constexpr int kMaxDraftDepth = 15;

// Milliseconds by size, sizes in steps of a fifth. Between the sizes seen it interpolates, beyond them it goes on as they grew;
// where one size is all that was seen, half its cost is taken to grow with the size.
class CostBySize {
 public:
  void observe(int size, double ms);
  double at(int size) const;  // 0 while nothing was seen

 private:
  struct Point {
    double size = 0, ms = 0;
    int n = 0;
  };
  static constexpr int kPoints = 64;
  static int index_of(int size);
  std::array<Point, kPoints> points_{};
  int first_ = kPoints, last_ = -1;  // of the sizes seen
  int n_known_ = 0;                  // sizes that are known well
};

// What is remembered of one sequence.
struct DraftRecord {
  std::array<float, kMaxDraftDepth> rate{};  // of drafts at this place whose predecessors came true: the share that did
  int n_idle = 0;                            // steps since its last draft
  int n_steady = 0;                          // steps since it last drafted deeper than seemed best
  bool begun = false;
  bool on_trial = false;  // its drafts are there to learn from, not for their own sake
};

struct DraftCandidate {
  DraftRecord* record = nullptr;
  int most = 0;   // drafts it could take
  int depth = 0;  // out
};

class DepthControl {
 public:
  // adaptive false: every sequence drafts as deep as it may.
  DepthControl(int max_depth, bool adaptive);

  DraftRecord begin() const;  // of a new sequence: what the others have taught
  // Whether a new sequence should be prepared for drafting, which costs its prompt a pass through the draft model. False for
  // most of them while drafting does not pay.
  bool worth_following();

  // Fills in the depths. n_rows: rows that the step has without any draft; n_steps: steps since the last choice. Returns how
  // many of the next choices would be to draft nothing, while the sequences stay the same.
  int choose(std::vector<DraftCandidate>& candidates, int n_rows, int n_steps = 1);

  void observe_drafts(DraftRecord& record, int n_drafted, int n_accepted);
  void observe_step(int n_rows, double ms) { steps_.observe(n_rows, ms); }
  void observe_drafting(int n_sequences, int n_passes, double ms) { passes_.observe(n_sequences, ms / n_passes); }

  int max_depth() const { return max_depth_; }
  bool adaptive() const { return adaptive_; }
  double step_ms(int n_rows) const { return steps_.at(n_rows); }  // what such steps take; 0 while none was seen

 private:
  struct Outlook {
    double tokens, ms;
    double rate() const { return tokens / ms; }
  };
  Outlook try_depth(std::vector<DraftCandidate>& candidates, int n_rows, int depth, double worth) const;
  struct TrialCost {
    int n_rows;
    double step_ms, draft_ms;
  };
  TrialCost trial_cost(int n_rows) const;
  static int patience(const DraftRecord& record, const TrialCost& cost);
  int rest(const std::vector<DraftCandidate>& candidates, const TrialCost& cost) const;

  int max_depth_;
  bool adaptive_;
  CostBySize steps_, passes_;
  std::array<float, kMaxDraftDepth> rate_;  // over all sequences
  double paying_ = 1.0;                     // share of recent steps for which drafting paid
  bool pays_ = true;                        // for those since the last choice
  int follow_one_in_, n_unfollowed_ = 0, n_since_plain_ = 0;
  int n_barren_ = 0;  // steps since anything could be drafted
};

}  // namespace sigmoe
