// Sizes that recorded steps come in, and how a step is brought to one of them.
//
// A device that replays a recorded step wants few sizes. Padding rows repeat the end of a sequence of the step: its tokens at
// its positions on its own pages. What they compute and store is what the sequence's rows store anyway, they choose no expert
// that those do not, and they are sampled without a slot, so nothing remembers them.
#pragma once

#include "engine/forward/runner.h"

namespace sigmoe {

// The least size not below n that recorded steps come in: four to an octave, all of them up to 8.
int bucket_of(int n);
// Two to an octave, for what costs little.
int coarse_bucket_of(int n);

// Whether every row of the step is sampled and nothing else is wanted of it, as in decoding and in checking drafts.
bool samples_every_row(const StepInputs& inputs);

// Such a step with as many rows as its bucket has, unless that is more than most_rows.
void pad_to_bucket(StepInputs& inputs, int64_t most_rows);

}  // namespace sigmoe
