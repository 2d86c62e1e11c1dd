// The whole engine through its public header, on the bundled model.
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "cpu/cpu_backend.h"
#include "doctest/doctest.h"
#include "engine/engine.h"
#include "golden.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const std::string kNano = source_dir() + "/models/nano";

// Collects events of all requests; waits with a deadline so that a lost end fails a test instead of hanging it.
class Collector {
 public:
  explicit Collector(Engine& engine) {
    engine.set_listener([this](StepEvent&& event) { take(std::move(event)); });
  }

  struct Result {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    FinishReason finish = FinishReason::none;
    std::vector<float> logits;
  };

  Result wait(uint64_t id) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return results_[id].finish != FinishReason::none; }));
    return results_[id];
  }

  size_t n_tokens(uint64_t id) {
    const std::lock_guard lock(mutex_);
    return results_[id].tokens.size();
  }

 private:
  void take(StepEvent&& event) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < event.requests.size(); ++i) {
      Result& result = results_[event.requests[i]];
      CHECK(result.finish == FinishReason::none);  // nothing comes after the end
      if (event.tokens[i] >= 0) result.tokens.push_back(event.tokens[i]);
      if (!event.logprobs.empty()) result.logprobs.push_back(event.logprobs[i]);
      result.finish = event.finish[i];
    }
    for (StepEvent::Logits& logits : event.logits) results_[logits.request].logits = std::move(logits.values);
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Result> results_;
};

Ranks ranks_here;  // of the engines that load_nano makes

// Runs a test case once in every world, each time as if there were no other.
struct EveryWorld {
  EveryWorld() {
    if (enough_gpus(1)) SUBCASE("1 rank") ranks_here = {1};
    if (enough_gpus(2)) SUBCASE("2 ranks") ranks_here = {2};
    if (enough_gpus(4)) SUBCASE("4 ranks, whole experts on each") ranks_here = {4, true};
    if (enough_gpus(8)) SUBCASE("8 ranks") ranks_here = {8};
  }
  ~EveryWorld() { ranks_here = {}; }
};

std::unique_ptr<Engine> load_nano(EngineOptions options = {}) {
  if (ranks_here.world > 1) {
    options.tensor_parallel = ranks_here.world;
    options.expert_parallel = ranks_here.expert_parallel;
    options.n_threads = 1;
  }
  return Engine::load(kNano, on_test_device(options));
}

GenerateRequest greedy_request(const std::vector<int32_t>& prompt, int64_t max_tokens) {
  GenerateRequest request;
  request.prompt = prompt;
  request.max_tokens = max_tokens;
  request.temperature = 0;
  return request;
}

std::vector<int32_t> some_prompt(int n, int salt = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < n; ++i) prompt.push_back(((i + salt) * 2654435761u >> 9) % 6000);
  return prompt;
}

