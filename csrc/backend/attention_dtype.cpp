// What attention keeps and multiplies in, as options ask for it.
#include "backend/backend.h"

namespace sigmoe {
namespace {

std::string way_out(const char* option, const std::string& asked) {
  return std::string("use ") + option + " auto" +
         (asked == "fp8" ? "; fp8 is for CUDA devices of compute capability 9.0 in bfloat16" : "");
}

}  // namespace

const char* attention_dtype_name(DType dtype) {
  return dtype == DType::f8_e4m3 ? "fp8" : dtype == DType::f32 ? "float32" : "bfloat16";
}

DType kv_cache_dtype(const BackendOptions& options, DType own, bool has_fp8) {
  const std::string& asked = options.kv_cache;
  if (asked == "auto" || asked == attention_dtype_name(own)) return own;
  if (asked == "fp8" && has_fp8) return DType::f8_e4m3;
  throw EngineError(
      ErrorCode::unsupported,
      "KV cache type " + asked + " asked for; this device and compute type keep theirs in " + attention_dtype_name(own),
      way_out("KV cache type", asked));
}

bool fp8_prefill(const BackendOptions& options, DType own, bool has_fp8) {
  const std::string& asked = options.prefill_attention;
  if (asked == "auto" || asked == attention_dtype_name(own)) return false;
  if (asked == "fp8" && has_fp8) return true;
  throw EngineError(
      ErrorCode::unsupported,
      "prefill attention in " + asked + " asked for; this device and compute type have it in " + attention_dtype_name(own),
      way_out("prefill attention", asked));
}

DType prefill_dtype(const BackendInfo& info, int64_t head_dim) {
  if (info.fp8_prefill && head_dim == kFp8PrefillHeadDim) return DType::f8_e4m3;
  return info.compute == DType::f32 ? DType::f32 : DType::bf16;  // attention of W8A8 is in BF16
}

}  // namespace sigmoe
