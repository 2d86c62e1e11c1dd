// Choices of kernels in words.
#include <sstream>

#include "cuda/kernel_choice.h"

namespace sigmoe::cuda {

const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::none: return "none";
    case Kernel::ops: return "its ops one by one";
    case Kernel::exact_linear: return "exact_linear";
    case Kernel::early_linear: return "early_linear";
    case Kernel::held_linear: return "held_linear";
    case Kernel::stream_gemm: return "stream_gemm";
    case Kernel::gemm_few: return "gemm_few";
    case Kernel::gemm_wide: return "gemm_wide";
    case Kernel::tensor_gemm: return "tensor_gemm";
    case Kernel::tensor_split: return "tensor_split";
    case Kernel::mma_gemm: return "mma_gemm";
    case Kernel::exact_experts: return "exact_experts";
    case Kernel::narrow_experts: return "narrow_experts";
    case Kernel::exact_attention: return "exact_attention";
    case Kernel::few_attention: return "few_attention";
    case Kernel::split_attention: return "split_attention";
    case Kernel::chain_attention: return "chain_attention";
    case Kernel::prefill_attention: return "prefill_attention";
    case Kernel::fp8_prefill: return "fp8_prefill";
    case Kernel::mma_attention: return "mma_attention";
    case Kernel::qk_store: return "qk_store";
    case Kernel::qk_store_many: return "qk_store_many";
    case Kernel::row_norm: return "row_norm";
    case Kernel::any_norm: return "any_norm";
    case Kernel::norm_many: return "norm_many";
    case Kernel::route_logits: return "route_logits";
    case Kernel::route_tensor: return "route_tensor";
    case Kernel::normed_linear: return "normed_linear";
    case Kernel::adding_linear: return "adding_linear";
    case Kernel::few_experts: return "few_experts";
    case Kernel::rank_linear: return "rank_linear";
    case Kernel::rank_experts: return "rank_experts";
    case Kernel::many_reduce: return "many_reduce";
    case Kernel::one_shot_reduce: return "one_shot_reduce";
    case Kernel::two_shot_reduce: return "two_shot_reduce";
    case Kernel::nccl: return "nccl";
    case Kernel::host_sum: return "host_sum";
  }
  return "?";
}

std::string refusal_text(const Refusal& refusal) {
  std::ostringstream text;
  switch (refusal.reason) {
    case Reason::none: break;
    case Reason::float32_mode: text << "the float32 mode runs naive kernels"; break;
    case Reason::deterministic: text << "deterministic keeps the kernels of few rows"; break;
    case Reason::mma_asked: text << "kernels of cards before Hopper were asked for"; break;
    case Reason::no_hopper: text << "it needs Hopper (compute capability 9.0) and a build with code for it"; break;
    case Reason::format: text << "weights in " << weight_format_name(refusal.format); break;
    case Reason::kv_format: text << "the format of the KV cache"; break;
    case Reason::scales: text << "the weights' scales are cut otherwise than it applies them"; break;
    case Reason::unlike: text << "experts, or their shared one, of several formats or shapes"; break;
    case Reason::multiple: text << refusal.what << ' ' << refusal.found << " is no multiple of " << refusal.wanted; break;
    case Reason::exactly: text << refusal.what << ' ' << refusal.found << " is not " << refusal.wanted; break;
    case Reason::at_most: text << refusal.what << ' ' << refusal.found << " is more than " << refusal.wanted; break;
  }
  return text.str();
}

}  // namespace sigmoe::cuda
