// Turns a plan into the flat arrays of a step, and remembers whose rows they are.
#pragma once

#include <vector>

#include "engine/forward/runner.h"
#include "engine/schedule/requests.h"
#include "engine/schedule/scheduler.h"

namespace sigmoe {

// Whom a sampled row of a step belongs to. A generation's drafts make a chain of rows, of which those behind the first wrong
// draft have no token.
struct SampledRow {
  Generation* generation = nullptr;
  int64_t prompt_index = -1;  // the prompt token that the row scores; -1: the row samples the next token
};

class StepBuilder {
 public:
  StepBuilder(const std::vector<Chunk>& chunks, StepInputs& inputs);

  const std::vector<SampledRow>& sampled_rows() const { return sampled_rows_; }  // as many as inputs.sample_rows

 private:
  void add(const Chunk& chunk);
  void add_tables(const std::vector<Chunk>& chunks);
  void add_samples(Generation& generation, int64_t n_drafts);
  void add_sample(Generation& generation, int32_t row_id, int32_t if_previous);
  void add_prompt_score(Generation& generation, int64_t index);

  StepInputs& in_;
  std::vector<SampledRow> sampled_rows_;
  int32_t n_masks_ = 0;
};

}  // namespace sigmoe
