// Copies of a model behind one engine: who gets which request, and that answers, ends and failures find their way back.
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>

#include "cpu/cpu_backend.h"
#include "doctest/doctest.h"
#include "engine/engine.h"
#include "engine/schedule/prefix_router.h"
#include "golden.h"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

const std::string kNano = source_dir() + "/models/nano";

std::vector<int32_t> text(int n, int salt) {
  std::vector<int32_t> out;
  for (int i = 0; i < n; ++i) out.push_back(((i + 1000 * salt) * 2654435761u >> 9) % 6000);
  return out;
}

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

EngineOptions copies(int n, int ranks = 1) {
  EngineOptions options;
  options.compute = "float32";
  options.n_threads = 1;
  options.max_num_seqs = 8;
  options.data_parallel = n;
  options.tensor_parallel = ranks;
  return on_test_device(options);
}

GenerateRequest greedy(const std::vector<int32_t>& prompt, int64_t max_tokens) {
  GenerateRequest request;
  request.prompt = prompt;
  request.max_tokens = max_tokens;
  request.temperature = 0;
  return request;
}

struct Answers {
  explicit Answers(Engine& engine) {
    engine.set_listener([this](StepEvent&& event) {
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < event.requests.size(); ++i) {
        if (event.tokens[i] >= 0) tokens[event.requests[i]].push_back(event.tokens[i]);
        if (event.finish[i] != FinishReason::none) ends[event.requests[i]] = event.finish[i];
      }
      for (const auto& start : event.starts) cached[start.request] = start.n_cached;
      for (const auto& logits : event.logits) n_logits += static_cast<int64_t>(logits.values.size());
      changed.notify_all();
    });
  }
  FinishReason wait(uint64_t id) {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, std::chrono::seconds(60), [&] { return ends.contains(id); }));
    return ends[id];
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::map<uint64_t, std::vector<int32_t>> tokens;
  std::map<uint64_t, FinishReason> ends;
  std::map<uint64_t, int64_t> cached;
  int64_t n_logits = 0;
};

}  // namespace

TEST_CASE("prefix router: what is known goes where it is known, what is new to whom has least") {
  PrefixRouter router(3, 100, 2);
  const CacheSalt salt{};
  const std::vector<int32_t> a = text(300, 1), b = text(300, 2);
  CHECK(router.order(a, salt)[0] == 0);
  router.sent(0, a, salt);
  CHECK(router.order(b, salt)[0] == 1);  // nothing is known of it, and 0 has something to do
  router.sent(1, b, salt);
  CHECK(router.order(joined(a, text(50, 3)), salt)[0] == 0);
  CHECK(router.order(joined(b, text(50, 3)), salt)[0] == 1);
  CHECK(router.order(a, {7, 7})[0] == 2);  // another salt is another text
  router.ended(0, joined(a, text(200, 4)), salt);
  CHECK(router.order(joined(joined(a, text(200, 4)), text(90, 5)), salt)[0] == 0);  // the answer is known, too
  CHECK(router.order(text(100, 1), salt)[0] == 2);  // less than a page: nobody has it, and 2 was asked least
}

TEST_CASE("prefix router: a prefix does not hold a request where much more waits than elsewhere") {
  PrefixRouter router(2, 100, 2);
  const CacheSalt salt{};
  const std::vector<int32_t> a = text(400, 1);
  std::vector<int> sent_to;
  for (int i = 0; i < 6; ++i) {
    sent_to.push_back(router.order(a, salt)[0]);
    router.sent(sent_to.back(), a, salt);
  }
  CHECK(sent_to == std::vector<int>{0, 0, 0, 1, 1, 1});  // from the fourth on both know it
  CHECK(router.load(0) + router.load(1) == 6);
}

TEST_CASE("prefix router: no more is remembered than the cache has pages, the end of a prefix forgotten first") {
  PrefixRouter router(2, 3, 100);
  const CacheSalt salt{};
  const std::vector<int32_t> a = text(384, 1), b = text(128, 2);
  router.sent(1, a, salt);
  CHECK(router.order(a, salt)[0] == 1);
  router.sent(1, b, salt);  // the last page of a goes
  router.sent(0, std::vector<int32_t>(a.begin(), a.begin() + 128), salt);
  CHECK(router.order(a, salt)[0] == 1);  // two pages of a against one
  router.sent(0, a, salt);
  CHECK(router.order(a, salt)[0] == 0);
}

