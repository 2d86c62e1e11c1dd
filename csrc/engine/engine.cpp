#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "backend/registry.h"
#include "engine/model_folder.h"
#include "engine/runner.h"
#include "engine/scheduler.h"

namespace sigmoe {
namespace {

// A LogitsRequest answers with one float per token and vocabulary entry; past this the caller should split.
constexpr uint64_t kMaxLogitsBytes = 2ull << 30;

struct Generation : Sequence {
  GenerateRequest request;
};

struct Scoring : Sequence {
  bool mtp = false;
  std::vector<float> values;  // (rows so far, V)
};

void require(bool condition, const std::string& message, const std::string& hint = {}) {
  if (!condition) throw EngineError(ErrorCode::invalid_argument, message, hint);
}

void check_tokens(const std::vector<int32_t>& tokens, const char* what, const EngineInfo& info) {
  require(!tokens.empty(), std::string(what) + " is empty; at least one token is needed");
  for (size_t i = 0; i < tokens.size(); ++i)
    require(tokens[i] >= 0 && tokens[i] < info.vocab_size, std::string(what) + "[" + std::to_string(i) + "] is " +
                                                               std::to_string(tokens[i]) + ", outside the vocabulary [0, " +
                                                               std::to_string(info.vocab_size) + ")");
}

void check_request(const GenerateRequest& request, const EngineInfo& info) {
  check_tokens(request.prompt, "prompt", info);
  require(static_cast<int64_t>(request.prompt.size()) < info.context,
          "prompt has " + std::to_string(request.prompt.size()) + " tokens; this model's context is " +
              std::to_string(info.context) + " and the answer needs at least one",
          "shorten the prompt or raise maxModelLen");
  require(request.max_tokens == -1 || request.max_tokens >= 1,
          "maxTokens is " + std::to_string(request.max_tokens) + ", below 1");
  require(request.min_tokens >= 0, "minTokens is " + std::to_string(request.min_tokens) + ", below 0");
  const auto in_range = [](float value, float low, float high, const char* name) {
    require(std::isfinite(value) && value >= low && value <= high, std::string(name) + " is " + std::to_string(value) +
                                                                       ", outside [" + std::to_string(low) + ", " +
                                                                       std::to_string(high) + "]");
  };
  in_range(request.temperature, 0.0f, 100.0f, "temperature");
  in_range(request.top_p, 0.0f, 1.0f, "topP");
  in_range(request.min_p, 0.0f, 1.0f, "minP");
  in_range(request.repetition_penalty, 1e-3f, 100.0f, "repetitionPenalty");
  in_range(request.presence_penalty, -100.0f, 100.0f, "presencePenalty");
  in_range(request.frequency_penalty, -100.0f, 100.0f, "frequencyPenalty");
  require(request.top_k >= 0, "topK is " + std::to_string(request.top_k) + ", below 0");
  require(request.n_logprobs >= -1 && request.n_logprobs <= kMaxLogprobs,
          "logprobs is " + std::to_string(request.n_logprobs) + ", outside [0, " + std::to_string(kMaxLogprobs) + "]");
  for (const auto& [id, bias] : request.logit_bias) {
    require(id >= 0 && id < info.vocab_size, "logitBias names token " + std::to_string(id) + ", outside the vocabulary [0, " +
                                                 std::to_string(info.vocab_size) + ")");
    require(std::isfinite(bias), "logitBias of token " + std::to_string(id) + " is not a finite number");
  }
}

// Turns a plan into the flat arrays of a step.
class StepBuilder {
 public:
  explicit StepBuilder(StepInputs& inputs) : in_(inputs) { in_.seq_offsets.push_back(0); }

  void add(const Chunk& chunk) {
    const Sequence& sequence = *chunk.sequence;
    const auto* scoring = dynamic_cast<const Scoring*>(&sequence);
    for (int64_t i = chunk.begin; i < chunk.begin + chunk.n; ++i) {
      const int32_t row = in_.n_tokens();
      in_.token_ids.push_back(sequence.tokens[i]);
      in_.positions.push_back(static_cast<int32_t>(i));
      if (scoring && !scoring->mtp) in_.logits_row_ids.push_back(row);
      if (scoring && scoring->mtp && i + 1 < sequence.length()) in_.mtp_row_ids.push_back(row);
    }
    in_.seq_offsets.push_back(in_.n_tokens());
    in_.max_pages = std::max(in_.max_pages, static_cast<int>(sequence.pages.size()));
    if (const auto* generation = dynamic_cast<const Generation*>(&sequence); generation && chunk.reaches_end)
      add_sample(*generation);
  }

