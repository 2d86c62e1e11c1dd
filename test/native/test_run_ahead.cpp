// Steps launched before the one before them was taken in give the tokens, log-probabilities and counts that steps one by one
// give: whatever ends a sequence and wherever, with slots and pages that others want, and when the device fails. On the CPU,
// behind a backend that records steps, and on the GPU where the tests are asked to use it.
#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "doctest/doctest.h"
#include "engine/engine.h"
#include "golden.h"
#include "replay_backend.h"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

// A device that fails when the samples of step number `fails_at` should come, or memory that is out when it is launched.
class FailingBackend : public ReplayBackend {
 public:
  using ReplayBackend::ReplayBackend;
  static inline int fails_at = -1, is_full_at = -1;
  void start_download(int place, const void* device, size_t bytes) override {
    if (n_launched_++ == is_full_at) throw EngineError(ErrorCode::out_of_memory, "this test's device is full");
    ReplayBackend::start_download(place, device, bytes);
  }
  std::byte* finish_download(int place) override {
    if (n_landed_++ == fails_at) throw EngineError(ErrorCode::device, "this test's device has failed");
    return ReplayBackend::finish_download(place);
  }

 private:
  int n_launched_ = 0, n_landed_ = 0;
};

// CPU engines made while it lives record steps.
template <typename Made>
struct Recording {
  Recording() {
    make_cpu_backend = [](const BackendOptions& options) -> std::unique_ptr<Backend> {
      return std::make_unique<Made>(options);
    };
  }
  ~Recording() { make_cpu_backend = nullptr; }
};

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  FinishReason finish = FinishReason::none;
  bool operator==(const Answer&) const = default;
};

class Run {
 public:
  explicit Run(bool ahead, EngineOptions options = {}) {
    options.run_ahead = ahead;
    engine_ = Engine::load(source_dir() + "/models/nano", on_test_device(options));
    engine_->set_listener([this](StepEvent&& event) { take(event); });
  }
  ~Run() { engine_->shut_down(); }

  // Aborts, from the engine's own thread, as soon as it has n tokens.
  uint64_t submit(const GenerateRequest& request, int64_t abort_at = -1) {
    const std::lock_guard lock(mutex_);
    const uint64_t id = engine_->submit(request);
    abort_at_[id] = abort_at;
    return id;
  }
  Answer wait(uint64_t id) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(120), [&] { return answers_[id].finish != FinishReason::none; }));
    return answers_[id];
  }
  std::vector<Answer> answers(const std::vector<GenerateRequest>& requests) {
    std::vector<uint64_t> ids;
    for (const GenerateRequest& request : requests) ids.push_back(submit(request));
    std::vector<Answer> out;
    for (const uint64_t id : ids) out.push_back(wait(id));
    return out;
  }
  // When nothing is left to do. A step too many may still be on its way when the last answer ends.
  EngineStats idle_stats() {
    for (int i = 0; i < 1000 && engine_->stats().held_pages > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(engine_->stats().held_pages == 0);
    CHECK(engine_->stats().running == 0);
    return engine_->stats();
  }
  Engine& engine() { return *engine_; }

 private:
  void take(const StepEvent& event) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < event.requests.size(); ++i) {
      const uint64_t id = event.requests[i];
      Answer& answer = answers_[id];
      CHECK(answer.finish == FinishReason::none);  // nothing comes behind an end
      if (event.tokens[i] >= 0) answer.tokens.push_back(event.tokens[i]);
      if (!event.logprobs.empty() && event.logprobs[i] != 0.0f) answer.logprobs.push_back(event.logprobs[i]);
      answer.finish = event.finish[i];
      if (static_cast<int64_t>(answer.tokens.size()) == abort_at_[id]) engine_->abort(id);
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Answer> answers_;
  std::map<uint64_t, int64_t> abort_at_;
  std::unique_ptr<Engine> engine_;
};

