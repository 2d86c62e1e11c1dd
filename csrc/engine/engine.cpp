#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "backend/registry.h"
#include "backend/thread_name.h"
#include "engine/forward/world.h"
#include "engine/model_folder.h"
#include "engine/replicas.h"
#include "engine/schedule/requests.h"
#include "engine/schedule/scheduler.h"
#include "engine/schedule/step_builder.h"
#include "engine/schedule/step_flight.h"
#include "engine/schedule/step_results.h"
#include "engine/speculation/speculation.h"

namespace sigmoe {
namespace {

using Clock = std::chrono::steady_clock;

class EngineImpl : public Engine {
 public:
  EngineImpl(LoadedModel model)
      : info_(std::move(model.info)),
        world_(std::move(model.world)),
        pool_(info_.kv_cache_tokens / kPageTokens, model.prefix_cache),
        max_waiting_(model.max_waiting),
        scheduler_({info_.max_batched_tokens, info_.max_num_seqs}, pool_),
        has_mtp_(model.has_mtp),
        replay_(std::move(model.replay)),
        run_ahead_(model.run_ahead) {
    if (model.drafter)
      speculation_ =
          std::make_unique<Speculation>(std::move(model.drafter), info_.max_draft, model.adaptive_depth, info_.max_num_seqs);
    snapshot_stats();
    thread_ = std::thread([this] { loop(); });
  }

  ~EngineImpl() override { shut_down(); }

  const EngineInfo& info() const override { return info_; }

  void set_listener(ListenerFn listener) override {
    const std::lock_guard lock(mutex_);
    listener_ = std::move(listener);
  }

  uint64_t submit(GenerateRequest request) override {
    check_request(request, info_);
    return enqueue(std::make_unique<Generation>(std::move(request), info_));
  }

  uint64_t submit(LogitsRequest request) override {
    check_request(request, info_, has_mtp_);
    return enqueue(std::make_unique<Scoring>(std::move(request)));
  }

  void set_masks(uint64_t request, int64_t position, std::vector<uint32_t> masks) override {
    const auto n_words = static_cast<size_t>(mask_words(info_.vocab_size));
    if (masks.size() % n_words != 0 || masks.size() / n_words > kMaxDraftDepth + 1)
      throw EngineError(ErrorCode::invalid_argument, "masks of " + std::to_string(masks.size()) +
                                                         " words; this vocabulary needs " + std::to_string(n_words) +
                                                         " for each, of which there are at most " +
                                                         std::to_string(kMaxDraftDepth + 1));
    const std::lock_guard lock(mutex_);
    masks_.push_back({request, position, std::move(masks)});
    changed_.notify_one();
  }

  void abort(uint64_t request) override {
    const std::lock_guard lock(mutex_);
    aborts_.push_back(request);
    changed_.notify_one();
  }

  EngineStats stats() const override {
    const std::lock_guard lock(mutex_);
    EngineStats stats = stats_;
    stats.waiting += static_cast<int64_t>(arrivals_.size());
    return stats;
  }

  void shut_down() override {
    const std::lock_guard once(shut_down_mutex_);
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
    speculation_.reset();  // before the model it drafts for
    world_.reset();
  }

 private:
  struct MaskUpdate {
    uint64_t request;
    int64_t position;
    std::vector<uint32_t> words;
  };

  uint64_t enqueue(std::unique_ptr<Sequence> sequence) {
    const std::lock_guard lock(mutex_);
    if (stopping_) throw EngineError(ErrorCode::disposed, "the model was disposed", "load it again");
    if (broken_) throw *broken_;
    const int64_t n_waiting = stats_.waiting + static_cast<int64_t>(arrivals_.size());
    if (n_waiting >= max_waiting_)
      throw EngineError(
          ErrorCode::busy,
          "the queue is full: " + std::to_string(stats_.running) + " requests run and " + std::to_string(n_waiting) + " wait",
          "try again later, or raise maxWaiting");
    const uint64_t id = sequence->id = ++last_id_;
    arrivals_.push_back(std::move(sequence));
    changed_.notify_one();
    return id;
  }

