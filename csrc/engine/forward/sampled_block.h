// Where the sampler puts what it finds for `rows` rows: one piece of memory, so that one download brings it all; and how a
// step's outputs are filled from it.
#pragma once

#include <algorithm>
#include <cstring>

#include "engine/forward/runner.h"

namespace sigmoe {

struct SampledBlock {
  static constexpr size_t kRowBytes = (2 + 2 * kMaxLogprobs) * 4;
  SampledBlock(std::byte* memory, int rows)
      : tokens(reinterpret_cast<int32_t*>(memory)),
        logprobs(reinterpret_cast<float*>(tokens + rows)),
        top_ids(reinterpret_cast<int32_t*>(logprobs + rows)),
        top_logprobs(reinterpret_cast<float*>(top_ids + static_cast<int64_t>(rows) * kMaxLogprobs)) {}

  int32_t* tokens;
  float* logprobs;
  int32_t* top_ids;
  float* top_logprobs;
};

inline bool wants_logprobs(const StepInputs& inputs) {
  return std::any_of(inputs.sample_rows.begin(), inputs.sample_rows.end(),
                     [](const SampleRow& row) { return row.n_logprobs >= 0; });
}

inline void resize_samples(StepOutputs& outputs, int n_rows) {
  outputs.tokens.resize(n_rows);
  outputs.logprobs.resize(n_rows);
  outputs.top_ids.resize(static_cast<size_t>(n_rows) * kMaxLogprobs);
  outputs.top_logprobs.resize(static_cast<size_t>(n_rows) * kMaxLogprobs);
}

// The first n rows of a block on the host, as the step's from `first` on. Without logprobs only the tokens are there.
inline void take_samples(std::byte* memory, int rows, bool with_logprobs, int first, int n, StepOutputs& outputs) {
  const SampledBlock block(memory, rows);
  std::copy_n(block.tokens, n, outputs.tokens.begin() + first);
  if (!with_logprobs) return;
  const auto alternatives = static_cast<int64_t>(first) * kMaxLogprobs;
  std::copy_n(block.logprobs, n, outputs.logprobs.begin() + first);
  std::copy_n(block.top_ids, n * kMaxLogprobs, outputs.top_ids.begin() + alternatives);
  std::copy_n(block.top_logprobs, n * kMaxLogprobs, outputs.top_logprobs.begin() + alternatives);
}

}  // namespace sigmoe
