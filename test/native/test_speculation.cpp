// Speculation in the whole engine: every method, depth, batch and sampler gives the very tokens and log-probabilities of plain
// decoding; the recorded acceptance of the bundled draft; what cannot be combined is refused.
#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "doctest/doctest.h"
#include "engine/engine.h"
#include "golden.h"
#include "nlohmann/json.hpp"
#include "replay_backend.h"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

const std::string kNano = source_dir() + "/models/nano", kDraft = source_dir() + "/models/nano-eagle3";
const std::vector<std::string> kMethods{"eagle3", "mtp", "ngram"};

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> top_ids;
  FinishReason finish = FinishReason::none;
  std::vector<std::pair<int64_t, int64_t>> drafts;  // drafted and accepted, by check
  bool same_as(const Answer& other) const {
    return tokens == other.tokens && logprobs == other.logprobs && top_ids == other.top_ids && finish == other.finish;
  }
};

// An engine and what its requests came to. `on_token` may act in the middle of an answer.
class Run {
 public:
  explicit Run(EngineOptions options) : engine_(Engine::load(kNano, on_test_device(options))) {
    engine_->set_listener([this](StepEvent&& event) {
      const std::lock_guard lock(mutex_);
      for (const StepEvent::Drafts& drafts : event.drafts)
        answers_[drafts.request].drafts.push_back({drafts.n_drafted, drafts.n_accepted});
      for (size_t i = 0; i < event.requests.size(); ++i) {
        Answer& answer = answers_[event.requests[i]];
        CHECK(answer.finish == FinishReason::none);
        if (event.tokens[i] >= 0) answer.tokens.push_back(event.tokens[i]);
        // Who asked for none has zeros in the steps in which a neighbour asked.
        if (!event.logprobs.empty() && (event.logprobs[i] != 0.0f || event.top_ids[i * 20] >= 0)) {
          answer.logprobs.push_back(event.logprobs[i]);
          answer.top_ids.insert(answer.top_ids.end(), event.top_ids.begin() + i * 20, event.top_ids.begin() + (i + 1) * 20);
        }
        answer.finish = event.finish[i];
      }
      changed_.notify_all();
      for (const uint64_t id : std::set(event.requests.begin(), event.requests.end())) {
        if (!masked_.contains(id) || answers_[id].finish != FinishReason::none) continue;
        std::vector<int32_t> drafts;
        for (const StepEvent::Proposal& proposal : event.proposals)
          if (proposal.request == id) drafts = proposal.tokens;
        send_masks(id, static_cast<int64_t>(answers_[id].tokens.size()), drafts);
      }
    });
  }

  // Every token of a masked request may be any id but those that mask_at() leaves out.
  uint64_t submit_masked(GenerateRequest request) {
    request.masked = true;
    const std::lock_guard lock(mutex_);  // its first event waits until it is known
    const uint64_t id = engine_->submit(std::move(request));
    masked_.insert(id);
    send_masks(id, 0, {});
    return id;
  }

  uint64_t submit(GenerateRequest request) { return engine_->submit(std::move(request)); }
  Answer wait(uint64_t id) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(120), [&] { return answers_[id].finish != FinishReason::none; }));
    return answers_[id];
  }
  // Waits until a request has n tokens, or has ended.
  void wait_for_tokens(uint64_t id, size_t n) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(120),
                              [&] { return answers_[id].tokens.size() >= n || answers_[id].finish != FinishReason::none; }));
  }
  std::vector<Answer> answers(const std::vector<GenerateRequest>& requests) {
    std::vector<uint64_t> ids;
    for (const GenerateRequest& request : requests) ids.push_back(submit(request));
    std::vector<Answer> out;
    for (const uint64_t id : ids) out.push_back(wait(id));
    CHECK(engine_->stats().held_pages == 0);
    return out;
  }
  Engine& engine() { return *engine_; }

 private:
  void send_masks(uint64_t id, int64_t position, const std::vector<int32_t>& drafts) {
    std::vector<uint32_t> masks;
    for (size_t i = 0; i <= drafts.size(); ++i) {
      const std::vector<uint32_t> mask = mask_at(position + static_cast<int64_t>(i));
      masks.insert(masks.end(), mask.begin(), mask.end());
      // As a grammar does: nothing is said about what follows a token that may not come. Now and then less than could be.
      if (i < drafts.size() && (!(mask[drafts[i] / 32] >> (drafts[i] % 32) & 1) || (position + i) % 11 == 10)) break;
    }
    engine_->set_masks(id, position, std::move(masks));
  }
  // Which ids it leaves out changes with the position.
  std::vector<uint32_t> mask_at(int64_t position) const {
    std::vector<uint32_t> mask((engine_->info().vocab_size + 31) / 32, ~0u);
    for (int64_t id = position % 5; id < engine_->info().vocab_size; id += 5) mask[id / 32] &= ~(1u << (id % 32));
    return mask;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Answer> answers_;
  std::set<uint64_t> masked_;
  std::unique_ptr<Engine> engine_;
};

