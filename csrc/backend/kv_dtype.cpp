#include "backend/backend.h"

namespace sigmoe {

const char* kv_cache_name(DType dtype) {
  return dtype == DType::f8_e4m3 ? "fp8" : dtype == DType::f32 ? "float32" : "bfloat16";
}

DType kv_cache_dtype(const BackendOptions& options, DType own, bool has_fp8) {
  const std::string& asked = options.kv_cache;
  if (asked == "auto" || asked == kv_cache_name(own)) return own;
  if (asked == "fp8" && has_fp8) return DType::f8_e4m3;
  throw EngineError(ErrorCode::unsupported,
                    "KV cache type " + asked + " asked for; this device and compute type keep theirs in " + kv_cache_name(own),
                    asked == "fp8" ? "use KV cache type auto; fp8 is for CUDA devices of compute capability 9.0 in bfloat16"
                                   : "use KV cache type auto");
}

}  // namespace sigmoe