  void loop() {
    name_this_thread("sigmoe-engine");
    for (;;) {
      StepEvent event;
      const bool stop = take_messages(event);
      if (stop) {
        end_all(event, FinishReason::aborted);
      } else {
        end_overdue(event);
        step(event);
      }
      if (!has_work() && pool_.held() != 0)  // the idle invariant: a leak is a bug worth failing loudly for
        break_model(
            EngineError(ErrorCode::internal, std::to_string(pool_.held()) + " KV pages are held while no sequence exists"));
      snapshot_stats();
      if (listener_ && !event.empty()) listener_(std::move(event));
      if (stop) return;
    }
  }

  // Waits until there is something to do, and takes in what other threads have left. True when the engine has to stop.
  bool take_messages(StepEvent& event) {
    std::unique_lock lock(mutex_);
    const auto something_to_do = [&] {
      return stopping_ || !arrivals_.empty() || !aborts_.empty() || !masks_.empty() || flight_ || (has_work() && !stalled_);
    };
    if (deadlines_.empty())
      changed_.wait(lock, something_to_do);
    else
      changed_.wait_until(lock, deadlines_.begin()->first, something_to_do);
    for (std::unique_ptr<Sequence>& arrival : arrivals_) {
      if (const auto deadline = deadline_of(*arrival); deadline != Clock::time_point::max())
        deadlines_.emplace(deadline, arrival->id);
      scheduler_.add(std::move(arrival));
    }
    stats_.waiting += static_cast<int64_t>(arrivals_.size());  // they count as waiting until a plan gives them a place
    arrivals_.clear();
    for (MaskUpdate& mask : masks_)
      if (Sequence* sequence = scheduler_.find(mask.request); sequence && sequence->samples)
        static_cast<Generation*>(sequence)->set_masks(mask.position, std::move(mask.words));
    masks_.clear();
    for (const uint64_t id : aborts_)
      if (retire(id)) add_end(event, id, FinishReason::aborted);
    aborts_.clear();
    return stopping_;
  }

  void end_overdue(StepEvent& event) {
    if (deadlines_.empty()) return;
    for (const auto now = Clock::now(); !deadlines_.empty() && deadlines_.begin()->first <= now;) {
      const uint64_t id = deadlines_.begin()->second;
      retire(id);
      add_end(event, id, FinishReason::deadline);
    }
  }

  static Clock::time_point deadline_of(const Sequence& sequence) {
    return sequence.samples ? static_cast<const Generation&>(sequence).deadline : Clock::time_point::max();
  }

  // Takes a sequence out for good. False when there is none of this id.
  bool retire(uint64_t id) {
    const std::unique_ptr<Sequence> sequence = scheduler_.remove(id);
    if (!sequence) return false;
    deadlines_.erase({deadline_of(*sequence), id});
    for (StepFlight* flight : {flight_.get(), behind_.get()})
      if (flight) flight->forget(*sequence);
    return true;
  }

  bool has_work() const { return scheduler_.n_running() + scheduler_.n_waiting() > 0; }

  // Takes one step in. The one behind it is launched before, where that is possible (schedule/step_flight.h).
  void step(StepEvent& event) {
    if (!flight_) launch();
    if (!flight_) return;
    if (run_ahead_ && (!speculation_ || speculation_->rests())) launch_behind();
    land(*flight_, event);
    flight_ = std::move(behind_);
  }

  void launch() {
    auto flight = std::make_unique<StepFlight>();
    flight->chunks = scheduler_.plan();
    count_queue();
    for (Sequence* sequence : scheduler_.admitted())
      if (sequence->samples) begin(*static_cast<Generation*>(sequence));
    stalled_ = flight->chunks.empty();
    if (stalled_) return;
    flight_ = std::move(flight);
    StepInputs inputs;
    if (speculation_) inputs.chain = speculation_->chain();
    launch(*flight_, inputs, true);
  }

  void launch_behind() {
    StepBehind step = plan_behind(*flight_, scheduler_, info_.context);
    if (step.chunks.empty()) return;
    behind_ = std::make_unique<StepFlight>();
    behind_->chunks = step.chunks;
    StepInputs inputs;
    inputs.chain = world_->rank(0).sampled_tokens();
    const TokensToCome tokens(step);
    launch(*behind_, inputs, !flight_->timed);  // the marks of a step are read when it has landed
    ++steps_ahead_;
  }