EngineOptions with(const std::string& method, int depth, bool adaptive = false, EngineOptions options = {}) {
  options.speculation = method;
  if (method == "eagle3") options.draft = kDraft;
  options.max_draft = depth;
  options.adaptive_depth = adaptive;
  return options;
}

std::vector<std::vector<int32_t>> golden_prompts() {
  std::ifstream file(source_dir() + "/test/golden/nano/greedy.json");
  const auto golden = nlohmann::json::parse(file);
  std::vector<std::vector<int32_t>> prompts;
  for (const auto& item : golden["prompts"]) prompts.push_back(item["prompt_ids"]);
  return prompts;
}

std::vector<int32_t> long_prompt(int n, int salt) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < n; ++i) prompt.push_back(((i + salt) * 2654435761u >> 9) % 6000);
  return prompt;
}

// Requests of every kind the sampler knows, cycling through prompts.
std::vector<GenerateRequest> all_kinds(int n, int64_t max_tokens) {
  const std::vector<std::vector<int32_t>> prompts = golden_prompts();
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < n; ++i) {
    GenerateRequest r;
    r.prompt = prompts[i % prompts.size()];
    r.max_tokens = max_tokens;
    r.seed = 1000 + i;
    r.temperature = i % 4 == 0 ? 0.0f : 0.7f;
    if (i % 3 == 1) r.top_p = 0.9f, r.top_k = 20;
    if (i % 5 == 2) r.min_p = 0.05f;
    if (i % 2 == 1) r.repetition_penalty = 1.1f, r.presence_penalty = 0.3f, r.frequency_penalty = 0.2f;
    if (i % 4 == 2) r.n_logprobs = 3;
    if (i % 6 == 3) r.logit_bias = {{15, 3.0f}, {100, -100.0f}};
    if (i % 7 == 4) r.n_prompt_logprobs = 1;
    requests.push_back(std::move(r));
  }
  return requests;
}

void check_same(const std::vector<Answer>& got, const std::vector<Answer>& expected) {
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i].tokens == expected[i].tokens);
    CHECK(got[i].same_as(expected[i]));
  }
}

int64_t n_accepted(const std::vector<Answer>& answers) {
  int64_t n = 0;
  for (const Answer& answer : answers)
    for (const auto& [drafted, accepted] : answer.drafts) n += accepted;
  return n;
}

}  // namespace

TEST_CASE("speculation: every method, depth 1 to 8, gives the tokens and log-probabilities of plain decoding") {
  for (const std::string compute : {"float32", "bfloat16"}) {
    EngineOptions plain;
    plain.compute = compute;
    const std::vector<GenerateRequest> requests = all_kinds(12, 36);
    const std::vector<Answer> expected = Run(plain).answers(requests);
    for (const std::string& method : kMethods)
      for (const int depth : {1, 2, 4, 8}) {
        CAPTURE(compute);
        CAPTURE(method);
        CAPTURE(depth);
        Run run(with(method, depth, false, plain));
        const std::vector<Answer> got = run.answers(requests);
        check_same(got, expected);
        CHECK(n_accepted(got) > (method == "ngram" ? 4 : 40));
        const EngineStats stats = run.engine().stats();
        CHECK(static_cast<int64_t>(stats.accepted_tokens) == n_accepted(got));
        CHECK(stats.accepted_at.size() == static_cast<size_t>(depth));
        CHECK(stats.drafted_tokens >= stats.draft_checks);
      }
  }
}

