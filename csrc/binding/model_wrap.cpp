#include "binding/model_wrap.h"

#include <thread>
#include <utility>
#include <vector>

#include "binding/args.h"
#include "binding/convert.h"
#include "binding/errors.h"

namespace sigmoe::binding {
namespace {

// V8 collects harder when it knows of native memory, but a hundred gigabytes would make it collect all the time.
constexpr int64_t kMaxReportedBytes = 1ll << 30;

struct InstanceData {
  Napi::FunctionReference model_constructor;
};

}  // namespace

// One entry of the queue from the engine thread to JavaScript.
struct Delivery {
  std::shared_ptr<ModelState> state;
  StepEvent event;
  bool disposed = false;  // the last one: everything before it has been delivered
};

void deliver(Napi::Env env, Napi::Function, std::nullptr_t*, Delivery* raw);
using Queue = Napi::TypedThreadSafeFunction<std::nullptr_t, Delivery, deliver>;

// Outlives the JavaScript object while events are on their way. Touched on the JavaScript thread only, but for the queue.
struct ModelState {
  std::unique_ptr<Engine> engine;  // set for the life of the state; shut down by dispose()
  Queue queue;
  Napi::FunctionReference listener;
  Napi::ObjectReference self;  // held while requests run, so that a running model is not collected
  int64_t n_active = 0;        // requests whose end has not been delivered
  int64_t reported_bytes = 0;
  bool disposing = false, queue_open = false;
  std::vector<Napi::Promise::Deferred> waiting_for_dispose;
  std::thread closer;  // runs Engine::shut_down off the JavaScript thread

  // While requests run the process must not end and the model must not be collected.
  void begin_request(Napi::Env env) {
    if (n_active++ > 0) return;
    queue.Ref(env);
    self.Ref();
  }
  void end_requests(Napi::Env env, int64_t n) {
    if (n == 0) return;
    n_active -= n;
    if (n_active > 0) return;
    if (!disposing) queue.Unref(env);
    self.Unref();
  }

  void close_queue() {
    if (std::exchange(queue_open, false)) queue.Release();
  }
};

namespace {

// The environment is going away (process exit, or a worker thread that ends in the middle of an answer): stop the engine
// first, so that nothing calls into the queue, which Node closes right after.
void on_environment_end(void* data) {
  auto* state = static_cast<ModelState*>(data);
  if (state->closer.joinable()) state->closer.join();
  state->engine->shut_down();
  state->listener.Reset();
  state->self.Reset();
  state->waiting_for_dispose.clear();
  state->queue_open = false;
}

}  // namespace

void deliver(Napi::Env env, Napi::Function, std::nullptr_t*, Delivery* raw) {
  const std::unique_ptr<Delivery> delivery(raw);
  if (static_cast<napi_env>(env) == nullptr) return;  // the environment is closing: nobody is left to tell
  ModelState& state = *delivery->state;
  Napi::HandleScope scope(env);
  int64_t n_ended = 0;
  for (const FinishReason finish : delivery->event.finish) n_ended += finish != FinishReason::none;
  if (!delivery->event.empty() && !state.listener.IsEmpty()) {
    try {
      state.listener.Call({to_js(env, delivery->event)});
    } catch (const Napi::Error& error) {
      // A listener that throws is a bug in lib; surface it as an uncaught exception without losing our own bookkeeping. Or
      // the thread was terminated in it: then this does nothing.
      napi_fatal_exception(env, error.Value());
    }
  }
  state.end_requests(env, n_ended);
  if (!delivery->disposed) return;
  if (state.closer.joinable()) state.closer.join();
  Napi::MemoryManagement::AdjustExternalMemory(env, -std::exchange(state.reported_bytes, 0));
  state.listener.Reset();
  state.close_queue();
  for (const Napi::Promise::Deferred& deferred : std::exchange(state.waiting_for_dispose, {}))
    deferred.Resolve(env.Undefined());
}

void ModelWrap::define(Napi::Env env) {
  Napi::Function constructor = DefineClass(env, "NativeModel",
                                           {
                                               InstanceMethod<&ModelWrap::info>("info"),
                                               InstanceMethod<&ModelWrap::listen>("listen"),
                                               InstanceMethod<&ModelWrap::submit>("submit"),
                                               InstanceMethod<&ModelWrap::submit_logits>("submitLogits"),
                                               InstanceMethod<&ModelWrap::set_masks>("setMasks"),
                                               InstanceMethod<&ModelWrap::abort>("abort"),
                                               InstanceMethod<&ModelWrap::stats>("stats"),
                                               InstanceMethod<&ModelWrap::dispose>("dispose"),
                                           });
  auto* data = new InstanceData{Napi::Persistent(constructor)};
  env.SetInstanceData(data);
}

Napi::Object ModelWrap::create(Napi::Env env, std::unique_ptr<Engine> engine) {
  const auto external = Napi::External<std::unique_ptr<Engine>>::New(env, &engine);
  return env.GetInstanceData<InstanceData>()->model_constructor.New({external});
}

ModelWrap::ModelWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelWrap>(info) {
  Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsExternal()) throw_expected(env, "a model", "made by load()");
  state_ = std::make_shared<ModelState>();
  state_->engine = std::move(*info[0].As<Napi::External<std::unique_ptr<Engine>>>().Data());
  state_->queue = Queue::New(env, "sigmoe model events", 0, 1, static_cast<std::nullptr_t*>(nullptr));
  state_->queue_open = true;
  state_->queue.Unref(env);
  state_->self = Napi::Weak(info.This().As<Napi::Object>());
  const EngineInfo& model = state_->engine->info();
  state_->reported_bytes = std::min<int64_t>(kMaxReportedBytes, model.weight_bytes + model.kv_bytes + model.workspace_bytes);
  Napi::MemoryManagement::AdjustExternalMemory(env, state_->reported_bytes);
  napi_add_env_cleanup_hook(env, on_environment_end, state_.get());
  // Raw pointers are safe here: the engine stops calling before shut_down() returns, and the state outlives that.
  state_->engine->set_listener([weak = std::weak_ptr<ModelState>(state_)](StepEvent&& event) {
    if (auto state = weak.lock()) {
      Queue queue = state->queue;
      auto* delivery = new Delivery{std::move(state), std::move(event)};
      if (queue.NonBlockingCall(delivery) != napi_ok) delete delivery;
    }
  });
}

