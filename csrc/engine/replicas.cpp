#include "engine/replicas.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/model_folder.h"
#include "engine/schedule/prefix_router.h"

namespace sigmoe {
namespace {

// Request n of replica r is n * R + r outside: ids stay unique, and each says where its request runs.
class Replicas : public Engine {
 public:
  Replicas(std::vector<std::unique_ptr<Engine>> engines, const EngineOptions& options)
      : engines_(std::move(engines)),
        info_(sum_of_infos()),
        router_(static_cast<int>(engines_.size()), engines_[0]->stats().total_pages, std::max(2, options.max_num_seqs / 4)),
        remembers_(options.prefix_cache),
        live_(engines_.size()) {}
  ~Replicas() override { shut_down(); }

  const EngineInfo& info() const override { return info_; }

  void set_listener(ListenerFn listener) override {
    {
      const std::lock_guard lock(mutex_);
      listener_ = std::move(listener);
    }
    for (size_t r = 0; r < engines_.size(); ++r)
      engines_[r]->set_listener([this, r](StepEvent&& event) { take(static_cast<int>(r), std::move(event)); });
  }

  uint64_t submit(GenerateRequest request) override {
    const std::vector<int32_t> prompt = request.prompt;
    const CacheSalt salt = request.cache_salt;
    return place(prompt, salt, [&](Engine& engine) { return engine.submit(request); });
  }

  uint64_t submit(LogitsRequest request) override {  // computes every row: what is cached is of no use to it
    return place({}, {}, [&](Engine& engine) { return engine.submit(request); });
  }

  void set_masks(uint64_t request, int64_t position, std::vector<uint32_t> masks) override {
    engine_of(request).set_masks(request / engines_.size(), position, std::move(masks));
  }

  void abort(uint64_t request) override { engine_of(request).abort(request / engines_.size()); }

  EngineStats stats() const override {
    EngineStats sum = engines_[0]->stats();
    for (size_t r = 1; r < engines_.size(); ++r) {
      const EngineStats one = engines_[r]->stats();
      for (const auto field : {&EngineStats::free_pages, &EngineStats::cached_pages, &EngineStats::held_pages,
                               &EngineStats::total_pages, &EngineStats::running, &EngineStats::waiting})
        sum.*field += one.*field;
      for (const auto field : {&EngineStats::steps, &EngineStats::prefill_tokens, &EngineStats::decode_tokens,
                               &EngineStats::preemptions, &EngineStats::prefix_queried_tokens, &EngineStats::prefix_hit_tokens,
                               &EngineStats::draft_checks, &EngineStats::drafted_tokens, &EngineStats::accepted_tokens,
                               &EngineStats::plain_steps, &EngineStats::verify_steps, &EngineStats::draft_passes})
        sum.*field += one.*field;
      for (const auto field : {&EngineStats::plain_ms, &EngineStats::verify_ms, &EngineStats::draft_ms})
        sum.*field += one.*field;
      for (size_t i = 0; i < one.accepted_at.size(); ++i) sum.accepted_at[i] += one.accepted_at[i];
    }
    return sum;
  }

  void shut_down() override {
    for (const auto& engine : engines_) engine->shut_down();
  }

 private:
  struct Live {  // a request that has not ended
    std::vector<int32_t> tokens;
    CacheSalt salt;
  };

  Engine& engine_of(uint64_t request) { return *engines_[request % engines_.size()]; }

  // The first replica that takes it, in the router's order. One that is full or broken is passed over while others are not.
  uint64_t place(const std::vector<int32_t>& prompt, const CacheSalt& salt, const std::function<uint64_t(Engine&)>& submit) {
    const std::lock_guard lock(mutex_);  // the first event of the request waits until it is known here
    std::exception_ptr refusal;
    for (const int replica : router_.order(prompt, salt)) try {
        const uint64_t local = submit(*engines_[replica]);
        const std::vector<int32_t>& kept = remembers_ ? prompt : kNothing;
        live_[replica].emplace(local, Live{kept, salt});
        router_.sent(replica, kept, salt);
        return local * engines_.size() + replica;
      } catch (const EngineError& error) {
        if (error.code() != ErrorCode::busy && error.code() != ErrorCode::device) throw;
        if (!refusal || error.code() == ErrorCode::busy) refusal = std::current_exception();
      }
    std::rethrow_exception(refusal);
  }

