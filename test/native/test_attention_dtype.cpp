// What attention keeps and multiplies in: which options a backend takes, and what it says of the others.
#include <string>

#include "backend/backend.h"
#include "doctest/doctest.h"

using namespace sigmoe;

namespace {

BackendOptions asking(const std::string& kv_cache, const std::string& prefill_attention) {
  BackendOptions options;
  options.kv_cache = kv_cache;
  options.prefill_attention = prefill_attention;
  return options;
}

// Message and hint of the error that asking for it ends with.
template <class Choose>
std::string refusal(Choose choose, const BackendOptions& options, DType own, bool has_fp8) {
  try {
    choose(options, own, has_fp8);
  } catch (const EngineError& error) {
    CHECK(error.code() == ErrorCode::unsupported);
    return error.what() + std::string(" | ") + error.hint();
  }
  return "taken";
}

}  // namespace

TEST_CASE("attention types: the KV cache's is the compute type's own, or FP8 where the device has it") {
  for (const DType own : {DType::bf16, DType::f32})
    for (const bool has_fp8 : {false, true}) {
      CHECK(kv_cache_dtype(asking("auto", "fp8"), own, has_fp8) == own);
      CHECK(kv_cache_dtype(asking(attention_dtype_name(own), "fp8"), own, has_fp8) == own);
    }
  CHECK(kv_cache_dtype(asking("fp8", "auto"), DType::bf16, true) == DType::f8_e4m3);
  CHECK(
      refusal(kv_cache_dtype, asking("fp8", "auto"), DType::bf16, false) ==
      "KV cache type fp8 asked for; this device and compute type keep theirs in bfloat16 | use KV cache type auto; fp8 is for "
      "CUDA devices of compute capability 9.0 in bfloat16");
  CHECK(refusal(kv_cache_dtype, asking("bfloat16", "auto"), DType::f32, true) ==
        "KV cache type bfloat16 asked for; this device and compute type keep theirs in float32 | use KV cache type auto");
}

TEST_CASE("attention types: that of prompts is FP8 where it is asked for and the device has it, whatever the cache holds") {
  for (const DType own : {DType::bf16, DType::f32})
    for (const bool has_fp8 : {false, true}) {
      CHECK_FALSE(fp8_prefill(asking("fp8", "auto"), own, has_fp8));
      CHECK_FALSE(fp8_prefill(asking("fp8", attention_dtype_name(own)), own, has_fp8));
    }
  CHECK(fp8_prefill(asking("auto", "fp8"), DType::bf16, true));
  CHECK(refusal(fp8_prefill, asking("auto", "fp8"), DType::bf16, false) ==
        "prefill attention in fp8 asked for; this device and compute type have it in bfloat16 | use prefill attention auto; "
        "fp8 is "
        "for CUDA devices of compute capability 9.0 in bfloat16");
  CHECK(
      refusal(fp8_prefill, asking("auto", "bfloat16"), DType::f32, true) ==
      "prefill attention in bfloat16 asked for; this device and compute type have it in float32 | use prefill attention auto");
}

TEST_CASE("attention types: prompts are read in FP8 over heads of 128 dims alone, and in BF16 or float32 by the compute type") {
  BackendInfo info;
  info.compute = DType::bf16;
  CHECK(prefill_dtype(info, 128) == DType::bf16);
  info.fp8_prefill = true;
  CHECK(prefill_dtype(info, 128) == DType::f8_e4m3);
  CHECK(prefill_dtype(info, 64) == DType::bf16);
  info.fp8_prefill = false;
  info.compute = DType::f32;
  CHECK(prefill_dtype(info, 128) == DType::f32);
  info.compute = DType::i8;
  CHECK(prefill_dtype(info, 128) == DType::bf16);
}