// Only collected while no request runs and no event is on its way, or when the environment ends.
ModelWrap::~ModelWrap() {
  if (!state_) return;
  napi_remove_env_cleanup_hook(Env(), on_environment_end, state_.get());
  if (state_->closer.joinable()) state_->closer.join();
  state_->engine->shut_down();
  state_->close_queue();
}

Engine& ModelWrap::engine(Napi::Env env) const {
  if (state_->disposing)
    throw to_js_error(env, {error_code_name(ErrorCode::disposed), "the model was disposed", "load it again"});
  return *state_->engine;
}

Napi::Value ModelWrap::info(const Napi::CallbackInfo& call) { return to_js(call.Env(), state_->engine->info()); }

Napi::Value ModelWrap::listen(const Napi::CallbackInfo& call) {
  engine(call.Env());
  state_->listener = Napi::Persistent(function_arg(call, 0, "onStep"));
  return call.Env().Undefined();
}

Napi::Value ModelWrap::submit(const Napi::CallbackInfo& call) {
  Napi::Env env = call.Env();
  Engine& target = engine(env);
  const Napi::Object in = object_arg(call, 0, "request");
  GenerateRequest request;
  request.prompt = int32_array(in.Get("prompt"), "prompt");
  request.max_tokens = integer(in.Get("maxTokens"), "maxTokens");
  request.min_tokens = integer(in.Get("minTokens"), "minTokens");
  request.stop_ids = int32_array(in.Get("stopIds"), "stopIds");
  request.seed = unsigned_bigint(in.Get("seed"), "seed");
  request.temperature = number(in.Get("temperature"), "temperature");
  request.top_p = number(in.Get("topP"), "topP");
  request.top_k = integer32(in.Get("topK"), "topK");
  request.min_p = number(in.Get("minP"), "minP");
  request.repetition_penalty = number(in.Get("repetitionPenalty"), "repetitionPenalty");
  request.presence_penalty = number(in.Get("presencePenalty"), "presencePenalty");
  request.frequency_penalty = number(in.Get("frequencyPenalty"), "frequencyPenalty");
  request.n_logprobs = integer32(in.Get("logprobs"), "logprobs");
  const std::vector<int32_t> ids = int32_array(in.Get("logitBiasIds"), "logitBiasIds");
  const std::vector<float> values = float32_array(in.Get("logitBiasValues"), "logitBiasValues");
  if (ids.size() != values.size()) throw_expected(env, "logitBiasValues", "as long as logitBiasIds");
  for (size_t i = 0; i < ids.size(); ++i) request.logit_bias.emplace_back(ids[i], values[i]);
  request.n_prompt_logprobs = integer32(in.Get("promptLogprobs"), "promptLogprobs");
  request.allowed_ids = int32_array(in.Get("allowedIds"), "allowedIds");
  for (const Napi::Value& word : elements(in.Get("badWords"), "badWords"))
    request.bad_words.push_back(int32_array(word, "badWords"));
  request.thinking.budget = integer(in.Get("thinkingBudget"), "thinkingBudget");
  request.thinking.open = boolean(in.Get("thinkingOpen"), "thinkingOpen");
  request.thinking.begin_ids = int32_array(in.Get("thinkingBeginIds"), "thinkingBeginIds");
  request.thinking.end_ids = int32_array(in.Get("thinkingEndIds"), "thinkingEndIds");
  request.masked = boolean(in.Get("masked"), "masked");
  request.priority = integer32(in.Get("priority"), "priority");
  request.deadline_ms = integer(in.Get("deadlineMs"), "deadlineMs");
  request.max_draft = integer32(in.Get("maxDraft"), "maxDraft");
  const std::vector<int32_t> salt = int32_array(in.Get("cacheSalt"), "cacheSalt");
  if (salt.size() != 4) throw_expected(env, "cacheSalt", "four 32-bit words");
  for (size_t i = 0; i < 4; ++i)
    request.cache_salt[i / 2] |= static_cast<uint64_t>(static_cast<uint32_t>(salt[i])) << (32 * (i % 2));

  const uint64_t id = guarded(env, [&] { return target.submit(std::move(request)); });
  state_->begin_request(env);
  return Napi::Number::New(env, static_cast<double>(id));
}

