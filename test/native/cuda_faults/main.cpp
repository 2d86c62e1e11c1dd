// A kernel that fails breaks the models on that GPU and nothing else: every later call says so, models on the CPU answer as
// before, everything can be disposed, and the process lives. In a program of its own, because a failed context stays failed.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "doctest/doctest.h"
#include "engine/engine.h"
#include "fault.h"

using namespace sigmoe;

namespace {

// One model and the end of its latest request.
class Talker {
 public:
  explicit Talker(const std::string& device) {
    EngineOptions options;
    options.device = device;
    options.max_model_len = 256;
    engine_ = Engine::load(SIGMOE_SOURCE_DIR "/models/nano", options);
    engine_->set_listener([this](StepEvent&& event) {
      const std::lock_guard lock(mutex_);
      for (size_t i = 0; i < event.requests.size(); ++i) {
        if (event.tokens[i] >= 0) tokens_.push_back(event.tokens[i]);
        finish_ = event.finish[i];
      }
      for (const StepEvent::Failure& failure : event.failures) failure_ = failure;
      changed_.notify_all();
    });
  }

  // Tokens of a greedy answer; empty when it ended with an error, which failure() then holds.
  std::vector<int32_t> ask(int64_t max_tokens = 16) {
    tokens_.clear();
    finish_ = FinishReason::none;
    GenerateRequest request;
    request.prompt = {5, 6, 7, 8};
    request.max_tokens = max_tokens;
    request.temperature = 0;
    engine_->submit(std::move(request));
    std::unique_lock lock(mutex_);
    const bool ended = changed_.wait_for(lock, std::chrono::seconds(20), [&] { return finish_ != FinishReason::none; });
    REQUIRE(ended);
    return finish_ == FinishReason::error ? std::vector<int32_t>() : tokens_;
  }
  const StepEvent::Failure& failure() const { return failure_; }
  void dispose() { engine_->shut_down(); }

 private:
  std::unique_ptr<Engine> engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> tokens_;
  FinishReason finish_ = FinishReason::none;
  StepEvent::Failure failure_{};
};

bool have_cuda() {
  for (const DeviceLine& line : engine_devices())
    if (line.device == "cuda") {
      if (!line.available) std::printf("cuda faults: skipped, %s\n", line.detail.c_str());
      return line.available;
    }
  return false;
}

}  // namespace

TEST_CASE("cuda fault: the model says that it is broken, others go on, all can be disposed") {
  if (!have_cuda()) return;
  Talker host("cpu"), gpu("cuda"), idle("cuda");
  const std::vector<int32_t> answer = host.ask();
  REQUIRE(answer.size() == 16);
  CHECK(gpu.ask().size() == 16);
  const std::string error = testing::break_the_gpu();
  CHECK(error == "cudaErrorIllegalAddress");

  // The request that meets it, and the model that was idle meanwhile.
  for (Talker* broken : {&gpu, &idle}) {
    CHECK(broken->ask().empty());
    CHECK(broken->failure().code == ErrorCode::device);
    CHECK(broken->failure().message.find(error) != std::string::npos);
    CHECK(broken->failure().hint.find("start it anew") != std::string::npos);
    // All later ones are refused at once.
    for (int i = 0; i < 3; ++i) {
      try {
        broken->ask();
        FAIL("a broken model took a request");
      } catch (const EngineError& refused) {
        CHECK(refused.code() == ErrorCode::device);
        CHECK(std::string(refused.what()).find("broken since an earlier failure") != std::string::npos);
        CHECK(refused.hint().find("start it anew") != std::string::npos);
      }
    }
  }
  CHECK(host.ask() == answer);
  // A model that is loaded now gets an error, no crash.
  try {
    Talker late("cuda");
    FAIL("a model was loaded on a broken GPU");
  } catch (const EngineError& refused) {
    CHECK_MESSAGE((refused.code() == ErrorCode::device || refused.code() == ErrorCode::not_found), refused.what());
  }
  gpu.dispose();
  gpu.dispose();
  CHECK(host.ask() == answer);
}