TEST_CASE("speculation: batches of 1, 8 and 64, alone and with depth control") {
  EngineOptions wide;
  wide.max_num_seqs = 64;
  for (const int batch : {1, 8, 64}) {
    const std::vector<GenerateRequest> requests = all_kinds(batch, 24);
    const std::vector<Answer> expected = Run(wide).answers(requests);
    for (const std::string& method : kMethods)
      for (const bool adaptive : {false, true}) {
        CAPTURE(batch);
        CAPTURE(method);
        CAPTURE(adaptive);
        check_same(Run(with(method, 4, adaptive, wide)).answers(requests), expected);
      }
  }
}

TEST_CASE("speculation: the naive path, and every vector path of this machine") {
  for (const DType compute : {DType::f32, DType::bf16})
    for (const std::string& path : available_paths(compute)) {
      if (path == "cuda" || path.starts_with("ascend")) continue;
      CAPTURE(path);
      EngineOptions plain;
      plain.kernels = path;
      plain.compute = compute == DType::f32 ? "float32" : "bfloat16";
      const std::vector<GenerateRequest> requests = all_kinds(4, path == "reference" ? 10 : 24);
      const std::vector<Answer> expected = Run(plain).answers(requests);
      for (const std::string& method : kMethods) {
        CAPTURE(method);
        check_same(Run(with(method, 3, false, plain)).answers(requests), expected);
      }
    }
}

TEST_CASE("speculation: tiny pools, tiny budgets, chunked prompts and warm prefixes change nothing") {
  struct Shape {
    const char* what;
    EngineOptions options;
    bool preempts;
  };
  std::vector<Shape> shapes(3);
  shapes[0].what = "pool of four pages";
  shapes[0].options.max_model_len = 384;
  shapes[0].options.kv_cache_tokens = 512;
  shapes[0].preempts = true;
  shapes[1].what = "budget of 13 tokens";
  shapes[1].options.max_batched_tokens = 13;
  shapes[2].what = "budget below the batch";
  shapes[2].options.max_batched_tokens = 4;
  for (const Shape& shape : shapes) {
    std::vector<GenerateRequest> requests = all_kinds(8, 72);
    for (size_t i = 0; i < requests.size(); ++i) {
      const std::vector<int32_t> start = long_prompt(140, static_cast<int>(i % 2));  // two beginnings, shared by all
      requests[i].prompt.insert(requests[i].prompt.begin(), start.begin(), start.end());
    }
    EngineOptions roomy = shape.options;
    roomy.kv_cache_tokens = 0;
    roomy.max_batched_tokens = 512;
    const std::vector<Answer> expected = Run(roomy).answers(requests);
    for (const std::string& method : kMethods) {
      CAPTURE(shape.what);
      CAPTURE(method);
      Run run(with(method, 5, false, shape.options));
      check_same(run.answers(requests), expected);
      if (shape.preempts) CHECK(run.engine().stats().preemptions > 0);
      check_same(run.answers(requests), expected);  // once more, prefixes from the cache
      CHECK(run.engine().stats().prefix_hit_tokens > 0);
    }
  }
}

TEST_CASE("speculation: ends, minimum lengths, bad words and allowed tokens fall in the middle of drafts") {
  std::vector<GenerateRequest> requests = all_kinds(12, 60);
  const std::vector<Answer> free_run = Run({}).answers(requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    const std::vector<int32_t>& tokens = free_run[i].tokens;
    GenerateRequest& r = requests[i];
    if (i % 4 == 0) r.stop_ids = {tokens[17], tokens[23]};
    if (i % 4 == 1) r.stop_ids = {tokens[3], tokens[30]}, r.min_tokens = 20;
    if (i % 4 == 2) r.bad_words = {{tokens[5]}, {tokens[20], tokens[21]}, {tokens[30], tokens[31], tokens[32]}};
    if (i % 4 == 3) {
      r.allowed_ids = tokens;
      r.max_tokens = 31;
    }
  }
  const std::vector<Answer> expected = Run({}).answers(requests);
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    const std::vector<Answer> got = Run(with(method, 6)).answers(requests);
    check_same(got, expected);
    CHECK(n_accepted(got) > 10);
  }
}

