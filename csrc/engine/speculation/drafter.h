// Who guesses the tokens that follow. Guesses are checked by the target's own step (backend.h, SampleRow), which gives the
// tokens plain decoding would have given whatever is guessed: a drafter can be slow or wrong, never harmful.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/forward/world.h"
#include "engine/schedule/scheduler.h"

namespace sigmoe {

// A sequence for which something is drafted, or of which a draft model must see tokens.
struct DraftTask {
  Sequence* sequence = nullptr;
  // Positions [begin, end) that the target has computed and the draft model has not: token end is known.
  int64_t begin = 0, end = 0;
  int32_t first_feature_row = 0;  // of position begin
  int32_t feature_rows = 0;       // position p lies in the row of p modulo this many, counted from ring_row; 0: rows in order
  int32_t ring_row = 0;
  int depth = 0;                // drafts wanted, behind the sequence's last token
  std::vector<int32_t> drafts;  // Sequence::drafts says what a negative one is

  int32_t feature_row(int64_t position) const {
    return feature_rows > 0 ? ring_row + static_cast<int32_t>(position % feature_rows)
                            : first_feature_row + static_cast<int32_t>(position - begin);
  }
};

// What tests look at inside a drafting run.
struct DraftTrace {
  std::vector<float> fused;                // (T, D) what the features of the first pass came to
  std::vector<std::vector<float>> logits;  // (tasks, draft V) of every pass
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  // Whether it reads the target's features (RunnerLimits::features), and so wants to be told of every token.
  virtual bool reads_features() const = 0;
  // Drafts it could make now, at most `wanted`.
  virtual int most(const Sequence& sequence, int wanted) const { return wanted; }
  // Fills in every task's drafts. A sequence has pages for `depth` tokens behind its last one.
  virtual void draft(std::vector<DraftTask>& tasks, DraftTrace* trace = nullptr) = 0;
  // Drafts may stay on the device, where steps can read them; the next draft() overwrites them. Null: they never do.
  virtual const int32_t* chain() const { return nullptr; }
  // Brings the drafts of the last draft() to the host.
  virtual void fetch(std::vector<DraftTask>& tasks) {}
  // What the last draft() took on the device, once a step behind it has ended; 0: not a time to go by.
  virtual double device_ms() const { return 0; }
  virtual uint64_t bytes() const { return 0; }     // device memory held for activations
  virtual uint64_t kv_bytes() const { return 0; }  // and for its own cache
};

struct DraftConfig;
struct DraftFolder;
struct DraftWeights;

struct DrafterLimits {
  int64_t max_rows = 0;  // of a pass: at least what a step takes of one sequence, and as many as a step has sequences
  int max_seqs = 0;
  int64_t n_positions = 0, n_pages = 0;
};

std::unique_ptr<Drafter> make_eagle3_drafter(const DraftFolder& draft, DraftWeights weights, RankRunner& target,
                                             const DrafterLimits& limits);
// Of its activations, for each of max_rows; feature_width is the width of the target's residual stream.
uint64_t eagle3_bytes_per_row(const DraftConfig& config, int64_t feature_width);
std::unique_ptr<Drafter> make_mtp_drafter(RankRunner& target, const DrafterLimits& limits);  // of a single rank
std::unique_ptr<Drafter> make_mtp_drafter(World& world, const DrafterLimits& limits);
std::unique_ptr<Drafter> make_ngram_drafter();

}  // namespace sigmoe