  // Once all chunks are in: the arrays whose width depends on all of them.
  void finish(const std::vector<Chunk>& chunks) {
    in_.page_tables.assign(chunks.size() * in_.max_pages, 0);
    for (size_t b = 0; b < chunks.size(); ++b)
      std::copy(chunks[b].sequence->pages.begin(), chunks[b].sequence->pages.end(),
                in_.page_tables.begin() + b * in_.max_pages);
    if (in_.mtp_row_ids.empty()) return;
    for (const Chunk& chunk : chunks)
      for (int64_t i = chunk.begin + 1; i <= chunk.begin + chunk.n; ++i)
        in_.next_ids.push_back(i < chunk.sequence->length() ? chunk.sequence->tokens[i] : 0);
  }

 private:
  void add_sample(const Generation& generation) {
    const GenerateRequest& request = generation.request;
    SampleRow row;
    row.slot = generation.slot;
    row.position = static_cast<int32_t>(generation.length());
    row.seed = request.seed;
    row.temperature = request.temperature;
    row.top_p = request.top_p;
    row.min_p = request.min_p;
    row.top_k = request.top_k;
    row.repetition_penalty = request.repetition_penalty;
    row.presence_penalty = request.presence_penalty;
    row.frequency_penalty = request.frequency_penalty;
    row.n_logprobs = request.n_logprobs;
    row.bias_begin = static_cast<int32_t>(in_.bias_ids.size());
    for (const auto& [id, bias] : request.logit_bias) {
      in_.bias_ids.push_back(id);
      in_.bias_values.push_back(bias);
    }
    row.bias_end = static_cast<int32_t>(in_.bias_ids.size());
    row.ban_begin = static_cast<int32_t>(in_.ban_ids.size());
    if (generation.n_generated() < request.min_tokens)
      in_.ban_ids.insert(in_.ban_ids.end(), request.stop_ids.begin(), request.stop_ids.end());
    row.ban_end = static_cast<int32_t>(in_.ban_ids.size());
    in_.sample_rows.push_back(row);
    in_.sample_row_ids.push_back(in_.n_tokens() - 1);
  }

  StepInputs& in_;
};

class EngineImpl : public Engine {
 public:
  EngineImpl(LoadedModel model)
      : info_(std::move(model.info)),
        world_(std::move(model.world)),
        pool_(info_.kv_cache_tokens / kPageTokens),
        scheduler_({info_.max_batched_tokens, info_.max_num_seqs}, pool_),
        has_mtp_(model.has_mtp) {
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
    for (const int32_t id : request.stop_ids)
      require(id >= 0 && id < info_.vocab_size, "stopTokenIds holds " + std::to_string(id) + ", outside the vocabulary [0, " +
                                                    std::to_string(info_.vocab_size) + ")");
    auto sequence = std::make_unique<Generation>();
    sequence->tokens = request.prompt;
    sequence->request = std::move(request);
    return enqueue(std::move(sequence));
  }

  uint64_t submit(LogitsRequest request) override {
    check_tokens(request.tokens, "tokens", info_);
    const auto n = static_cast<int64_t>(request.tokens.size());
    require(n <= info_.context,
            std::to_string(n) + " tokens asked for; this model's context is " + std::to_string(info_.context),
            "pass fewer tokens or raise maxModelLen");
    require(!request.mtp || has_mtp_, "MTP logits asked for; no MTP layer is loaded",
            "load with { mtp: true } a checkpoint that has num_nextn_predict_layers >= 1");
    require(!request.mtp || n >= 2,
            "MTP logits asked for one token; row t needs the token after it, so at least two are needed");
    const uint64_t bytes = static_cast<uint64_t>(n) * info_.vocab_size * sizeof(float);
    require(bytes <= kMaxLogitsBytes,
            "logits of " + std::to_string(n) + " tokens would take " + std::to_string(bytes >> 20) + " MiB; the limit is " +
                std::to_string(kMaxLogitsBytes >> 20),
            "split the tokens over several calls");
    auto sequence = std::make_unique<Scoring>();
    sequence->tokens = std::move(request.tokens);
    sequence->mtp = request.mtp;
    sequence->samples = false;
    return enqueue(std::move(sequence));
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
    world_.reset();
  }