void check_refused(Engine& engine, GenerateRequest request, const char* named) {
  CAPTURE(named);
  try {
    engine.submit(std::move(request));
    FAIL("was accepted");
  } catch (const EngineError& error) {
    CHECK(error.code() == ErrorCode::invalid_argument);
    CHECK(std::string(error.what()).find(named) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("engine: greedy answers equal the publisher's, alone and in one batch") {
  const EveryWorld world;
  EngineOptions options;
  options.compute = "float32";
  const auto engine = load_nano(options);
  Collector collector(*engine);
  std::ifstream file(source_dir() + "/test/golden/nano/greedy.json");
  const auto cases = nlohmann::json::parse(file)["prompts"];
  std::vector<std::pair<uint64_t, std::vector<int32_t>>> expected;
  for (const auto& item : cases) {
    const auto greedy = item["greedy_ids"].get<std::vector<int32_t>>();
    expected.emplace_back(engine->submit(greedy_request(item["prompt_ids"], static_cast<int64_t>(greedy.size()))), greedy);
  }
  for (const auto& [id, greedy] : expected) CHECK(collector.wait(id).tokens == greedy);
  CHECK(engine->stats().held_pages == 0);
}

TEST_CASE("engine: a small pool preempts and recomputes without changing a token") {
  const EveryWorld world;
  EngineOptions roomy, tight;
  for (EngineOptions* options : {&roomy, &tight}) options->max_model_len = 512;
  tight.kv_cache_tokens = 512;
  std::vector<std::vector<int32_t>> answers[2];
  uint64_t preemptions = 0;
  for (const bool small : {false, true}) {
    const auto engine = load_nano(small ? tight : roomy);
    Collector collector(*engine);
    std::vector<uint64_t> ids;
    for (int i = 0; i < 6; ++i) {
      GenerateRequest request = greedy_request(some_prompt(100, i), 200);
      request.temperature = 0.8f;
      request.seed = i;
      request.repetition_penalty = 1.1f;
      ids.push_back(engine->submit(std::move(request)));
    }
    for (const uint64_t id : ids) answers[small].push_back(collector.wait(id).tokens);
    preemptions = engine->stats().preemptions;
    CHECK(engine->stats().held_pages == 0);
  }
  CHECK(preemptions > 0);
  CHECK(answers[0] == answers[1]);
}

TEST_CASE("engine: sampled tokens do not depend on the neighbours") {
  const EveryWorld world;
  const auto engine = load_nano();
  Collector collector(*engine);
  const auto request = [](int i) {
    GenerateRequest r = greedy_request(some_prompt(20 + i, i), 40);
    r.temperature = 0.9f;
    r.top_p = 0.9f;
    r.seed = 1000 + i;
    r.n_logprobs = 3;
    return r;
  };
  std::vector<Collector::Result> alone;
  for (int i = 0; i < 5; ++i) alone.push_back(collector.wait(engine->submit(request(i))));
  std::vector<uint64_t> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(engine->submit(request(i)));
  for (int i = 0; i < 5; ++i) {
    const auto together = collector.wait(ids[i]);
    CHECK(together.tokens == alone[i].tokens);
    CHECK(together.logprobs == alone[i].logprobs);
  }
}

TEST_CASE("engine: logits requests give every position, chunked, beside running generations") {
  const EveryWorld world;
  EngineOptions options;
  options.max_batched_tokens = 33;
  options.with_mtp = true;
  const auto engine = load_nano(options);
  Collector collector(*engine);
  const std::vector<int32_t> tokens = some_prompt(150);
  const uint64_t generation = engine->submit(greedy_request(some_prompt(10), 30));
  const uint64_t plain = engine->submit(LogitsRequest{tokens, false});
  const uint64_t mtp = engine->submit(LogitsRequest{tokens, true});
  CHECK(collector.wait(plain).logits.size() == 150u * 6144);
  CHECK(collector.wait(mtp).logits.size() == 149u * 6144);
  CHECK(collector.wait(generation).tokens.size() == 30);

  WorldSpec spec;
  spec.kernels = engine->info().device == "cpu" ? engine->info().kernels : engine->info().device;
  spec.compute = DType::bf16;  // the engine's default
  spec.deterministic = on_test_device({}).deterministic;
  spec.world = ranks_here.world;
  spec.expert_parallel = ranks_here.expert_parallel;
  TestModel model(kNano, spec, 256);
  CHECK(collector.wait(plain).logits == run_logits(model, tokens, {512}));
}

TEST_CASE("engine: stop ids, length, minimum length, context end") {
  const EveryWorld world;
  EngineOptions options;
  options.max_model_len = 64;
  const auto engine = load_nano(options);
  Collector collector(*engine);
  const auto free_run = collector.wait(engine->submit(greedy_request(some_prompt(20), 30)));
  CHECK(free_run.finish == FinishReason::length);
  CHECK(free_run.tokens.size() == 30);

  GenerateRequest stopped = greedy_request(some_prompt(20), 30);
  stopped.stop_ids = {free_run.tokens[5]};
  const auto stop = collector.wait(engine->submit(stopped));
  CHECK(stop.finish == FinishReason::stop);
  CHECK(stop.tokens.back() == free_run.tokens[5]);
  CHECK(stop.tokens.size() <= 6);

  stopped.min_tokens = 12;
  const auto later = collector.wait(engine->submit(stopped));
  for (size_t i = 0; i < 12; ++i) CHECK(later.tokens.at(i) != free_run.tokens[5]);

  const auto to_the_end = collector.wait(engine->submit(greedy_request(some_prompt(20), -1)));
  CHECK(to_the_end.finish == FinishReason::length);
  CHECK(to_the_end.tokens.size() == 44);
}

TEST_CASE("engine: requests no run could satisfy are refused by name") {
  const auto engine = load_nano();
  const GenerateRequest good = greedy_request({1, 2, 3}, 5);
  const auto with = [&](auto change) {
    GenerateRequest request = good;
    change(request);
    return request;
  };
  check_refused(*engine, with([](auto& r) { r.prompt.clear(); }), "prompt is empty");
  check_refused(*engine, with([](auto& r) { r.prompt = {1, 6144}; }), "prompt[1] is 6144");
  check_refused(*engine, with([](auto& r) { r.prompt = {-1}; }), "prompt[0] is -1");
  check_refused(*engine, with([](auto& r) { r.prompt.assign(2048, 1); }), "context is 2048");
  check_refused(*engine, with([](auto& r) { r.temperature = kNan; }), "temperature");
  check_refused(*engine, with([](auto& r) { r.temperature = -1; }), "temperature");
  check_refused(*engine, with([](auto& r) { r.top_p = 1.5f; }), "topP");
  check_refused(*engine, with([](auto& r) { r.min_p = -0.1f; }), "minP");
  check_refused(*engine, with([](auto& r) { r.repetition_penalty = 0; }), "repetitionPenalty");
  check_refused(*engine, with([](auto& r) { r.top_k = -2; }), "topK");
  check_refused(*engine, with([](auto& r) { r.max_tokens = 0; }), "maxTokens");
  check_refused(*engine, with([](auto& r) { r.n_logprobs = 21; }), "logprobs");
  check_refused(*engine, with([](auto& r) { r.logit_bias = {{7000, 1.0f}}; }), "logitBias");
  check_refused(*engine, with([](auto& r) { r.logit_bias = {{7, kNan}}; }), "logitBias");
  check_refused(*engine, with([](auto& r) { r.stop_ids = {-5}; }), "stopTokenIds");
  CHECK_THROWS_AS(engine->submit(LogitsRequest{{1, 2}, true}), EngineError);  // no MTP layer was loaded
}

TEST_CASE("engine: abort before, during and after; shutting down ends everything") {
  const EveryWorld world;
  auto engine = load_nano();
  Collector collector(*engine);
  const uint64_t queued = engine->submit(greedy_request(some_prompt(10), 500));
  engine->abort(queued);
  CHECK(collector.wait(queued).finish == FinishReason::aborted);
  const uint64_t running = engine->submit(greedy_request(some_prompt(10), 1500));
  while (collector.n_tokens(running) < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  engine->abort(running);
  CHECK(collector.wait(running).finish == FinishReason::aborted);
  CHECK(collector.wait(running).tokens.size() < 1500);
  engine->abort(running);
  engine->abort(123456);
  CHECK(engine->stats().held_pages == 0);

  std::vector<uint64_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(engine->submit(greedy_request(some_prompt(50, i), 1500)));
  engine->shut_down();
  engine->shut_down();
  for (const uint64_t id : ids) CHECK(collector.wait(id).finish == FinishReason::aborted);
  CHECK_THROWS_AS(engine->submit(greedy_request({1}, 1)), EngineError);
}

TEST_CASE("engine: loading reports progress, can be cancelled, and refuses what it cannot run") {
  uint64_t last = 0;
  EngineLoadProgress end;
  Engine::load(kNano, {}, [&](const EngineLoadProgress& progress) {
    CHECK(progress.bytes_done >= last);
    last = progress.bytes_done;
    end = progress;
  });
  CHECK(end.bytes_total > 0);
  CHECK(end.bytes_done == end.bytes_total);

  const std::atomic<bool> cancelled{true};
  const auto code_of = [](auto&& load) {
    try {
      load();
    } catch (const EngineError& error) {
      return error.code();
    }
    return ErrorCode::internal;
  };
  CHECK(code_of([&] { Engine::load(kNano, {}, {}, &cancelled); }) == ErrorCode::aborted);
  CHECK(code_of([&] { Engine::load("/no/such/folder", {}); }) == ErrorCode::not_found);
  CHECK(code_of([&] { Engine::load(source_dir() + "/csrc", {}); }) == ErrorCode::not_found);
  EngineOptions options;
  options.device = "ascend";
  CHECK(code_of([&] { load_nano(options); }) == ErrorCode::not_found);
  options = {};
  options.max_model_len = 4096;
  CHECK(code_of([&] { load_nano(options); }) == ErrorCode::invalid_argument);
  options = {};
  options.tensor_parallel = 3;
  CHECK(code_of([&] { load_nano(options); }) == ErrorCode::unsupported);
  options = {};
  options.device = "cpu";
  options.prefill_attention = "int8";
  CHECK(code_of([&] { load_nano(options); }) == ErrorCode::invalid_argument);
  options.prefill_attention = "fp8";
  CHECK(code_of([&] { load_nano(options); }) == ErrorCode::unsupported);
  CHECK_THROWS_WITH_AS(load_nano(options), doctest::Contains("prefill attention in fp8 asked for"), EngineError);
  options.prefill_attention = "auto";
  options.compute = "float32";
  CHECK(load_nano(options)->info().prefill_attention == "float32");
  CHECK(load_nano(options)->info().kv_cache_dtype == "float32");
  options.compute = "bfloat16";
  options.kernels = "reference";  // products in float32 over a BF16 cache
  CHECK(load_nano(options)->info().prefill_attention == "float32");
  CHECK(load_nano(options)->info().kv_cache_dtype == "bfloat16");
}

TEST_CASE("engine: a rank that fails breaks the model, ends every request with an error, and the process goes on") {
  // Rank 1's products fail once it has made so many: in the middle of a step that the others are in, too.
  class FailingBackend : public CpuBackend {
   public:
    explicit FailingBackend(const BackendOptions& options) : CpuBackend(options), fails_(options.device_index == 1) {}
    void linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) override {
      if (fails_ && ++n_calls_ == 300) throw EngineError(ErrorCode::out_of_memory, "the planted fault");
      CpuBackend::linear(x, weight, n_tokens, y);
    }

   private:
    bool fails_;
    int n_calls_ = 0;
  };
  for (const int world : {2, 4}) {
    make_cpu_backend = [](const BackendOptions& options) { return std::make_unique<FailingBackend>(options); };
    EngineOptions options;
    options.device = "cpu";
    options.n_threads = 1;
    options.tensor_parallel = world;
    const auto engine = Engine::load(kNano, options);
    make_cpu_backend = {};
    Collector collector(*engine);
    std::vector<uint64_t> ids;
    for (int i = 0; i < 5; ++i) ids.push_back(engine->submit(greedy_request(some_prompt(20, i), 500)));
    for (const uint64_t id : ids) CHECK(collector.wait(id).finish == FinishReason::error);
    try {
      engine->submit(greedy_request({1, 2, 3}, 5));
      FAIL("a broken model took a request");
    } catch (const EngineError& error) {
      CHECK(error.code() == ErrorCode::device);
      CHECK(std::string(error.what()).find("the planted fault") != std::string::npos);
    }
    engine->shut_down();
  }
}

TEST_CASE("engine: two, four and eight ranks answer like one, with parts of experts or whole ones") {
  std::vector<int32_t> expected;
  for (const auto [world, expert_parallel] : all_worlds()) {
    CAPTURE(world);
    CAPTURE(expert_parallel);
    if (!enough_gpus(world)) {
      MESSAGE("a world of " << world << " was not run: set SIGMOE_TEST_GPUS to the number of GPUs");
      continue;
    }
    EngineOptions options;
    options.compute = "float32";
    options.n_threads = world > 1 ? 1 : 0;
    options.tensor_parallel = world;
    options.expert_parallel = expert_parallel;
    const auto engine = load_nano(options);
    Collector collector(*engine);
    std::vector<uint64_t> ids;
    for (int i = 0; i < 3; ++i) ids.push_back(engine->submit(greedy_request(some_prompt(30 + 70 * i, i), 40)));
    std::vector<int32_t> tokens;
    for (const uint64_t id : ids) {
      const Collector::Result result = collector.wait(id);
      CHECK(result.finish == FinishReason::length);
      tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
    }
    if (world == 1) expected = tokens;
    CHECK(tokens == expected);
    CHECK(engine->stats().held_pages == 0);
    engine->shut_down();
  }
}

// The bundled model's experts are one shard wide: all ranks but one have no share of them, and the steps below are of few,
// some and many rows.
TEST_CASE("engine: ranks without a share of the experts answer in BF16, whatever a step holds") {
  for (const auto [world, expert_parallel] : all_worlds()) {
    if (world == 1 || !enough_gpus(world)) continue;
    CAPTURE(world);
    CAPTURE(expert_parallel);
    EngineOptions options;
    options.compute = "bfloat16";
    options.n_threads = 1;
    options.tensor_parallel = world;
    options.expert_parallel = expert_parallel;
    const auto engine = load_nano(options);
    Collector collector(*engine);
    for (const int length : {3, 23, 24, 30, 47, 48, 100}) {
      CAPTURE(length);
      const Collector::Result result = collector.wait(engine->submit(greedy_request(some_prompt(length, length), 4)));
      CHECK(result.finish == FinishReason::length);
      CHECK(result.tokens.size() == 4);
    }
    engine->shut_down();
  }
}
