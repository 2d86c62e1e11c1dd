// A target and an EAGLE3 draft with random weights, in the real engine: steps, drafting, verification, sampling and the
// rollback of rejected tokens are those of any request. Only how many drafts come true is drawn from published acceptance: the
// sampler is pushed towards the draft, or away from it. Sequences sample at temperature 1, so that their tokens differ and so
// do the experts they are routed to. Times of steps and of drafting are the device's own; what a token costs is the wall's.
#include "engine/bench/speculation.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <set>

#include "backend/registry.h"
#include "engine/bench/acceptance.h"
#include "engine/engine.h"
#include "engine/model_folder.h"
#include "engine/speculation/speculation.h"
#include "engine/speculation/synthetic_draft.h"
#include "engine/weights/synthetic.h"
#include "nlohmann/json.hpp"

namespace sigmoe::bench {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct ReplayOptions {
  std::string shape, format = "fp8", acceptance = "3.1", device = "auto", compute = "bfloat16", kernels = "auto";
  int context = 256, depth = 3, steps = 40, threads = 0;
  std::vector<int> batches = {1, 8, 32, 64};
};

constexpr int kPromptTokens = 512;  // read in a step
constexpr int kWarmSteps = 12;      // of every size the first is run and the second recorded

ReplayOptions parse(const std::string& text) {
  const Json in = Json::parse(text, nullptr, false);
  ReplayOptions options;
  const auto whole = [&](const char* name, int fallback, int low, int high) {
    if (!in.contains(name)) return fallback;
    const Json& value = in[name];
    if (!value.is_number_integer() || value.get<double>() < low || value.get<double>() > high)
      throw EngineError(ErrorCode::invalid_argument, std::string("bench ") + name + " is " + value.dump() +
                                                         ", not a whole number in [" + std::to_string(low) + ", " +
                                                         std::to_string(high) + "]");
    return value.get<int>();
  };
  try {
    if (!in.is_object()) throw EngineError(ErrorCode::invalid_argument, "bench options are not a JSON object");
    options.shape = in.value("shape", "");
    options.format = in.value("format", options.format);
    options.acceptance = in.value("acceptance", options.acceptance);
    options.device = in.value("device", options.device);
    options.compute = in.value("compute", options.compute);
    options.kernels = in.value("kernels", options.kernels);
    options.batches = in.value("batches", options.batches);
  } catch (const Json::exception& error) {
    throw EngineError(ErrorCode::invalid_argument, std::string("bench options: ") + error.what());
  }
  options.context = whole("context", options.context, 2, 1 << 17);
  options.depth = whole("depth", options.depth, 1, kMaxDraftDepth);
  options.steps = whole("steps", options.steps, 3, 10000);
  options.threads = whole("threads", 0, 0, 1024);
  const auto fits = [](int batch) { return batch >= 1 && batch <= 1024; };
  if (options.batches.empty() || !std::all_of(options.batches.begin(), options.batches.end(), fits))
    throw EngineError(ErrorCode::invalid_argument, "bench batches are not numbers of sequences from 1 to 1024");
  if (options.format != "fp8" && options.format != "bf16")
    throw EngineError(ErrorCode::invalid_argument, "bench format must be fp8 or bf16");
  return options;
}

// Steps of one run: from the first in which every sequence decodes.
struct Steps {
  std::vector<double> ms;     // on the wall, from step to step
  std::vector<int> tokens;    // that each gave
  EngineStats before, after;  // counters at the first and behind the last
  double distinct = 0;        // of the tokens given, the share that differ

  double tokens_per_second() const {
    double total_ms = 0, total_tokens = 0;
    for (size_t i = 0; i < ms.size(); ++i) total_ms += ms[i], total_tokens += tokens[i];
    return total_tokens / total_ms * 1e3;
  }
};

class ReplayBench {
 public:
  ReplayBench(const ReplayOptions& options, const std::function<void(const std::string&)>& on_line,
              const std::atomic<bool>* cancelled)
      : options_(options),
        on_line_(on_line),
        cancelled_(cancelled),
        acceptance_(options.acceptance, options.depth),
        batch_(*std::max_element(options.batches.begin(), options.batches.end())) {
    // While the last prompts are read, the first sequences go on.
    const int n_prompt_steps = batch_ * options.context / kPromptTokens + batch_;
    most_tokens_ = (n_prompt_steps + options.steps + kWarmSteps + 2) * (options.depth + 1);
    load();
  }

