// What a follower needs of a step or of a drafting run, as bytes. It computes no tokens, so nothing of samplers is in them: no
// penalties, masks or seeds, and no prompt but as the token ids of the step.
//
// Decoding checks every number against what the follower's own ranks have room for: whatever the bytes are, the outcome is a
// step it can run or an error.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/forward/runner.h"
#include "engine/schedule/scheduler.h"
#include "engine/speculation/drafter.h"

namespace sigmoe {

enum class NodeCommand : uint8_t { step = 1, draft = 2 };

std::string encode_step(const StepInputs& inputs);
std::string encode_drafts(const std::vector<DraftTask>& tasks);

// What a follower's ranks have room for.
struct CommandLimits {
  RunnerLimits runner;
  int64_t vocab_size = 0;
};

NodeCommand command_of(std::string_view bytes);
StepInputs decode_step(std::string_view bytes, const CommandLimits& limits);

// Tasks, and the sequences they name: of their tokens and drafts as much as a drafting run reads.
struct DecodedDrafts {
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<DraftTask> tasks;
};
DecodedDrafts decode_drafts(std::string_view bytes, const CommandLimits& limits);

}  // namespace sigmoe
