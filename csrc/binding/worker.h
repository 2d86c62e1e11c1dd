// The one promise-worker base: work on a pool thread, messages to JavaScript while it runs, a promise at the end.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>
#include <utility>

#include "binding/errors.h"

namespace sigmoe::binding {

// Message is what run() may send while it works; on_message() gets it on the JavaScript thread. result() makes the
// promise's value there. `cancelled` is shared with the JavaScript handle and set when the environment ends.
template <typename Message>
class PromiseWorker : public Napi::AsyncProgressQueueWorker<Message> {
 public:
  using Base = Napi::AsyncProgressQueueWorker<Message>;

  explicit PromiseWorker(Napi::Env env)
      : Base(env), cancelled_(std::make_shared<std::atomic<bool>>(false)), deferred_(Napi::Promise::Deferred::New(env)) {
    napi_add_env_cleanup_hook(env, cancel_hook, cancelled_.get());
  }

  ~PromiseWorker() override { napi_remove_env_cleanup_hook(this->Env(), cancel_hook, cancelled_.get()); }

  Napi::Promise promise() const { return deferred_.Promise(); }

  // { promise, cancel() }
  Napi::Object handle() {
    Napi::Env env = this->Env();
    Napi::Object object = Napi::Object::New(env);
    object.Set("promise", promise());
    object.Set("cancel", Napi::Function::New(env, [flag = cancelled_](const Napi::CallbackInfo&) { flag->store(true); }));
    return object;
  }

 protected:
  virtual void run() = 0;
  virtual Napi::Value result() = 0;
  virtual void on_message(const Message&) {}

  void send(const Message& message) { progress_->Send(&message, 1); }
  const std::atomic<bool>* cancelled() const { return cancelled_.get(); }

 private:
  static void cancel_hook(void* flag) { static_cast<std::atomic<bool>*>(flag)->store(true); }

  void Execute(const typename Base::ExecutionProgress& progress) final {
    progress_ = &progress;
    try {
      run();
    } catch (...) {
      failure_ = std::make_unique<Failure>(current_failure());
    }
    progress_ = nullptr;
  }

  void OnProgress(const Message* messages, size_t n) final {
    for (size_t i = 0; i < n; ++i) on_message(messages[i]);
  }

  void OnOK() final {
    Napi::Env env = this->Env();
    Napi::HandleScope scope(env);
    if (failure_) {
      deferred_.Reject(to_js_error(env, *failure_).Value());
      return;
    }
    try {
      deferred_.Resolve(result());
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    } catch (...) {
      deferred_.Reject(to_js_error(env, current_failure()).Value());
    }
  }

  std::shared_ptr<std::atomic<bool>> cancelled_;
  Napi::Promise::Deferred deferred_;
  const typename Base::ExecutionProgress* progress_ = nullptr;
  std::unique_ptr<Failure> failure_;
};

}  // namespace sigmoe::binding