  std::string run() {
    std::vector<Json> rows;
    for (const int batch : options_.batches) rows.push_back(measure(batch));
    const EngineInfo& info = engine_->info();
    return Json{{"machine", {{"name", info.device_name}, {"device", info.device}, {"kernels", info.kernels}}},
                {"shape", options_.shape},
                {"format", options_.format},
                {"context", options_.context},
                {"depth", options_.depth},
                {"acceptance",
                 {{"asked", options_.acceptance}, {"meanTokens", acceptance_.mean_tokens()}, {"shares", acceptance_.shares()}}},
                {"weightBytes", info.weight_bytes},
                {"rows", rows}}
        .dump();
  }

 private:
  void check_cancelled() const {
    if (cancelled_ && cancelled_->load()) throw EngineError(ErrorCode::aborted, "the benchmark was aborted");
  }

  void load() {
    const ModelConfig config = shape_config(options_.shape);
    const int batch = batch_;
    EngineOptions engine;
    engine.kernels = options_.kernels;
    engine.compute = options_.compute;
    engine.n_threads = options_.threads;
    LoadedModel model;
    EngineInfo& info = model.info = describe_model(config);
    info.device = resolve_device(options_.device, info.device_reason);
    auto backend = create_backend(info.device, backend_options(engine));
    info.device_name = backend->info().name;
    info.kernels = backend->info().kernels;
    info.context = options_.context + most_tokens_ + kMaxDraftDepth;
    info.max_num_seqs = batch;
    info.max_batched_tokens = kPromptTokens + batch * (options_.depth + 1);
    info.speculation = "eagle3";
    info.max_draft = options_.depth;
    if (info.context > config.context)
      throw EngineError(ErrorCode::invalid_argument,
                        "bench needs " + std::to_string(info.context) + " positions; the shape's context is " +
                            std::to_string(config.context),
                        "lower --context or --steps");
    info.kv_cache_tokens = pages_for(info.context) * kPageTokens * batch;
    model.max_waiting = batch;
    model.prefix_cache = false;  // prompts found in it would be computed by nobody
    model.adaptive_depth = false;
    model.replay = Replay{[n = config.vocab_size](const Sequence& sequence, int64_t position) {
                            return static_cast<int32_t>(Acceptance::random(sequence.id, position) % static_cast<uint64_t>(n));
                          },
                          [this](const Sequence& sequence, int64_t n_drafts) {
                            return acceptance_.draw(sequence.id, sequence.length(), n_drafts);
                          }};

    on_line_("making random " + options_.format + " weights of shape " + options_.shape);
    const WeightFormat format = options_.format == "fp8" ? WeightFormat::fp8 : WeightFormat::bf16;
    ModelWeights weights = synthetic_weights(config, format, *backend, 7, backend_options(engine).n_threads);
    check_cancelled();
    const DraftFolder draft = synthetic_draft(config, 11);
    DraftWeights draft_weights = load_draft_weights(draft, config, *backend, backend_options(engine).n_threads, cancelled_);
    info.weight_bytes = weights.bytes + draft_weights.bytes;
    RunnerLimits limits;
    limits.max_tokens = info.max_batched_tokens;
    limits.max_seqs = batch;
    limits.rows_per_seq = options_.depth + 1;
    limits.n_positions = info.context;
    limits.n_pages = info.kv_cache_tokens / kPageTokens;
    limits.features.n_rows = Speculation::n_feature_rows(batch, info.max_batched_tokens);
    limits.features.layers = draft.config.feature_layers;
    const int64_t vocab = config.vocab_size;
    model.world = std::make_unique<World>(1, [&](int, Comm*) {
      return std::make_unique<RankRunner>(config, std::move(backend), std::move(weights), nullptr, 0, 1, limits);
    });
    model.drafter = make_eagle3_drafter(draft, std::move(draft_weights), model.world->rank(0),
                                        {limits.max_tokens, batch, limits.n_positions, limits.n_pages});
    vocab_size_ = vocab;
    engine_ = start_engine(std::move(model));
  }