Napi::Value ModelWrap::submit_logits(const Napi::CallbackInfo& call) {
  Napi::Env env = call.Env();
  Engine& target = engine(env);
  if (call.Length() < 2) throw_expected(env, "submitLogits", "called with tokens and mtp");
  LogitsRequest request{int32_array(call[0], "tokens"), boolean(call[1], "mtp")};
  const uint64_t id = guarded(env, [&] { return target.submit(std::move(request)); });
  state_->begin_request(env);
  return Napi::Number::New(env, static_cast<double>(id));
}

Napi::Value ModelWrap::set_masks(const Napi::CallbackInfo& call) {
  Napi::Env env = call.Env();
  if (call.Length() < 3) throw_expected(env, "setMasks", "called with a request id, a position and masks");
  const int64_t id = integer(call[0], "request"), position = integer(call[1], "position");
  const std::vector<int32_t> words = int32_array(call[2], "masks");
  guarded(env, [&] { state_->engine->set_masks(static_cast<uint64_t>(id), position, {words.begin(), words.end()}); });
  return env.Undefined();
}

Napi::Value ModelWrap::abort(const Napi::CallbackInfo& call) {
  Napi::Env env = call.Env();
  if (call.Length() < 1) throw_expected(env, "abort", "called with a request id");
  const int64_t id = integer(call[0], "request");
  if (!state_->disposing && id > 0) state_->engine->abort(static_cast<uint64_t>(id));
  return env.Undefined();
}

Napi::Value ModelWrap::stats(const Napi::CallbackInfo& call) { return to_js(call.Env(), engine(call.Env()).stats()); }

Napi::Value ModelWrap::dispose(const Napi::CallbackInfo& call) {
  Napi::Env env = call.Env();
  const auto deferred = Napi::Promise::Deferred::New(env);
  if (!state_->queue_open) {  // disposed before, and done
    deferred.Resolve(env.Undefined());
    return deferred.Promise();
  }
  state_->waiting_for_dispose.push_back(deferred);
  if (std::exchange(state_->disposing, true)) return deferred.Promise();
  state_->queue.Ref(env);  // the promise keeps the process alive
  // Shutting down waits for the step in progress. The last delivery follows every event through the same queue.
  state_->closer = std::thread([state = state_]() mutable {
    state->engine->shut_down();
    Queue queue = state->queue;
    auto* delivery = new Delivery{std::move(state), {}, true};
    if (queue.NonBlockingCall(delivery) != napi_ok) delete delivery;
  });
  return deferred.Promise();
}

}  // namespace sigmoe::binding
