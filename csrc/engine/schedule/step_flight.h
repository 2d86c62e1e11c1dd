// A step from its launch until its samples are taken in, and how the next one is launched before that.
//
// While a step runs, all of the next is known but its tokens if every sequence just goes on: positions and pages follow from
// lengths, and the tokens lie on the device when they are needed, where the sampler leaves them. So the device never waits for
// the host, which is one step behind. A sequence that turns out to have ended (a stop id, an abort, a deadline) has a row too
// many in that step: its token is dropped, its pages are given back with the others, and whoever gets them writes them later.
// What is known to end has no row. A request that arrives meanwhile is admitted a step later. Everything that needs the host
// between two steps keeps them apart: may_run_behind().
#pragma once

#include <exception>
#include <vector>

#include "engine/forward/runner.h"
#include "engine/schedule/scheduler.h"
#include "engine/schedule/step_builder.h"

namespace sigmoe {

struct StepFlight {
  std::vector<Chunk> chunks;
  std::vector<SampledRow> rows;  // of the sampled ones
  StepOutputs outputs;
  bool timed = false;
  std::exception_ptr failure;  // of the launch

  // The sequence is gone: nothing of it is taken in.
  void forget(const Sequence& sequence);
};

// The step behind one whose tokens nobody knows yet.
struct StepBehind {
  std::vector<Chunk> chunks;
  std::vector<int32_t> token_rows;  // by chunk: which sampled row of the step in flight gives its token
};

// Empty where a rule, or a want of pages, keeps the steps apart.
StepBehind plan_behind(const StepFlight& flight, Scheduler& scheduler, int64_t context);

// While it lives, the sequences of a step behind have the tokens they are about to be given, as places on the device
// (DraftedValue): what the step is built from.
class TokensToCome {
 public:
  explicit TokensToCome(const StepBehind& step);
  ~TokensToCome();
  TokensToCome(const TokensToCome&) = delete;
  TokensToCome& operator=(const TokensToCome&) = delete;

 private:
  const StepBehind& step_;
};

}  // namespace sigmoe