TEST_CASE("speculation: thinking budgets that end in the middle of drafts; requests may ask for fewer drafts, or none") {
  std::vector<GenerateRequest> requests = all_kinds(12, 40);
  for (size_t i = 0; i < requests.size(); ++i) {
    const bool open = i % 2 == 0;
    // One opened by a token that the model likes to say: it opens and closes many times.
    requests[i].thinking = {
        static_cast<int64_t>(1 + i), open, open ? std::vector<int32_t>{10, 11} : std::vector<int32_t>{77}, {20, 21, 22}};
    if (!open) requests[i].logit_bias = {{77, 14.0f}};
  }
  requests[2].max_draft = 0;
  requests[3].max_draft = 1;
  const std::vector<Answer> expected = Run({}).answers(requests);
  int64_t n_forced = 0;
  for (const Answer& answer : expected) n_forced += std::count(answer.tokens.begin(), answer.tokens.end(), 21);
  CHECK(n_forced > 8);
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    const std::vector<Answer> got = Run(with(method, 4)).answers(requests);
    check_same(got, expected);
    CHECK(n_accepted(got) > 10);
    CHECK(got[2].drafts.empty());
    for (const auto& [drafted, accepted] : got[3].drafts) CHECK(drafted == 1);
  }
}

TEST_CASE("speculation: masks are of the drafts before them, and cut them short") {
  const std::vector<GenerateRequest> requests = all_kinds(12, 60);
  const auto answers = [&](EngineOptions options, int64_t* n_accepted_tokens) {
    Run run(options);
    std::vector<uint64_t> ids;
    for (size_t i = 0; i < requests.size(); ++i)
      ids.push_back(i % 3 == 2 ? run.submit(requests[i]) : run.submit_masked(requests[i]));
    std::vector<Answer> out;
    for (const uint64_t id : ids) out.push_back(run.wait(id));
    if (n_accepted_tokens)
      for (size_t i = 0; i < out.size(); ++i)
        if (i % 3 != 2) *n_accepted_tokens += n_accepted({out[i]});
    CHECK(run.engine().stats().held_pages == 0);
    return out;
  };
  const std::vector<Answer> expected = answers({}, nullptr);
  EngineOptions tight;  // preempts in the middle
  tight.max_model_len = 384;
  tight.kv_cache_tokens = 512;
  for (const std::string& method : kMethods)
    for (const bool adaptive : {false, true})
      for (const EngineOptions& options : {EngineOptions{}, tight}) {
        CAPTURE(method);
        CAPTURE(adaptive);
        int64_t n_masked_accepted = 0;
        check_same(answers(with(method, 4, adaptive, options), &n_masked_accepted), expected);
        if (!adaptive && method != "ngram") CHECK(n_masked_accepted > 20);
      }
  Run run(with("mtp", 2));
  CHECK_THROWS_AS(run.engine().set_masks(1, 0, {1u}), EngineError);
  CHECK_THROWS_AS(run.engine().set_masks(1, 0, std::vector<uint32_t>(17 * 192)), EngineError);
}

TEST_CASE("speculation: a chain of three is accepted as recorded") {
  std::ifstream file(source_dir() + "/test/golden/nano/greedy.json");
  const auto golden = nlohmann::json::parse(file);
  for (const std::string compute : {"float32", "bfloat16"}) {
    CAPTURE(compute);
    const bool exact = compute == "float32";
    EngineOptions options;
    options.compute = compute;
    Run run(with("eagle3", 3, false, options));
    double sum_of_means = 0;
    int64_t all_steps = 0, all_tokens = 0;
    for (const auto& item : golden["prompts"]) {
      GenerateRequest request;
      request.prompt = item["prompt_ids"].get<std::vector<int32_t>>();
      request.temperature = 0;
      const int64_t n = static_cast<int64_t>(item["greedy_ids"].size());
      request.max_tokens = n;
      const Answer answer = run.wait(run.submit(request));
      // test/golden/README.md: each step gives the target's own token and the drafts behind it that came true.
      int64_t tokens = 0, steps = 0;
      while (tokens < std::min<int64_t>(60, n - 6)) tokens += 1 + answer.drafts.at(steps++).second;
      const double mean = static_cast<double>(tokens) / steps;
      if (exact) CHECK(mean == doctest::Approx(item["chain3_tokens_per_step"].get<double>()).epsilon(0.0005));
      sum_of_means += mean / golden["prompts"].size();
      all_steps += steps;
      all_tokens += tokens;
    }
    const double bound = exact ? 0.005 : 0.03;
    CHECK(static_cast<double>(all_tokens) / all_steps == doctest::Approx(1.69).epsilon(bound));
    CHECK(sum_of_means == doctest::Approx(1.77).epsilon(bound));
    MESSAGE(compute << ": " << static_cast<double>(all_tokens) / all_steps << " tokens a step, mean of prompts "
                    << sum_of_means);
  }
}