  // One event at a time reaches the listener, with the ids that are known outside.
  void take(int replica, StepEvent&& event) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < event.requests.size(); ++i) {
      const auto live = live_[replica].find(event.requests[i]);
      if (live == live_[replica].end()) continue;
      if (remembers_ && event.tokens[i] >= 0 && !live->second.tokens.empty()) live->second.tokens.push_back(event.tokens[i]);
      if (event.finish[i] == FinishReason::none) continue;
      router_.ended(replica, live->second.tokens, live->second.salt);
      live_[replica].erase(live);
    }
    const auto outside = [&](uint64_t& request) { request = request * engines_.size() + replica; };
    for (uint64_t& request : event.requests) outside(request);
    for (auto& entry : event.failures) outside(entry.request);
    for (auto& entry : event.logits) outside(entry.request);
    for (auto& entry : event.starts) outside(entry.request);
    for (auto& entry : event.prompt_logprobs) outside(entry.request);
    for (auto& entry : event.drafts) outside(entry.request);
    for (auto& entry : event.proposals) outside(entry.request);
    if (listener_) listener_(std::move(event));
  }

  EngineInfo sum_of_infos() const {
    EngineInfo sum = engines_[0]->info();
    sum.data_parallel = static_cast<int>(engines_.size());
    for (size_t r = 1; r < engines_.size(); ++r) {
      const EngineInfo& one = engines_[r]->info();
      sum.weight_bytes += one.weight_bytes;
      sum.kv_bytes += one.kv_bytes;
      sum.workspace_bytes += one.workspace_bytes;
      sum.kv_cache_tokens += one.kv_cache_tokens;
      sum.max_num_seqs += one.max_num_seqs;
      sum.max_batched_tokens = std::min(sum.max_batched_tokens, one.max_batched_tokens);
    }
    return sum;
  }

  static inline const std::vector<int32_t> kNothing;

  std::vector<std::unique_ptr<Engine>> engines_;
  EngineInfo info_;
  std::mutex mutex_;  // guards what follows
  PrefixRouter router_;
  bool remembers_;
  std::vector<std::unordered_map<uint64_t, Live>> live_;  // of each replica, by its own ids
  ListenerFn listener_;
};

}  // namespace

std::unique_ptr<Engine> load_replicas(const EngineOptions& options, const Engine::ProgressFn& on_progress,
                                      const LoadReplicaFn& load_one) {
  std::vector<std::unique_ptr<Engine>> engines;
  const uint64_t n = options.data_parallel;
  std::string reason;
  const bool host = resolve_device(options.device, reason) == "cpu";
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (uint64_t r = 0; r < n; ++r) {
    EngineOptions one = options;
    one.first_device = options.first_device + static_cast<int>(r) * options.tensor_parallel;
    if (one.n_threads == 0) one.n_threads = std::max(1, cores / (options.tensor_parallel * options.data_parallel));
    if (host) {  // copies share the memory: this one finds what those before it have left
      const double each = options.memory_utilization / static_cast<double>(n);
      one.memory_utilization = each / (1 - each * static_cast<double>(r));
    }
    Engine::ProgressFn progress;
    if (on_progress)
      progress = [&on_progress, r, n](const EngineLoadProgress& done) {
        on_progress({done.bytes_total * r + done.bytes_done, done.bytes_total * n});
      };
    engines.push_back(load_one(one, progress));
  }
  return std::make_unique<Replicas>(std::move(engines), options);
}

}  // namespace sigmoe
