// How many tokens the KV cache and a step have room for.
#include <algorithm>

#include "engine/model_folder.h"
#include "engine/schedule/page_pool.h"

namespace sigmoe {
namespace {

// A step reads every expert that its tokens touch: of the full model 512 touch most of them, as 8,192 do. A GPU waits for that,
// so an H200 reads prompts at 54,700 tokens/s in steps of 8,192 and at 19,100 in steps of 512. A CPU is bound by the products
// of both, and a longer step would only keep the other answers waiting. Of Ascend nothing is measured.
constexpr int64_t kCudaStepTokens = 8192, kStepTokens = 512;
// A step's memory over its workspace: the backend's own copies of activations, of experts' inner rows and of sums over slots
// grow with the longest step seen. The full model in steps of 16,384 takes 525 KB a token on an H200, 2.2 of its workspaces.
constexpr uint64_t kWithScratch = 3;

}  // namespace

MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, uint64_t bytes_per_token, uint64_t kv_bytes) {
  MemoryPlan plan;
  plan.context = config.context;
  if (options.max_model_len > 0) {
    if (options.max_model_len > config.context)
      throw EngineError(ErrorCode::invalid_argument,
                        "maxModelLen " + std::to_string(options.max_model_len) + " asked for; the model's context is " +
                            std::to_string(config.context),
                        "lower it, or add a YaRN rope_scaling entry to config.json");
    plan.context = options.max_model_len;
  }
  const int64_t one_context = pages_for(plan.context) * kPageTokens;
  if (options.kv_cache_tokens > 0) {
    plan.kv_cache_tokens = pages_for(options.kv_cache_tokens) * kPageTokens;
    if (plan.kv_cache_tokens < one_context)
      throw EngineError(ErrorCode::invalid_argument,
                        "kvCacheTokens " + std::to_string(options.kv_cache_tokens) + " asked for; one sequence may hold " +
                            std::to_string(plan.context) + " tokens",
                        "raise kvCacheTokens or lower maxModelLen");
    return plan;
  }
  const int64_t affordable = static_cast<int64_t>(kv_bytes / bytes_per_token);
  const int64_t wanted = one_context * options.max_num_seqs;
  plan.kv_cache_tokens = std::max(one_context, std::min(wanted, affordable) / kPageTokens * kPageTokens);
  return plan;
}

int step_tokens(const EngineOptions& options, const std::string& device, int64_t context, uint64_t bytes_per_token,
                uint64_t spare_bytes) {
  if (options.max_batched_tokens > 0) return options.max_batched_tokens;
  const bool cuda = device == "cuda";
  const int64_t least = std::max<int64_t>(kStepTokens, options.max_num_seqs);  // every running answer has its row
  int64_t tokens = std::max(least, cuda ? kCudaStepTokens : kStepTokens);
  // Nodes come to the same number only without a look at the memory of one.
  if (cuda && options.node.count == 1)
    while (tokens > least && kWithScratch * tokens * bytes_per_token > spare_bytes) tokens = std::max(least, tokens / 2);
  return static_cast<int>(std::min(tokens, options.max_num_seqs * context));
}

}  // namespace sigmoe
