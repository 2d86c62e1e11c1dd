// The one exception type below the binding. Every error says what was asked, what was found, and what to try next.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace sigmoe {

// Closed set; lib/errors.ts names the same codes.
enum class ErrorCode {
  invalid_argument,  // the caller passed something no model could accept
  not_found,         // a file, tensor or device that was named does not exist
  io,                // the operating system refused a read
  file_changed,      // a checkpoint file shrank or changed while it was read
  bad_checkpoint,    // a file is not what its format says
  unsupported,       // well formed, but not something this build or device runs
  busy,              // the queue of requests is full
  out_of_memory,     // asked, free and the option to lower are in the message
  aborted,           // the caller's abort signal
  disposed,          // the model was disposed
  device,            // the device failed; the model is broken from here on
  internal,          // a bug in sigmoe
};

const char* error_code_name(ErrorCode code);  // "ERR_INVALID_ARGUMENT", ...

class EngineError : public std::runtime_error {
 public:
  // `what` reads "asked: found" in one line; `hint` is the next thing to try and may be empty.
  EngineError(ErrorCode code, const std::string& what, std::string hint = {})
      : std::runtime_error(what), code_(code), hint_(std::move(hint)) {}

  ErrorCode code() const { return code_; }
  const std::string& hint() const { return hint_; }

 private:
  ErrorCode code_;
  std::string hint_;
};

[[noreturn]] void throw_check_failed(const char* expression, const char* file, int line, const std::string& message);

// For conditions that only a bug in sigmoe can break; always on, throws ErrorCode::internal.
#define SIGMOE_CHECK(condition, message)                                                     \
  do {                                                                                       \
    if (!(condition)) ::sigmoe::throw_check_failed(#condition, __FILE__, __LINE__, message); \
  } while (0)

}  // namespace sigmoe
