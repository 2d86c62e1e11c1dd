#include "backend/error.h"

#include <cstring>

namespace sigmoe {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument: return "ERR_INVALID_ARGUMENT";
    case ErrorCode::not_found: return "ERR_NOT_FOUND";
    case ErrorCode::io: return "ERR_IO";
    case ErrorCode::file_changed: return "ERR_FILE_CHANGED";
    case ErrorCode::bad_checkpoint: return "ERR_BAD_CHECKPOINT";
    case ErrorCode::unsupported: return "ERR_UNSUPPORTED";
    case ErrorCode::busy: return "ERR_BUSY";
    case ErrorCode::out_of_memory: return "ERR_OUT_OF_MEMORY";
    case ErrorCode::aborted: return "ERR_ABORTED";
    case ErrorCode::disposed: return "ERR_DISPOSED";
    case ErrorCode::device: return "ERR_DEVICE";
    case ErrorCode::internal: return "ERR_INTERNAL";
  }
  return "ERR_INTERNAL";
}

void throw_check_failed(const char* expression, const char* file, int line, const std::string& message) {
  const char* name = std::strrchr(file, '/');
  throw EngineError(
      ErrorCode::internal,
      message + " (check failed: " + expression + ", " + (name ? name + 1 : file) + ":" + std::to_string(line) + ")",
      "this is a bug in sigmoe; please report it with this message");
}

}  // namespace sigmoe
