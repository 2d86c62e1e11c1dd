// An EAGLE3 draft of the published proportions with random weights, for benchmarks.
#pragma once

#include "engine/speculation/draft_checkpoint.h"

namespace sigmoe {

// reference/model.md 5.2, scaled to the target's width: MLP of 3.5 D, a key head for four query heads, up to 32,000 drafted
// ids.
DraftFolder synthetic_draft(const ModelConfig& target, uint64_t seed);

}  // namespace sigmoe