  // Steps of a batch that has read its prompts; then all of it is aborted.
  Steps run_steps(int batch, bool drafted) {
    check_cancelled();
    Steps steps;
    std::mutex mutex;
    std::condition_variable changed;
    std::set<uint64_t> started, ended;
    std::vector<int32_t> given;
    Clock::time_point last;
    int n_steps = 0;
    bool failed = false;
    engine_->set_listener([&](StepEvent&& event) {
      const auto now = Clock::now();
      const std::lock_guard lock(mutex);
      failed = failed || !event.failures.empty();
      for (size_t i = 0; i < event.requests.size(); ++i)
        if (event.finish[i] != FinishReason::none) ended.insert(event.requests[i]);
      const bool all_decoded = static_cast<int>(started.size()) == batch && ended.empty();
      started.insert(event.requests.begin(), event.requests.end());
      if (all_decoded && ++n_steps > kWarmSteps && static_cast<int>(steps.ms.size()) < options_.steps) {
        if (steps.ms.empty()) steps.before = stats_before_;
        steps.ms.push_back(std::chrono::duration<double, std::milli>(now - last).count());
        steps.tokens.push_back(static_cast<int>(event.tokens.size()));
        given.insert(given.end(), event.tokens.begin(), event.tokens.end());
        steps.after = engine_->stats();
      }
      stats_before_ = engine_->stats();
      last = now;
      changed.notify_all();
    });
    std::mt19937_64 random(batch);
    GenerateRequest request;
    request.max_tokens = most_tokens_;
    request.max_draft = drafted ? options_.depth : 0;
    std::vector<uint64_t> ids;
    for (int b = 0; b < batch; ++b) {
      request.seed = b;
      request.prompt.resize(options_.context);
      for (int32_t& token : request.prompt) token = static_cast<int32_t>(random() % vocab_size_);
      ids.push_back(engine_->submit(request));
    }
    {
      std::unique_lock lock(mutex);
      while (static_cast<int>(steps.ms.size()) < options_.steps && !failed && ended.empty()) {
        changed.wait_for(lock, std::chrono::milliseconds(100));
        if (cancelled_ && cancelled_->load()) break;
      }
    }
    for (const uint64_t id : ids) engine_->abort(id);
    {
      std::unique_lock lock(mutex);
      changed.wait_for(lock, std::chrono::minutes(10), [&] { return static_cast<int>(ended.size()) == batch; });
    }
    engine_->set_listener({});
    check_cancelled();
    if (failed || static_cast<int>(steps.ms.size()) < options_.steps)
      throw EngineError(ErrorCode::internal, "a batch of the benchmark ended before its steps were measured");
    steps.distinct =
        static_cast<double>(std::set<int32_t>(given.begin(), given.end()).size()) / static_cast<double>(given.size());
    return steps;
  }

  Json measure(int batch) {
    on_line_("batch " + std::to_string(batch));
    const Steps plain = run_steps(batch, false), drafted = run_steps(batch, true);
    const auto mean = [](double ms, uint64_t n) { return n > 0 ? ms / static_cast<double>(n) : 0.0; };
    const double plain_ms =
                     mean(plain.after.plain_ms - plain.before.plain_ms, plain.after.plain_steps - plain.before.plain_steps),
                 verify_ms = mean(drafted.after.verify_ms - drafted.before.verify_ms,
                                  drafted.after.verify_steps - drafted.before.verify_steps),
                 draft_ms = mean(drafted.after.draft_ms - drafted.before.draft_ms,
                                 drafted.after.draft_passes - drafted.before.draft_passes);
    double tokens = 0;
    for (const int n : drafted.tokens) tokens += n;
    return {{"batch", batch},
            {"plainStepMs", plain_ms},
            {"verifyStepMs", verify_ms},
            {"verifyRatio", verify_ms / plain_ms},
            {"draftMs", draft_ms},
            {"draftShare", draft_ms / (draft_ms + verify_ms)},
            {"tokensPerStep", tokens / static_cast<double>(drafted.tokens.size()) / batch},
            {"plainTokensPerSecond", plain.tokens_per_second()},
            {"tokensPerSecond", drafted.tokens_per_second()},
            {"gain", drafted.tokens_per_second() / plain.tokens_per_second()},
            {"plainWallMs", median(plain.ms)},
            {"draftedWallMs", median(drafted.ms)},
            {"distinctTokens", {plain.distinct, drafted.distinct}}};
  }

  static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }

  ReplayOptions options_;
  const std::function<void(const std::string&)>& on_line_;
  const std::atomic<bool>* cancelled_;
  Acceptance acceptance_;
  int batch_;            // the largest
  int most_tokens_ = 0;  // of an answer
  int64_t vocab_size_ = 0;
  EngineStats stats_before_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::string measure_speculation(const std::string& options_json, const std::function<void(const std::string&)>& on_line,
                                const std::atomic<bool>* cancelled) {
  return ReplayBench(parse(options_json), on_line, cancelled).run();
}

}  // namespace sigmoe::bench
