#include "engine/schedule/step_flight.h"

#include <algorithm>

namespace sigmoe {
namespace {

// Whether the row behind this chunk's last depends on nothing that the host has still to learn or to make.
bool goes_on_alone(const Chunk& chunk) {
  return chunk.sequence->samples && chunk.reaches_end && chunk.n_drafts == 0 &&
         !static_cast<const Generation&>(*chunk.sequence).is_steered();
}

bool surely_ends(const Generation& generation, int64_t context) {
  return generation.n_generated() + 1 == generation.request.max_tokens || generation.length() + 1 >= context;
}

// The rule: the step is still running, all that runs is in it and goes on alone, and the scheduler would add nothing.
bool may_run_behind(const StepFlight& flight, const Scheduler& scheduler) {
  const auto is_alive = [](const Chunk& chunk) { return chunk.sequence != nullptr; };
  const auto n_alive = std::count_if(flight.chunks.begin(), flight.chunks.end(), is_alive);
  return flight.outputs.landing >= 0 && n_alive > 0 && scheduler.only_goes_on_with(n_alive) &&
         std::all_of(flight.chunks.begin(), flight.chunks.end(),
                     [&](const Chunk& chunk) { return !is_alive(chunk) || goes_on_alone(chunk); });
}

}  // namespace

void StepFlight::forget(const Sequence& sequence) {
  for (Chunk& chunk : chunks)
    if (chunk.sequence == &sequence) chunk.sequence = nullptr;
  for (SampledRow& row : rows)
    if (row.generation == &sequence) row.generation = nullptr;
}

StepBehind plan_behind(const StepFlight& flight, Scheduler& scheduler, int64_t context) {
  StepBehind step;
  if (!may_run_behind(flight, scheduler)) return step;
  for (size_t r = 0; r < flight.rows.size(); ++r) {
    Generation* generation = flight.rows[r].generation;
    if (!generation || flight.rows[r].prompt_index >= 0) continue;
    if (surely_ends(*generation, context)) {
      if (scheduler.n_waiting() > 0) return {};  // for its place
      continue;
    }
    if (scheduler.make_room_behind(*generation, 1) < 1) return {};
    step.chunks.push_back({generation, generation->length(), 1, true});
    step.token_rows.push_back(static_cast<int32_t>(r));
  }
  return step;
}

TokensToCome::TokensToCome(const StepBehind& step) : step_(step) {
  for (size_t i = 0; i < step.chunks.size(); ++i) step.chunks[i].sequence->tokens.push_back(~step.token_rows[i]);
}

TokensToCome::~TokensToCome() {
  for (const Chunk& chunk : step_.chunks) chunk.sequence->tokens.pop_back();
}

}  // namespace sigmoe