TEST_CASE("speculation: short continuations of one context come out the same for every seed") {
  // Equal draw by draw, so equal in distribution: no number of samples could tell the two apart.
  struct Sampler {
    float temperature, top_p, min_p, repetition_penalty;
    int top_k;
  };
  const std::vector<std::vector<int32_t>> prompts = golden_prompts();
  EngineOptions wide;
  wide.max_num_seqs = 64;
  std::vector<GenerateRequest> requests;
  for (const Sampler& sampler :
       {Sampler{1.0f, 1.0f, 0.0f, 1.0f, 0}, Sampler{0.7f, 0.9f, 0.0f, 1.05f, 20}, Sampler{1.3f, 1.0f, 0.05f, 1.2f, 0}})
    for (int seed = 0; seed < 150; ++seed) {
      GenerateRequest r;
      r.prompt.assign(prompts[0].end() - 16, prompts[0].end());
      r.max_tokens = 6;
      r.seed = seed;
      r.temperature = sampler.temperature;
      r.top_p = sampler.top_p;
      r.min_p = sampler.min_p;
      r.repetition_penalty = sampler.repetition_penalty;
      r.top_k = sampler.top_k;
      requests.push_back(std::move(r));
    }
  const std::vector<Answer> expected = Run(wide).answers(requests);
  std::set<std::vector<int32_t>> different;
  for (const Answer& answer : expected) different.insert(answer.tokens);
  CHECK(different.size() > 150);
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    const std::vector<Answer> got = Run(with(method, 3, false, wide)).answers(requests);
    check_same(got, expected);
    if (method != "ngram") CHECK(n_accepted(got) > 100);
  }
}

TEST_CASE("speculation: aborts in the middle leave nothing behind, and the others go on") {
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    Run run(with(method, 4));
    std::vector<GenerateRequest> requests = all_kinds(12, 150);
    std::vector<uint64_t> ids;
    for (const GenerateRequest& request : requests) ids.push_back(run.submit(request));
    for (size_t i = 0; i < ids.size(); i += 2) {
      run.wait_for_tokens(ids[i], 10 + i);
      run.engine().abort(ids[i]);
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      const FinishReason finish = run.wait(ids[i]).finish;
      if (i % 2 == 1) CHECK(finish == FinishReason::length);
    }
    CHECK(run.engine().stats().held_pages == 0);
    run.submit(requests[0]);
    run.engine().shut_down();
  }
}

TEST_CASE("speculation: what cannot be combined is refused before anything is loaded") {
  const auto refused = [](EngineOptions options, ErrorCode code, const std::string& named) {
    CAPTURE(named);
    try {
      Engine::load(kNano, options);
      FAIL("was loaded");
    } catch (const EngineError& error) {
      CHECK(error.code() == code);
      CHECK_MESSAGE(std::string(error.what()).find(named) != std::string::npos, error.what());
    }
  };
  EngineOptions options;
  options.speculation = "medusa";
  refused(options, ErrorCode::invalid_argument, "medusa");
  options.speculation = "eagle3";
  refused(options, ErrorCode::invalid_argument, "draft folder");
  options.draft = kDraft;
  options.speculation = "ngram";
  refused(options, ErrorCode::invalid_argument, "would not be used");
  options.speculation = "none";
  refused(options, ErrorCode::invalid_argument, "would not be used");
  options = with("mtp", 16);
  refused(options, ErrorCode::invalid_argument, "speculative.maxDepth");
  options = with("eagle3", 3);
  options.draft = source_dir() + "/csrc";
  refused(options, ErrorCode::not_found, "config.json");

  EngineOptions automatic;
  automatic.speculation = "auto";
  CHECK(Engine::load(kNano, automatic)->info().speculation == "mtp");
  automatic = {};
  automatic.speculation = "auto";
  automatic.draft = kDraft;
  CHECK(Engine::load(kNano, automatic)->info().speculation == "eagle3");
  CHECK(Engine::load(kNano, {})->info().speculation == "none");
  Run run(with("ngram", 2));
  GenerateRequest request;
  request.prompt = {1, 2, 3};
  request.max_draft = 99;
  CHECK_THROWS_AS(run.submit(request), EngineError);
}

