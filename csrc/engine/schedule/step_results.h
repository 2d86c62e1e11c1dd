// What a step gave, taken into its sequences and told in its event.
#pragma once

#include <vector>

#include "engine/engine.h"
#include "engine/forward/runner.h"
#include "engine/schedule/step_builder.h"

namespace sigmoe {

// Sampled tokens and the scores of prompts. Rows of sequences that are gone (SampledRow::generation is null) are dropped.
void take_samples(const std::vector<SampledRow>& rows, const StepOutputs& outputs, int64_t context, StepEvent& event);
// Logits of teacher-forced requests; ends those that are complete.
void take_logits(const std::vector<Chunk>& chunks, const StepOutputs& outputs, int64_t vocab_size, StepEvent& event);
// An end without a token.
void add_end(StepEvent& event, uint64_t id, FinishReason finish);

}  // namespace sigmoe
