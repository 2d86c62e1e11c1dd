// What an engine's own thread does: it keeps the sequences that run and wait, and takes step after step for them. Nothing here
// is called by two threads at a time.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/forward/world.h"
#include "engine/model_folder.h"
#include "engine/schedule/requests.h"
#include "engine/schedule/scheduler.h"
#include "engine/schedule/step_flight.h"
#include "engine/speculation/speculation.h"

namespace sigmoe {

class Stepper {
 public:
  using Clock = std::chrono::steady_clock;
  // Who runs and who waits, as of a plan, ahead of its step.
  using PlanFn = std::function<void(int64_t n_running, int64_t n_waiting)>;

  Stepper(LoadedModel model, PlanFn on_plan);

  void add(std::unique_ptr<Sequence> sequence);
  void set_masks(uint64_t id, int64_t position, std::vector<uint32_t> masks);

  bool has_work() const { return scheduler_.n_running() + scheduler_.n_waiting() > 0; }
  // Whether a step would do something now: not where every sequence that has its turn waits for its mask.
  bool ready() const { return flight_ || (has_work() && !stalled_); }
  Clock::time_point first_deadline() const;  // max(): nobody has one

  // Takes one step in. The one behind it is launched before, where that is possible (schedule/step_flight.h). Returns the
  // device's error, which leaves the model broken: all sequences have ended with it.
  std::optional<EngineError> step(StepEvent& event);
  // Ends a sequence if there is one of this id.
  void end(uint64_t id, FinishReason finish, StepEvent& event);
  void end_overdue(StepEvent& event);
  void end_all(FinishReason finish, StepEvent& event);

  // The idle invariant: no sequence, no page. A leak is a bug worth failing loudly for.
  std::optional<EngineError> leak() const;
  void fill(EngineStats& stats) const;
  // Gives the model back; no step comes after it.
  void release();

 private:
  void launch();
  void launch_behind();
  void launch(StepFlight& flight, StepInputs& inputs, bool may_time);
  std::optional<EngineError> land(StepFlight& flight, StepEvent& event);
  void begin(Generation& generation);
  void draft(const std::vector<Chunk>& chunks, StepEvent& event);
  void commit(std::vector<Chunk>& chunks, StepEvent& event);
  std::optional<EngineError> fail(const std::vector<Chunk>& chunks, const EngineError& error, StepEvent& event);
  bool retire(uint64_t id);
  void count(const Chunk& chunk, int64_t n_taken);

  int64_t context_, vocab_size_;
  int max_draft_;
  bool run_ahead_;
  PlanFn on_plan_;
  std::unique_ptr<World> world_;
  std::unique_ptr<Speculation> speculation_;  // null: none was asked for
  std::optional<Replay> replay_;              // in benchmarks alone
  PagePool pool_;
  Scheduler scheduler_;
  std::set<std::pair<Clock::time_point, uint64_t>> deadlines_;  // of live sequences that have one
  bool stalled_ = false;                                        // every sequence that has its turn waits for its mask
  std::unique_ptr<StepFlight> flight_;                          // launched and not taken in
  std::unique_ptr<StepFlight> behind_;                          // likewise, the one behind it
  uint64_t steps_ = 0, steps_ahead_ = 0, prefill_tokens_ = 0, decode_tokens_ = 0;
};

}  // namespace sigmoe