 private:
  uint64_t enqueue(std::unique_ptr<Sequence> sequence) {
    sequence->n_prompt = sequence->length();
    const std::lock_guard lock(mutex_);
    if (stopping_) throw EngineError(ErrorCode::disposed, "the model was disposed", "load it again");
    if (broken_) throw *broken_;
    sequence->id = ++last_id_;
    arrivals_.push_back(std::move(sequence));
    changed_.notify_one();
    return last_id_;
  }

  void loop() {
    for (;;) {
      StepEvent event;
      bool stop = false;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || !arrivals_.empty() || !aborts_.empty() || has_work(); });
        for (auto& sequence : arrivals_) scheduler_.add(std::move(sequence));
        arrivals_.clear();
        for (const uint64_t id : aborts_)
          if (scheduler_.remove(id)) add_end(event, id, FinishReason::aborted);
        aborts_.clear();
        stop = stopping_;
      }
      if (stop)
        end_all(event, FinishReason::aborted);
      else
        step(event);
      if (!has_work() && pool_.held() != 0)  // the idle invariant: a leak is a bug worth failing loudly for
        break_model(
            EngineError(ErrorCode::internal, std::to_string(pool_.held()) + " KV pages are held while no sequence exists"));
      snapshot_stats();
      if (listener_ && !event.requests.empty()) listener_(std::move(event));
      if (stop) return;
    }
  }

  bool has_work() const { return scheduler_.n_running() + scheduler_.n_waiting() > 0; }

  void step(StepEvent& event) {
    const std::vector<Chunk> chunks = scheduler_.plan();
    if (chunks.empty()) return;
    try {
      StepInputs inputs;
      StepOutputs outputs;
      StepBuilder builder(inputs);
      for (const Chunk& chunk : chunks) builder.add(chunk);
      builder.finish(chunks);
      for (const Sequence* sequence : scheduler_.admitted())
        if (sequence->samples) {
          const auto prompt_end = sequence->tokens.begin() + sequence->n_prompt;
          inputs.resets.push_back(
              {sequence->slot, {sequence->tokens.begin(), prompt_end}, {prompt_end, sequence->tokens.end()}});
        }
      world_->run(inputs, outputs);
      for (const Chunk& chunk : chunks) Scheduler::commit(chunk);
      count(chunks, inputs);
      take_samples(chunks, inputs, outputs, event);
      take_logits(chunks, outputs, event);
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

  void take_samples(const std::vector<Chunk>& chunks, const StepInputs& inputs, const StepOutputs& outputs, StepEvent& event) {
    const bool logprobs = std::any_of(inputs.sample_rows.begin(), inputs.sample_rows.end(),
                                      [](const SampleRow& row) { return row.n_logprobs >= 0; });
    const size_t earlier = event.requests.size();  // ends without a token have no logprobs, but keep their place
    if (logprobs) {
      event.logprobs.resize(earlier);
      event.top_ids.resize(earlier * kMaxLogprobs, -1);
      event.top_logprobs.resize(earlier * kMaxLogprobs);
    }
    size_t r = 0;
    for (const Chunk& chunk : chunks) {
      if (!chunk.reaches_end || !chunk.sequence->samples) continue;
      auto& generation = static_cast<Generation&>(*chunk.sequence);
      const GenerateRequest& request = generation.request;
      const int32_t token = outputs.tokens[r];
      generation.tokens.push_back(token);

      FinishReason finish = FinishReason::none;
      if (std::find(request.stop_ids.begin(), request.stop_ids.end(), token) != request.stop_ids.end())
        finish = FinishReason::stop;
      else if (generation.n_generated() == request.max_tokens || generation.length() >= info_.context)
        finish = FinishReason::length;
      event.requests.push_back(generation.id);
      event.tokens.push_back(token);
      event.finish.push_back(finish);
      if (logprobs) {
        event.logprobs.push_back(outputs.logprobs[r]);
        const auto first = r * kMaxLogprobs;
        event.top_ids.insert(event.top_ids.end(), &outputs.top_ids[first], &outputs.top_ids[first] + kMaxLogprobs);
        event.top_logprobs.insert(event.top_logprobs.end(), &outputs.top_logprobs[first],
                                  &outputs.top_logprobs[first] + kMaxLogprobs);
      }
      ++r;
      if (finish != FinishReason::none) scheduler_.remove(generation.id);
    }
  }

  void take_logits(const std::vector<Chunk>& chunks, const StepOutputs& outputs, StepEvent& event) {
    size_t plain_at = 0, mtp_at = 0;
    for (const Chunk& chunk : chunks) {
      if (chunk.sequence->samples) continue;
      auto& scoring = static_cast<Scoring&>(*chunk.sequence);
      const std::vector<float>& source = scoring.mtp ? outputs.mtp_logits : outputs.logits;
      size_t& at = scoring.mtp ? mtp_at : plain_at;
      const int64_t rows = chunk.n - (scoring.mtp && chunk.reaches_end ? 1 : 0);
      const size_t n = static_cast<size_t>(rows) * info_.vocab_size;
      scoring.values.insert(scoring.values.end(), source.begin() + at, source.begin() + at + n);
      at += n;
      if (!chunk.reaches_end) continue;
      const int64_t total_rows = scoring.length() - (scoring.mtp ? 1 : 0);
      event.logits.push_back({scoring.id, total_rows, info_.vocab_size, std::move(scoring.values)});
      add_end(event, scoring.id, FinishReason::stop);
      scheduler_.remove(scoring.id);
    }
  }

  // Ends the step's sequences with `error`. A device error is sticky: the model is broken from here on, and says so.
  void fail(const std::vector<Chunk>& chunks, const EngineError& error, StepEvent& event) {
    std::vector<uint64_t> ids;
    for (const Chunk& chunk : chunks) ids.push_back(chunk.sequence->id);
    if (error.code() == ErrorCode::device) {
      ids = scheduler_.ids();
      break_model(error);
    }
    for (const uint64_t id : ids) {
      scheduler_.remove(id);
      add_end(event, id, FinishReason::error);
      event.failures.push_back({id, error.code(), error.what(), error.hint()});
    }
  }

  // Later requests are refused with this error.
  void break_model(const EngineError& error) {
    const std::lock_guard lock(mutex_);
    broken_ = std::make_unique<EngineError>(ErrorCode::device,
                                            std::string("the model is broken since an earlier failure: ") + error.what(),
                                            "dispose the model and load it again");
  }

  void end_all(StepEvent& event, FinishReason finish) {
    for (const uint64_t id : scheduler_.ids()) {
      scheduler_.remove(id);
      add_end(event, id, finish);
    }
  }

  static void add_end(StepEvent& event, uint64_t id, FinishReason finish) {
    event.requests.push_back(id);
    event.tokens.push_back(-1);
    event.finish.push_back(finish);
    if (!event.logprobs.empty()) {
      event.logprobs.push_back(0.0f);
      event.top_ids.resize(event.top_ids.size() + kMaxLogprobs, -1);
      event.top_logprobs.resize(event.top_logprobs.size() + kMaxLogprobs);
    }
  }

  void count(const std::vector<Chunk>& chunks, const StepInputs& inputs) {
    uint64_t decode = 0;
    for (const Chunk& chunk : chunks) decode += chunk.n == 1 && chunk.begin >= chunk.sequence->n_prompt;
    ++steps_;
    decode_tokens_ += decode;
    prefill_tokens_ += inputs.n_tokens() - decode;
  }

  void snapshot_stats() {
    const std::lock_guard lock(mutex_);
    stats_ = {pool_.free(), pool_.held(),    pool_.total(),  scheduler_.n_running(),    scheduler_.n_waiting(),
              steps_,       prefill_tokens_, decode_tokens_, scheduler_.n_preemptions()};
  }

  EngineInfo info_;
  std::unique_ptr<World> world_;
  // Owned by the engine thread:
  PagePool pool_;
  Scheduler scheduler_;
  bool has_mtp_;
  uint64_t steps_ = 0, prefill_tokens_ = 0, decode_tokens_ = 0;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Sequence>> arrivals_;
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
  return std::make_unique<EngineImpl>(load_model(folder, options, on_progress, cancelled));
}

std::vector<DeviceLine> engine_devices() {
  std::vector<DeviceLine> lines;
  for (const DeviceReport& report : list_devices()) lines.push_back({report.device, report.available, report.detail});
  return lines;
}

}  // namespace sigmoe