GenerateRequest request_of(int i, int64_t max_tokens) {
  GenerateRequest r;
  for (int k = 0; k < 5 + i % 9; ++k) r.prompt.push_back(((k + 31 * i) * 2654435761u >> 9) % 6000);
  r.max_tokens = max_tokens;
  r.seed = 100 + i;
  r.temperature = i % 3 == 0 ? 0.0f : 0.9f;
  if (i % 2 == 1) r.repetition_penalty = 1.1f, r.presence_penalty = 0.3f, r.frequency_penalty = 0.2f;
  if (i % 4 == 2) r.n_logprobs = 3;
  if (i % 5 == 3) r.top_p = 0.9f, r.top_k = 20;
  return r;
}

std::vector<GenerateRequest> requests_of(int n, int64_t max_tokens) {
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < n; ++i) requests.push_back(request_of(i, max_tokens));
  return requests;
}

void check_same_counts(const EngineStats& a, const EngineStats& b) {
  CHECK(a.decode_tokens == b.decode_tokens);
  CHECK(a.prefill_tokens == b.prefill_tokens);
}

}  // namespace

TEST_CASE("run ahead: the same answers and counts, alone, in batches, and with more requests than slots") {
  const Recording<ReplayBackend> recording;
  for (const int n_slots : {1, 3, 16}) {
    CAPTURE(n_slots);
    EngineOptions options;
    options.max_num_seqs = n_slots;
    std::vector<GenerateRequest> requests = requests_of(16, 40);
    for (size_t i = 0; i < requests.size(); ++i) requests[i].max_tokens = 1 + static_cast<int64_t>(i) * 3;
    Run apart(false, options), ahead(true, options);
    CHECK(ahead.answers(requests) == apart.answers(requests));
    const EngineStats stats = ahead.idle_stats(), stats_apart = apart.idle_stats();
    check_same_counts(stats, stats_apart);
    CHECK(stats.steps_ahead > stats.steps / 4);
    CHECK(stats_apart.steps_ahead == 0);
  }
}

TEST_CASE("run ahead: stop ids, minimum lengths and the context's end, at every place") {
  const Recording<ReplayBackend> recording;
  EngineOptions options;
  options.max_model_len = 48;
  Run apart(false, options), ahead(true, options);
  const Answer free_run = apart.answers({request_of(1, 24)})[0];
  std::vector<GenerateRequest> requests;
  for (const int32_t token : free_run.tokens) {
    requests.push_back(request_of(1, 24));
    requests.back().stop_ids = {token};
    requests.push_back(requests.back());
    requests.back().min_tokens = 9;
    requests.push_back(request_of(static_cast<int>(requests.size()), -1));
  }
  const std::vector<Answer> expected = apart.answers(requests);
  CHECK(ahead.answers(requests) == expected);
  CHECK(std::count_if(expected.begin(), expected.end(), [](const Answer& a) { return a.finish == FinishReason::stop; }) > 20);
  check_same_counts(ahead.idle_stats(), [&] {
    Run again(false, options);
    again.answers(requests);
    return again.idle_stats();
  }());
}

TEST_CASE("run ahead: aborts at every place publish nothing more and disturb nobody; slots and pages serve again") {
  const Recording<ReplayBackend> recording;
  EngineOptions options;
  options.max_num_seqs = 4;
  options.max_model_len = 256;
  Run apart(false, options), ahead(true, options);
  const std::vector<GenerateRequest> requests = requests_of(6, 30);
  const std::vector<Answer> expected = apart.answers(requests);
  for (int64_t place = 0; place < 12; ++place) {
    CAPTURE(place);
    std::vector<uint64_t> ids;
    const uint64_t doomed = ahead.submit(request_of(7, 200), place);
    if (place == 0) ahead.engine().abort(doomed);
    for (const GenerateRequest& request : requests) ids.push_back(ahead.submit(request));
    const Answer aborted = ahead.wait(doomed);
    CHECK(aborted.finish == FinishReason::aborted);
    CHECK(static_cast<int64_t>(aborted.tokens.size()) <= place + 1);
    for (size_t i = 0; i < ids.size(); ++i) CHECK(ahead.wait(ids[i]) == expected[i]);
  }
  GenerateRequest late = request_of(8, 200);
  late.deadline_ms = 5;
  const Answer ended = ahead.wait(ahead.submit(late));
  CHECK((ended.finish == FinishReason::deadline || ended.finish == FinishReason::length));
  CHECK(ahead.answers(requests) == expected);
  ahead.idle_stats();
}

