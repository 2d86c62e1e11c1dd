// A loaded model as a JavaScript object (NativeModel in lib/native.ts).
#pragma once

#include <napi.h>

#include <memory>

#include "engine/engine.h"

namespace sigmoe::binding {

struct ModelState;

class ModelWrap : public Napi::ObjectWrap<ModelWrap> {
 public:
  // Keeps the class's constructor alive for as long as the environment.
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::unique_ptr<Engine> engine);

  explicit ModelWrap(const Napi::CallbackInfo& info);
  ~ModelWrap() override;

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value listen(const Napi::CallbackInfo& info);
  Napi::Value submit(const Napi::CallbackInfo& info);
  Napi::Value submit_logits(const Napi::CallbackInfo& info);
  Napi::Value set_masks(const Napi::CallbackInfo& info);
  Napi::Value abort(const Napi::CallbackInfo& info);
  Napi::Value stats(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);

  Engine& engine(Napi::Env env) const;  // throws ERR_DISPOSED

  std::shared_ptr<ModelState> state_;
};

}  // namespace sigmoe::binding
