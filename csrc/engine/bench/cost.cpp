#include "engine/bench/cost.h"

#include "engine/speculation/depth_control.h"

namespace sigmoe::bench {

Costs::Costs(const ModelConfig& config, const ModelWeights& weights, const BackendInfo& info, bool fp8_body, bool fp8_head)
    : c_(config),
      weights_(weights),
      kv_dtype_(info.kv_dtype),
      prefill_dtype_(prefill_dtype(info, config.head_dim)),
      fp8_body_(fp8_body),
      fp8_head_(fp8_head) {}

Cost Costs::linear(const LinearWeight* weight, double macs_per_token, double n_tokens, bool fp8) const {
  if (!weight) return {};
  Cost cost;
  cost.bytes = static_cast<double>(weight->bytes());
  (fp8 ? cost.flop_fp8 : cost.flop) = 2 * macs_per_token * n_tokens;
  return cost;
}

const LayerWeights* Costs::first(bool dense) const {
  for (const LayerWeights& layer : weights_.layers)
    if (layer.dense == dense) return &layer;
  return nullptr;
}

Cost Costs::qkv(int n_tokens) const {
  const double macs = static_cast<double>(c_.hidden_size) * (c_.n_heads + 2 * c_.n_kv_heads) * c_.head_dim;
  return linear(weights_.layers[0].qkv.get(), macs, n_tokens, fp8_body_);
}

Cost Costs::attention_out(int n_tokens) const {
  const double macs = static_cast<double>(c_.hidden_size) * c_.n_heads * c_.head_dim;
  return linear(weights_.layers[0].attn_out.get(), macs, n_tokens, fp8_body_);
}

Cost Costs::attention(int n_seqs, int n_tokens, int64_t context) const {
  const double q_width = static_cast<double>(c_.n_heads) * c_.head_dim;
  const double before = static_cast<double>(context) - n_tokens;
  const double pairs = n_tokens * before + n_tokens * (n_tokens + 1.0) / 2;  // of queries and keys, causal
  Cost cost;
  cost.bytes = static_cast<double>(c_.n_kv_heads) * static_cast<double>(kv_head_bytes(kv_dtype_, c_.head_dim)) *
               static_cast<double>(context) * n_seqs;
  constexpr int kMostDecoded = 1 + kMaxDraftDepth;  // rows of a sequence in a step
  const double flop = 4 * q_width * pairs * n_seqs;
  if (prefill_dtype_ == DType::f8_e4m3 && n_tokens > kMostDecoded)
    cost.flop_fp8 = kv_dtype_ == DType::f8_e4m3 ? flop : flop / 2;
  cost.flop = flop - cost.flop_fp8;
  return cost;
}

Cost Costs::route(int n_tokens) const {
  const LayerWeights* moe = first(false);
  return moe ? linear(moe->router.get(), static_cast<double>(c_.hidden_size) * c_.n_experts, n_tokens, false) : Cost();
}

Cost Costs::experts(double n_touched, int n_tokens, bool with_shared) const {
  const LayerWeights* moe = first(false);
  if (!moe) return {};
  const double d = static_cast<double>(c_.hidden_size);
  Cost cost;
  cost.bytes = n_touched * static_cast<double>(moe->gate_up[0]->bytes() + moe->down[0]->bytes());
  (fp8_body_ ? cost.flop_fp8 : cost.flop) = 2.0 * 3 * d * c_.expert_width * c_.n_active * n_tokens;
  if (!with_shared) return cost;
  cost += linear(moe->shared_gate_up.get(), 2 * d * c_.shared_width, n_tokens, fp8_body_);
  return cost += linear(moe->shared_down.get(), d * c_.shared_width, n_tokens, fp8_body_);
}

Cost Costs::dense_mlp(int n_tokens) const {
  const LayerWeights* dense = first(true);
  if (!dense) return {};
  const double macs = static_cast<double>(c_.hidden_size) * c_.dense_width;
  return linear(dense->shared_gate_up.get(), 2 * macs, n_tokens, fp8_body_) +
         linear(dense->shared_down.get(), macs, n_tokens, fp8_body_);
}

Cost Costs::head(int n_rows) const {
  return linear(weights_.lm_head.get(), static_cast<double>(c_.hidden_size) * c_.vocab_size, n_rows, fp8_head_);
}

Cost Costs::trunk(int n_seqs, int n_tokens, int64_t context, double n_touched) const {
  const int rows = n_seqs * n_tokens;
  double n_moe = 0, n_dense = 0;
  for (const LayerWeights& layer : weights_.layers) (layer.dense ? n_dense : n_moe) += 1;
  Cost cost = (qkv(rows) + attention_out(rows) + attention(n_seqs, n_tokens, context)) * (n_moe + n_dense);
  cost += dense_mlp(rows) * n_dense;
  if (n_moe == 0) return cost;
  return cost += (experts(n_touched / n_moe, rows) + route(rows)) * n_moe;
}

}  // namespace sigmoe::bench