TEST_CASE("run ahead: tiny pools, chunked prompts and priorities change nothing") {
  const Recording<ReplayBackend> recording;
  EngineOptions tight;
  tight.max_model_len = 384;
  tight.kv_cache_tokens = 1152;
  tight.max_num_seqs = 6;
  tight.max_batched_tokens = 24;
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 10; ++i) {
    GenerateRequest r = request_of(i, 150);
    for (int k = 0; k < 40 + 17 * i; ++k) r.prompt.push_back(((k + i) * 2654435761u >> 9) % 6000);
    r.priority = i % 3;
    requests.push_back(std::move(r));
  }
  EngineOptions roomy;
  roomy.max_model_len = 384;
  const std::vector<Answer> expected = Run(false, roomy).answers(requests);
  Run ahead(true, tight);
  CHECK(ahead.answers(requests) == expected);
  CHECK(ahead.answers(requests) == expected);  // from the prefix cache
  const EngineStats stats = ahead.idle_stats();
  CHECK(stats.preemptions > 0);
  CHECK(stats.steps_ahead > 0);
}

TEST_CASE("run ahead: what needs the host between two tokens keeps steps apart, for as long as it runs") {
  const Recording<ReplayBackend> recording;
  std::vector<GenerateRequest> steered(2, request_of(1, 25));
  steered[0].bad_words = {{40, 41}, {77}};
  steered[1].thinking = {4, true, {5}, {6, 7}};
  for (const GenerateRequest& request : steered) {
    Run ahead(true), apart(false);
    CHECK(ahead.answers({request}) == apart.answers({request}));
    CHECK(ahead.idle_stats().steps_ahead == 0);
    const std::vector<GenerateRequest> both = {request, request_of(2, 60)};
    CHECK(ahead.answers(both) == apart.answers(both));
    CHECK(ahead.idle_stats().steps_ahead > 20);
  }
}

TEST_CASE("run ahead: with drafts, steps run ahead while nothing is drafted") {
  const Recording<ReplayBackend> recording;
  const std::vector<GenerateRequest> requests = requests_of(5, 200);
  const std::vector<Answer> expected = Run(false).answers(requests);
  for (const std::string method : {"eagle3", "mtp", "ngram"}) {
    CAPTURE(method);
    EngineOptions options;
    options.speculation = method;
    if (method == "eagle3") options.draft = source_dir() + "/models/nano-eagle3";
    Run drafting(true, options);
    CHECK(drafting.answers(requests) == expected);
    std::vector<GenerateRequest> plain = requests;
    for (GenerateRequest& request : plain) request.max_draft = 0;
    const uint64_t before = drafting.idle_stats().steps_ahead;
    CHECK(drafting.answers(plain) == expected);
    CHECK(drafting.idle_stats().steps_ahead > before + 100);
  }
}

TEST_CASE("run ahead: a failing device ends every request once; a full one ends those of its step, and others go on") {
  if (const char* device = std::getenv("SIGMOE_TEST_DEVICE"); device && std::string(device) != "cpu") {
    MESSAGE("devices that fail are made of the CPU; nothing is tested on " << device);
    return;
  }
  const Recording<FailingBackend> recording;
  const std::vector<GenerateRequest> requests = requests_of(4, 30);
  const std::vector<Answer> expected = Run(false).answers(requests);
  for (const int at : {0, 1, 5, 6}) {
    CAPTURE(at);
    FailingBackend::is_full_at = at;
    {
      Run full(true);
      for (const Answer& answer : full.answers(requests)) CHECK(answer.finish == FinishReason::error);
      full.idle_stats();
      CHECK(full.answers(requests) == expected);
    }
    FailingBackend::is_full_at = -1;
    FailingBackend::fails_at = at;
    {
      Run broken(true);
      for (const Answer& answer : broken.answers(requests)) CHECK(answer.finish == FinishReason::error);
      broken.idle_stats();
      CHECK_THROWS_AS(broken.submit(requests[0]), EngineError);
    }
    FailingBackend::fails_at = -1;
  }
}