TEST_CASE("replicas: answers are those of one engine, prompts that begin alike meet their cache, nothing is left behind") {
  const std::vector<int32_t> opening = text(256, 1), other = text(256, 2);
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 4; ++i)
    for (const auto* begin : {&opening, &other}) requests.push_back(greedy(joined(*begin, text(20 + i, 10 + i)), 12));
  std::vector<std::vector<int32_t>> expected;
  {
    const auto one = Engine::load(kNano, copies(1));
    Answers answers(*one);
    for (const GenerateRequest& request : requests) {
      const uint64_t id = one->submit(request);
      CHECK(answers.wait(id) == FinishReason::length);
      expected.push_back(answers.tokens[id]);
    }
  }
  for (const auto& options : {copies(2), copies(3), copies(2, 2)}) {
    CAPTURE(options.data_parallel);
    CAPTURE(options.tensor_parallel);
    if (!enough_gpus(options.data_parallel * options.tensor_parallel)) {
      MESSAGE("copies were not run: set SIGMOE_TEST_GPUS to the number of GPUs");
      continue;
    }
    const auto engine = Engine::load(kNano, options);
    CHECK(engine->info().data_parallel == options.data_parallel);
    CHECK(engine->info().max_num_seqs == 8 * options.data_parallel);
    Answers answers(*engine);
    std::set<uint64_t> places;
    for (size_t i = 0; i < requests.size(); ++i) {
      const uint64_t id = engine->submit(requests[i]);
      places.insert(id % options.data_parallel);
      CHECK(answers.wait(id) == FinishReason::length);
      CHECK(answers.tokens[id] == expected[i]);
      CHECK(answers.cached[id] == (i < 2 ? 0 : 256));  // each opening was computed once, whatever the number of copies
    }
    CHECK(places.size() == 2);
    const uint64_t scored = engine->submit(LogitsRequest{text(40, 9), false});
    CHECK(answers.wait(scored) == FinishReason::stop);
    CHECK(answers.n_logits == 40 * 6144);
    // All at once: they spread, and end as they should.
    std::vector<uint64_t> ids;
    for (int round = 0; round < 3; ++round)
      for (const GenerateRequest& request : requests) ids.push_back(engine->submit(request));
    for (size_t i = 0; i < ids.size(); ++i) {
      CHECK(answers.wait(ids[i]) == FinishReason::length);
      CHECK(answers.tokens[ids[i]] == expected[i % expected.size()]);
    }
    CHECK(std::set<uint64_t>(ids.begin(), ids.end()).size() == ids.size());
    const EngineStats stats = engine->stats();
    CHECK(stats.held_pages == 0);
    CHECK(stats.running + stats.waiting == 0);
    CHECK(stats.free_pages + stats.cached_pages == stats.total_pages);
    // Aborts go to the copy that has the request; shutting down ends what is left on all of them.
    const uint64_t cut = engine->submit(greedy(text(10, 3), 1500));
    engine->abort(cut);
    CHECK(answers.wait(cut) == FinishReason::aborted);
    ids.clear();
    for (int i = 0; i < 8; ++i) ids.push_back(engine->submit(greedy(text(10, 20 + i), 1500)));
    engine->shut_down();
    for (const uint64_t id : ids) CHECK(answers.wait(id) == FinishReason::aborted);
    CHECK_THROWS_AS(engine->submit(greedy({1}, 1)), EngineError);
  }
}

TEST_CASE("replicas: one that fails ends its own requests with an error, and the others take what comes") {
  // The first copy's products fail once it has made so many.
  class FailingBackend : public CpuBackend {
   public:
    explicit FailingBackend(const BackendOptions& options) : CpuBackend(options), fails_(options.device_index == 0) {}
    void linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) override {
      if (fails_ && ++n_calls_ > 200) throw EngineError(ErrorCode::device, "the planted fault");
      CpuBackend::linear(x, weight, n_tokens, y);
    }

   private:
    bool fails_;
    int n_calls_ = 0;
  };
  make_cpu_backend = [](const BackendOptions& options) { return std::make_unique<FailingBackend>(options); };
  EngineOptions options = copies(2);
  options.device = "cpu";
  const auto engine = Engine::load(kNano, options);
  make_cpu_backend = {};
  Answers answers(*engine);
  std::vector<uint64_t> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(engine->submit(greedy(text(20, i), 60)));
  for (const uint64_t id : ids) CHECK(answers.wait(id) == (id % 2 == 0 ? FinishReason::error : FinishReason::length));
  for (int i = 0; i < 4; ++i) {
    const uint64_t id = engine->submit(greedy(text(20, 30 + i), 10));
    CHECK(id % 2 == 1);
    CHECK(answers.wait(id) == FinishReason::length);
  }
}