  void launch(StepFlight& flight, StepInputs& inputs, bool may_time) {
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

  void land(StepFlight& flight, StepEvent& event) {
    std::vector<Chunk>& chunks = flight.chunks;
    std::erase_if(chunks, [](const Chunk& chunk) { return !chunk.sequence; });
    try {
      if (flight.failure) std::rethrow_exception(flight.failure);
      world_->finish(flight.outputs);
      if (speculation_) speculation_->observe_step(chunks, flight.outputs.ms);
      take_samples(flight.rows, flight.outputs, info_.context, event);
      take_logits(chunks, flight.outputs, info_.vocab_size, event);
      commit(chunks, event);
      if (speculation_) draft(chunks, event);
    } catch (const EngineError& error) {
      fail(chunks, error, event);
    } catch (const std::bad_alloc&) {
      fail(chunks,
           EngineError(ErrorCode::out_of_memory,
                       "a step of " + std::to_string(chunks.size()) + " sequences ran out of host memory",
                       "lower maxNumSeqs, maxBatchedTokens or kvCacheTokens"),
           event);
    } catch (const std::exception& error) {
      fail(chunks, EngineError(ErrorCode::internal, error.what()), event);
    }
  }

  void draft(const std::vector<Chunk>& chunks, StepEvent& event) {
    speculation_->draft(chunks, scheduler_, info_.context);
    for (const Chunk& chunk : chunks)
      if (!chunk.sequence->may_sample && !chunk.sequence->drafts.empty())
        event.proposals.push_back({chunk.sequence->id, chunk.sequence->drafts});
  }

  // It has a slot of its own from now on, and has waited until now if it is the first time.
  void begin(Generation& generation) {
    generation.needs_reset = true;
    if (speculation_) speculation_->begin(generation);
    if (generation.started == Clock::time_point{}) generation.started = Clock::now();
  }

  // What the step computed is in the cache from here on. Sequences that ended go, from `chunks` too.
  void commit(std::vector<Chunk>& chunks, StepEvent& event) {
    for (const Chunk& chunk : chunks) {
      const int64_t n_known = chunk.begin + chunk.n - chunk.n_drafts;
      const int64_t n_taken = chunk.reaches_end ? chunk.sequence->length() - n_known : 0;
      count(chunk, n_taken);
      if (speculation_)
        speculation_->observe(
            chunk, n_taken, chunk.sequence->samples && static_cast<Generation*>(chunk.sequence)->finish != FinishReason::none);
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

  // Ends the step's sequences with `error`. A device error is sticky: the model is broken from here on, and says so.
  void fail(const std::vector<Chunk>& chunks, const EngineError& error, StepEvent& event) {
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
      break_model(error);
    }
    for (const uint64_t id : ids) {
      retire(id);
      add_end(event, id, FinishReason::error);
      event.failures.push_back({id, error.code(), error.what(), error.hint()});
    }
  }

  // Later requests are refused with this error.
  void break_model(const EngineError& error) {
    const std::lock_guard lock(mutex_);
    broken_ = std::make_unique<EngineError>(ErrorCode::device,
                                            std::string("the model is broken since an earlier failure: ") + error.what(),
                                            error.hint().empty() ? "dispose the model and load it again" : error.hint());
  }

  void end_all(StepEvent& event, FinishReason finish) {
    for (const uint64_t id : scheduler_.ids()) {
      retire(id);
      add_end(event, id, finish);
    }
  }

  // A chunk behind its prompt decodes, whatever it gave; all others read a prompt, or read one again.
  void count(const Chunk& chunk, int64_t n_taken) {
    if (n_taken > 0 && chunk.n - chunk.n_drafts == 1 && chunk.begin >= chunk.sequence->n_prompt)
      decode_tokens_ += n_taken;
    else
      prefill_tokens_ += chunk.n;
  }

  // Who runs and who waits, as of this plan: the bound of the queue must not wait for the step to end.
  void count_queue() {
    const std::lock_guard lock(mutex_);
    stats_.running = scheduler_.n_running();
    stats_.waiting = scheduler_.n_waiting();
  }

  void snapshot_stats() {
    const std::lock_guard lock(mutex_);
    stats_.free_pages = pool_.free();
    stats_.cached_pages = pool_.cached();
    stats_.held_pages = pool_.held();
    stats_.total_pages = pool_.total();
    stats_.running = scheduler_.n_running();
    stats_.waiting = scheduler_.n_waiting();
    stats_.steps = steps_;
    stats_.steps_ahead = steps_ahead_;
    stats_.prefill_tokens = prefill_tokens_;
    stats_.decode_tokens = decode_tokens_;
    stats_.preemptions = scheduler_.n_preemptions();
    stats_.prefix_queried_tokens = scheduler_.n_queried_tokens();
    stats_.prefix_hit_tokens = scheduler_.n_found_tokens();
    if (!speculation_) return;
    const SpeculationStats& drafts = speculation_->stats();
    stats_.draft_checks = drafts.n_checks;
    stats_.drafted_tokens = drafts.n_drafted;
    stats_.accepted_tokens = drafts.n_accepted;
    stats_.plain_steps = drafts.n_plain_steps;
    stats_.verify_steps = drafts.n_verify_steps;
    stats_.draft_passes = drafts.n_draft_passes;
    stats_.plain_ms = drafts.plain_ms;
    stats_.verify_ms = drafts.verify_ms;
    stats_.draft_ms = drafts.draft_ms;
    stats_.accepted_at.assign(drafts.accepted_at.begin(), drafts.accepted_at.begin() + info_.max_draft);
  }

  EngineInfo info_;
  std::unique_ptr<World> world_;
  std::unique_ptr<Speculation> speculation_;  // null: none was asked for
  // Owned by the engine thread:
  PagePool pool_;
  int64_t max_waiting_;
  Scheduler scheduler_;
  std::set<std::pair<Clock::time_point, uint64_t>> deadlines_;  // of live sequences that have one
  bool stalled_ = false;                                        // every sequence that has its turn waits for its mask
  bool has_mtp_;
  std::optional<Replay> replay_;  // in benchmarks alone
  bool run_ahead_;
  std::unique_ptr<StepFlight> flight_;  // launched and not taken in
  std::unique_ptr<StepFlight> behind_;  // likewise, the one behind it
  uint64_t steps_ = 0, steps_ahead_ = 0, prefill_tokens_ = 0, decode_tokens_ = 0;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Sequence>> arrivals_;
  std::vector<MaskUpdate> masks_;
  std::vector<uint64_t> aborts_;
  ListenerFn listener_;
  EngineStats stats_;
  std::unique_ptr<EngineError> broken_;
  uint64_t last_id_ = 0;
  bool stopping_ = false;

  std::mutex shut_down_mutex_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Engine> Engine::load(const std::string& folder, const EngineOptions& options, const ProgressFn& on_progress,
                                     const std::atomic<bool>* cancelled) {
  const auto load_one = [&](const EngineOptions& one, const ProgressFn& progress) -> std::unique_ptr<Engine> {
    return std::make_unique<EngineImpl>(load_model(folder, one, progress, cancelled));
  };
  if (options.node.index > 0)
    throw EngineError(ErrorCode::invalid_argument, "a node that does not lead was loaded as a model of its own",
                      "requests go to the node of rank 0");
  if (options.data_parallel == 1) return load_one(options, on_progress);
  if (options.node.count > 1)
    throw EngineError(ErrorCode::unsupported,
                      "dataParallelSize " + std::to_string(options.data_parallel) + " asked for on several nodes",
                      "run one server for each copy, and balance between them");
  if (options.data_parallel < 1 || options.data_parallel > 64)
    throw EngineError(ErrorCode::invalid_argument,
                      "dataParallelSize is " + std::to_string(options.data_parallel) + ", outside [1, 64]");
  return load_replicas(options, on_progress, load_one);
}

std::unique_ptr<Engine> start_engine(LoadedModel model) { return std::make_unique<EngineImpl>(std::move(model)); }

std::vector<DeviceLine> engine_devices() {
  std::vector<DeviceLine> lines;
  for (const DeviceReport& report : list_devices()) lines.push_back({report.device, report.available, report.detail});
  return lines;
}

void offer_backend_library(const std::string& file, const std::string& path) { offer_library(file, path); }

}  // namespace sigmoe