TEST_CASE("speculation: every method on several ranks answers like plain decoding on them") {
  const std::vector<GenerateRequest> requests = all_kinds(8, 40);
  for (const auto [n_ranks, expert_parallel] : {Ranks{2}, Ranks{4}, Ranks{8}, Ranks{4, true}}) {
    if (!enough_gpus(n_ranks)) {
      MESSAGE("a world of " << n_ranks << " was not run: set SIGMOE_TEST_GPUS to the number of GPUs");
      continue;
    }
    EngineOptions options;
    options.compute = "float32";
    options.tensor_parallel = n_ranks;
    options.expert_parallel = expert_parallel;
    options.n_threads = 1;
    const std::vector<Answer> expected = Run(options).answers(requests);
    for (const std::string& method : kMethods) {
      CAPTURE(n_ranks);
      CAPTURE(method);
      const std::vector<Answer> got = Run(with(method, 4, false, options)).answers(requests);
      check_same(got, expected);
      if (method != "ngram") CHECK(n_accepted(got) > 20);
    }
  }
}

// On the CPU, so that padded steps, drafts that stay on the device and keys are tested without one.
TEST_CASE("speculation: a device that records steps answers alike, and no key stands for two recordings") {
  struct Recording {
    Recording() {
      make_cpu_backend = [](const BackendOptions& options) -> std::unique_ptr<Backend> {
        return std::make_unique<ReplayBackend>(options);
      };
    }
    ~Recording() { make_cpu_backend = nullptr; }
  };
  EngineOptions on_cpu;
  on_cpu.device = "cpu";
  std::vector<GenerateRequest> requests = all_kinds(37, 24);
  for (size_t i = 0; i < requests.size(); i += 9) requests[i].bad_words = {{static_cast<int32_t>(40 + i)}};
  for (size_t i = 4; i < requests.size(); i += 10) requests[i].max_draft = 1;
  for (const int batch : {1, 3, 37}) {
    CAPTURE(batch);
    on_cpu.max_num_seqs = batch;
    const std::vector<GenerateRequest> some(requests.begin(), requests.begin() + std::max(batch, 5));
    Run plain(on_cpu);
    const std::vector<Answer> expected = plain.answers(some);
    std::map<std::pair<std::string, int>, std::vector<Answer>> unrecorded;
    for (const std::string& method : kMethods)
      for (const int depth : {1, 3, 6}) unrecorded[{method, depth}] = Run(with(method, depth, false, on_cpu)).answers(some);
    const Recording recording;
    check_same(Run(on_cpu).answers(some), expected);
    for (const std::string& method : kMethods)
      for (const int depth : {1, 3, 6}) {
        CAPTURE(method);
        CAPTURE(depth);
        const int before = ReplayBackend::n_replays;
        Run drafted(with(method, depth, false, on_cpu));
        const std::vector<Answer> answers = drafted.answers(some);
        check_same(answers, expected);
        for (size_t i = 0; i < answers.size(); ++i) CHECK(answers[i].drafts == unrecorded[{method, depth}][i].drafts);
        CHECK(ReplayBackend::n_replays > before);
        Run controlled(with(method, depth, true, on_cpu));
        check_same(controlled.answers(some), expected);
      }
  }
}

TEST_CASE("speculation: a device that records steps, with tiny pools, budgets smaller than the batch, and aborts") {
  EngineOptions small;
  small.device = "cpu";
  small.max_model_len = 384;
  small.kv_cache_tokens = 1152;
  small.max_num_seqs = 12;
  small.max_batched_tokens = 10;
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 9; ++i) {
    GenerateRequest r;
    r.prompt = long_prompt(60 + 17 * i, i);
    r.max_tokens = 120;
    r.seed = i;
    r.temperature = i % 2 ? 0.8f : 0.0f;
    requests.push_back(std::move(r));
  }
  Run plain(small);
  const std::vector<Answer> expected = plain.answers(requests);
  make_cpu_backend = [](const BackendOptions& options) -> std::unique_ptr<Backend> {
    return std::make_unique<ReplayBackend>(options);
  };
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    Run drafted(with(method, 5, false, small));
    const uint64_t doomed = drafted.submit(requests[0]);
    drafted.wait_for_tokens(doomed, 3);
    drafted.engine().abort(doomed);
    check_same(drafted.answers(requests), expected);
  }
  make_cpu_backend = nullptr;
}
