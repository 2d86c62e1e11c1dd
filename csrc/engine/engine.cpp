#include "engine/engine.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "backend/registry.h"
#include "backend/thread_name.h"
#include "engine/model_folder.h"
#include "engine/replicas.h"
#include "engine/schedule/requests.h"
#include "engine/stepper.h"

namespace sigmoe {
namespace {

// Requests come from any thread and wait for the engine's own, which takes steps for them (stepper.h) and tells the listener.
class EngineImpl : public Engine {
 public:
  EngineImpl(LoadedModel model)
      : info_(model.info),
        has_mtp_(model.has_mtp),
        max_waiting_(model.max_waiting),
        stepper_(std::move(model), [this](int64_t n_running, int64_t n_waiting) { count_queue(n_running, n_waiting); }) {
    stepper_.fill(stats_);
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
    stepper_.release();
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
        stepper_.end_all(FinishReason::aborted, event);
      } else {
        stepper_.end_overdue(event);
        if (const auto error = stepper_.step(event)) break_model(*error);
      }
      if (const auto error = stepper_.leak()) break_model(*error);
      {
        const std::lock_guard lock(mutex_);
        stepper_.fill(stats_);
      }
      if (listener_ && !event.empty()) listener_(std::move(event));
      if (stop) return;
    }
  }

  // Waits until there is something to do, and takes in what other threads have left. True when the engine has to stop.
  bool take_messages(StepEvent& event) {
    std::unique_lock lock(mutex_);
    const auto something_to_do = [&] {
      return stopping_ || !arrivals_.empty() || !aborts_.empty() || !masks_.empty() || stepper_.ready();
    };
    if (const auto deadline = stepper_.first_deadline(); deadline == Stepper::Clock::time_point::max())
      changed_.wait(lock, something_to_do);
    else
      changed_.wait_until(lock, deadline, something_to_do);
    stats_.waiting += static_cast<int64_t>(arrivals_.size());  // they count as waiting until a plan gives them a place
    for (std::unique_ptr<Sequence>& arrival : arrivals_) stepper_.add(std::move(arrival));
    arrivals_.clear();
    for (MaskUpdate& mask : masks_) stepper_.set_masks(mask.request, mask.position, std::move(mask.words));
    masks_.clear();
    for (const uint64_t id : aborts_) stepper_.end(id, FinishReason::aborted, event);
    aborts_.clear();
    return stopping_;
  }

  // Later requests are refused with this error.
  void break_model(const EngineError& error) {
    const std::lock_guard lock(mutex_);
    broken_ = std::make_unique<EngineError>(ErrorCode::device,
                                            std::string("the model is broken since an earlier failure: ") + error.what(),
                                            error.hint().empty() ? "dispose the model and load it again" : error.hint());
  }

  // The bound of the queue must not wait for the step to end.
  void count_queue(int64_t n_running, int64_t n_waiting) {
    const std::lock_guard lock(mutex_);
    stats_.running = n_running;
    stats_.waiting = n_waiting;
  }

  const EngineInfo info_;
  const bool has_mtp_;
  const int64_t max_waiting_;
  Stepper stepper_;  // the engine thread's

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
