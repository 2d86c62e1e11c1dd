// Turns a plan into the flat arrays of a step, and remembers whose rows they are.
#pragma once

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "engine/forward/runner.h"
#include "engine/schedule/requests.h"
#include "engine/schedule/scheduler.h"

namespace sigmoe {

// Whom a sampled row of a step belongs to. A generation's drafts make a chain of rows, of which those behind the first wrong
// draft have no token.
struct SampledRow {
  Generation* generation = nullptr;  // null: it is gone
  int64_t prompt_index = -1;         // the prompt token that the row scores; -1: the row samples the next token
};

// For benchmarks of models whose drafts nobody trained, which repeat themselves and never come true: another token in the place
// of each draft, and how many of a chain come true, whatever the model says.
struct Replay {
  std::function<int32_t(const Sequence& sequence, int64_t position)> token;
  std::function<int64_t(const Sequence& sequence, int64_t n_drafts)> n_accepted;
};

class StepBuilder {
 public:
  StepBuilder(const std::vector<Chunk>& chunks, StepInputs& inputs, const Replay* replay = nullptr);

  std::vector<SampledRow> take_sampled_rows() { return std::move(sampled_rows_); }  // as many as inputs.sample_rows

 private:
  void add(const Chunk& chunk);
  void add_tables(const std::vector<Chunk>& chunks);
  void add_samples(Generation& generation, int64_t n_drafts);
  void add_sample(Generation& generation, int32_t row_id, std::optional<int32_t> draft_before);
  void steer(int32_t draft, bool accept);
  void add_prompt_score(Generation& generation, int64_t index);

  StepInputs& in_;
  const Replay* replay_;
  std::vector<SampledRow> sampled_rows_;
  int32_t n_masks_ = 0;
};

}  // namespace sigmoe
