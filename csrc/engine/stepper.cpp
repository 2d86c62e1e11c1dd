#include "engine/stepper.h"

#include "engine/schedule/step_builder.h"
#include "engine/schedule/step_results.h"

namespace sigmoe {
namespace {

Stepper::Clock::time_point deadline_of(const Sequence& sequence) {
  return sequence.samples ? static_cast<const Generation&>(sequence).deadline : Stepper::Clock::time_point::max();
}

}  // namespace

Stepper::Stepper(LoadedModel model, PlanFn on_plan)
    : context_(model.info.context),
      vocab_size_(model.info.vocab_size),
      max_draft_(model.info.max_draft),
      run_ahead_(model.run_ahead),
      on_plan_(std::move(on_plan)),
      world_(std::move(model.world)),
      replay_(std::move(model.replay)),
      pool_(model.info.kv_cache_tokens / kPageTokens, model.prefix_cache),
      scheduler_({model.info.max_batched_tokens, model.info.max_num_seqs}, pool_) {
  if (model.drafter)
    speculation_ =
        std::make_unique<Speculation>(std::move(model.drafter), max_draft_, model.adaptive_depth, model.info.max_num_seqs);
}

void Stepper::release() {
  speculation_.reset();  // before the model it drafts for
  world_.reset();
}

// ---- sequences -----------------------------------------------------------------------------------------------------

void Stepper::add(std::unique_ptr<Sequence> sequence) {
  if (const auto deadline = deadline_of(*sequence); deadline != Clock::time_point::max())
    deadlines_.emplace(deadline, sequence->id);
  scheduler_.add(std::move(sequence));
}

void Stepper::set_masks(uint64_t id, int64_t position, std::vector<uint32_t> masks) {
  if (Sequence* sequence = scheduler_.find(id); sequence && sequence->samples)
    static_cast<Generation*>(sequence)->set_masks(position, std::move(masks));
}

Stepper::Clock::time_point Stepper::first_deadline() const {
  return deadlines_.empty() ? Clock::time_point::max() : deadlines_.begin()->first;
}

// Takes a sequence out for good. False when there is none of this id.
bool Stepper::retire(uint64_t id) {
  const std::unique_ptr<Sequence> sequence = scheduler_.remove(id);
  if (!sequence) return false;
  deadlines_.erase({deadline_of(*sequence), id});
  for (StepFlight* flight : {flight_.get(), behind_.get()})
    if (flight) flight->forget(*sequence);
  return true;
}

void Stepper::end(uint64_t id, FinishReason finish, StepEvent& event) {
  if (retire(id)) add_end(event, id, finish);
}

void Stepper::end_overdue(StepEvent& event) {
  if (deadlines_.empty()) return;
  for (const auto now = Clock::now(); !deadlines_.empty() && deadlines_.begin()->first <= now;) {
    const uint64_t id = deadlines_.begin()->second;
    end(id, FinishReason::deadline, event);
  }
}

void Stepper::end_all(FinishReason finish, StepEvent& event) {
  for (const uint64_t id : scheduler_.ids()) end(id, finish, event);
}

std::optional<EngineError> Stepper::leak() const {
  if (has_work() || pool_.held() == 0) return std::nullopt;
  return EngineError(ErrorCode::internal, std::to_string(pool_.held()) + " KV pages are held while no sequence exists");
}

// ---- steps ---------------------------------------------------------------------------------------------------------

std::optional<EngineError> Stepper::step(StepEvent& event) {
  if (!flight_) launch();
  if (!flight_) return std::nullopt;
  if (run_ahead_ && (!speculation_ || speculation_->rests())) launch_behind();
  std::optional<EngineError> broken = land(*flight_, event);
  flight_ = std::move(behind_);
  return broken;
}

void Stepper::launch() {
  auto flight = std::make_unique<StepFlight>();
  flight->chunks = scheduler_.plan();
  on_plan_(scheduler_.n_running(), scheduler_.n_waiting());
  for (Sequence* sequence : scheduler_.admitted())
    if (sequence->samples) begin(*static_cast<Generation*>(sequence));
  stalled_ = flight->chunks.empty();
  if (stalled_) return;
  flight_ = std::move(flight);
  StepInputs inputs;
  if (speculation_) inputs.chain = speculation_->chain();
  launch(*flight_, inputs, true);
}

void Stepper::launch_behind() {
  StepBehind step = plan_behind(*flight_, scheduler_, context_);
  if (step.chunks.empty()) return;
  behind_ = std::make_unique<StepFlight>();
  behind_->chunks = step.chunks;
  StepInputs inputs;
  inputs.chain = world_->rank(0).sampled_tokens();
  const TokensToCome tokens(step);
  launch(*behind_, inputs, !flight_->timed);  // the marks of a step are read when it has landed
  ++steps_ahead_;
}

void Stepper::launch(StepFlight& flight, StepInputs& inputs, bool may_time) {
  try {
    StepBuilder builder(flight.chunks, inputs, replay_ ? &*replay_ : nullptr);
    flight.rows = builder.take_sampled_rows();
    if (speculation_) {
      speculation_->place_features(flight.chunks, inputs);
      inputs.timed = may_time && speculation_->wants_time(flight.chunks, world_->rank(0).records_steps());
      flight.timed = inputs.timed;
    }
    world_->rank(0).shape(inputs);
    world_->launch(inputs, flight.outputs);
  } catch (...) {
    flight.failure = std::current_exception();  // told when it is the step's turn
  }
}

std::optional<EngineError> Stepper::land(StepFlight& flight, StepEvent& event) {
  std::vector<Chunk>& chunks = flight.chunks;
  std::erase_if(chunks, [](const Chunk& chunk) { return !chunk.sequence; });
  try {
    if (flight.failure) std::rethrow_exception(flight.failure);
    world_->finish(flight.outputs);
    if (speculation_) speculation_->observe_step(chunks, flight.outputs.ms);
    take_samples(flight.rows, flight.outputs, context_, event);
    take_logits(chunks, flight.outputs, vocab_size_, event);
    commit(chunks, event);
    if (speculation_) draft(chunks, event);
  } catch (const EngineError& error) {
    return fail(chunks, error, event);
  } catch (const std::bad_alloc&) {
    return fail(chunks,
                EngineError(ErrorCode::out_of_memory,
                            "a step of " + std::to_string(chunks.size()) + " sequences ran out of host memory",
                            "lower maxNumSeqs, maxBatchedTokens or kvCacheTokens"),
                event);
  } catch (const std::exception& error) {
    return fail(chunks, EngineError(ErrorCode::internal, error.what()), event);
  }
  return std::nullopt;
}

// ---- what a step leaves --------------------------------------------------------------------------------------------

// It has a slot of its own from now on, and has waited until now if it is the first time.
void Stepper::begin(Generation& generation) {
  generation.needs_reset = true;
  if (speculation_) speculation_->begin(generation);
  if (generation.started == Clock::time_point{}) generation.started = Clock::now();
}

void Stepper::draft(const std::vector<Chunk>& chunks, StepEvent& event) {
  speculation_->draft(chunks, scheduler_, context_);
  for (const Chunk& chunk : chunks)
    if (!chunk.sequence->may_sample && !chunk.sequence->drafts.empty())
      event.proposals.push_back({chunk.sequence->id, chunk.sequence->drafts});
}

// What the step computed is in the cache from here on. Sequences that ended go, from `chunks` too.
void Stepper::commit(std::vector<Chunk>& chunks, StepEvent& event) {
  for (const Chunk& chunk : chunks) {
    const int64_t n_known = chunk.begin + chunk.n - chunk.n_drafts;
    const int64_t n_taken = chunk.reaches_end ? chunk.sequence->length() - n_known : 0;
    count(chunk, n_taken);
    if (speculation_)
      speculation_->observe(chunk, n_taken,
                            chunk.sequence->samples && static_cast<Generation*>(chunk.sequence)->finish != FinishReason::none);
    if (chunk.n_drafts > 0) event.drafts.push_back({chunk.sequence->id, chunk.n_drafts, n_taken - 1});
    scheduler_.commit(chunk);
  }
  ++steps_;
  std::erase_if(chunks, [this](const Chunk& chunk) {
    const bool ended =
        chunk.sequence->samples ? static_cast<Generation*>(chunk.sequence)->finish != FinishReason::none : chunk.reaches_end;
    if (ended) retire(chunk.sequence->id);
    return ended;
  });
}

// Ends the step's sequences with `error`. A device error is sticky: all others end with it, too.
std::optional<EngineError> Stepper::fail(const std::vector<Chunk>& chunks, const EngineError& error, StepEvent& event) {
  std::optional<EngineError> broken;
  std::vector<uint64_t> ids;
  for (const Chunk& chunk : chunks) {
    const bool ended = chunk.sequence->samples && static_cast<Generation*>(chunk.sequence)->finish != FinishReason::none;
    if (ended)
      retire(chunk.sequence->id);  // with its last token, before this error
    else
      ids.push_back(chunk.sequence->id);
  }
  if (error.code() == ErrorCode::device) {
    ids = scheduler_.ids();
    broken = error;
  }
  for (const uint64_t id : ids) {
    retire(id);
    add_end(event, id, FinishReason::error);
    event.failures.push_back({id, error.code(), error.what(), error.hint()});
  }
  return broken;
}

// A chunk behind its prompt decodes, whatever it gave; all others read a prompt, or read one again.
void Stepper::count(const Chunk& chunk, int64_t n_taken) {
  if (n_taken > 0 && chunk.n - chunk.n_drafts == 1 && chunk.begin >= chunk.sequence->n_prompt)
    decode_tokens_ += n_taken;
  else
    prefill_tokens_ += chunk.n;
}

void Stepper::fill(EngineStats& stats) const {
  stats.free_pages = pool_.free();
  stats.cached_pages = pool_.cached();
  stats.held_pages = pool_.held();
  stats.total_pages = pool_.total();
  stats.running = scheduler_.n_running();
  stats.waiting = scheduler_.n_waiting();
  stats.steps = steps_;
  stats.steps_ahead = steps_ahead_;
  stats.prefill_tokens = prefill_tokens_;
  stats.decode_tokens = decode_tokens_;
  stats.preemptions = scheduler_.n_preemptions();
  stats.prefix_queried_tokens = scheduler_.n_queried_tokens();
  stats.prefix_hit_tokens = scheduler_.n_found_tokens();
  if (!speculation_) return;
  const SpeculationStats& drafts = speculation_->stats();
  stats.draft_checks = drafts.n_checks;
  stats.drafted_tokens = drafts.n_drafted;
  stats.accepted_tokens = drafts.n_accepted;
  stats.plain_steps = drafts.n_plain_steps;
  stats.verify_steps = drafts.n_verify_steps;
  stats.draft_passes = drafts.n_draft_passes;
  stats.plain_ms = drafts.plain_ms;
  stats.verify_ms = drafts.verify_ms;
  stats.draft_ms = drafts.draft_ms;
  stats.accepted_at.assign(drafts.accepted_at.begin(), drafts.accepted_at.begin() + max_draft_);
}

}  // namespace sigmoe
