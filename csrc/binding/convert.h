// Engine values to JavaScript objects; the shapes are those of lib/native.ts.
#pragma once

#include <napi.h>

#include "engine/engine.h"

namespace sigmoe::binding {

Napi::Object to_js(Napi::Env env, const EngineInfo& info);
Napi::Object to_js(Napi::Env env, const EngineStats& stats);
Napi::Object to_js(Napi::Env env, const StepEvent& event);

}  // namespace sigmoe::binding
