// C++ exceptions to JavaScript errors. Used in the two places where they cross: the call guard and the promise worker.
#pragma once

#include <napi.h>

#include <new>
#include <string>

#include "backend/error.h"

namespace sigmoe::binding {

// What is left of an exception once it has to cross threads.
struct Failure {
  std::string code = "ERR_INTERNAL";
  std::string message;
  std::string hint;
};

// Call inside a catch block.
inline Failure current_failure() {
  try {
    throw;
  } catch (const EngineError& error) {
    return {error_code_name(error.code()), error.what(), error.hint()};
  } catch (const std::bad_alloc&) {
    return {error_code_name(ErrorCode::out_of_memory), "the process is out of memory", "use a smaller model, context or batch"};
  } catch (const std::exception& error) {
    return {error_code_name(ErrorCode::internal), error.what(), {}};
  } catch (...) {
    return {error_code_name(ErrorCode::internal), "an unknown exception", {}};
  }
}

inline Napi::Error to_js_error(Napi::Env env, const Failure& failure) {
  Napi::Error error = Napi::Error::New(env, failure.message);
  error.Value().Set("code", failure.code);
  error.Value().Set("hint", failure.hint);
  return error;
}

// Runs a synchronous call; anything but a JavaScript error becomes a coded one.
template <typename Call>
auto guarded(Napi::Env env, Call&& call) {
  try {
    return call();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_js_error(env, current_failure());
  }
}

}  // namespace sigmoe::binding
