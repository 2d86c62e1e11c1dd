#include "engine/speculation/synthetic_draft.h"

#include <algorithm>

#include "engine/weights/synthetic.h"

namespace sigmoe {

DraftFolder synthetic_draft(const ModelConfig& target, uint64_t seed) {
  constexpr int64_t kVocab = 32000;
  DraftConfig c;
  c.hidden_size = target.hidden_size;
  c.mlp_width = target.hidden_size * 7 / 2;
  c.rope.head_dim = c.rope.rotary_dim = 128;
  c.rope.rope_theta = 10000.0;
  c.rope.context = target.context;
  c.n_heads = std::max<int64_t>(1, target.hidden_size / c.rope.head_dim);
  c.n_kv_heads = std::max<int64_t>(1, c.n_heads / 4);
  c.vocab_size = std::min(kVocab, target.vocab_size);
  const int64_t n = target.n_layers;
  c.feature_layers = {std::min<int64_t>(2, n), n / 2, std::max<int64_t>(0, n - 3)};
  c.rms_eps = 1e-5f;

  std::vector<TensorEntry> tensors;
  const auto add = [&](const char* name, std::vector<int64_t> shape, DType dtype = DType::bf16) {
    TensorEntry& entry = tensors.emplace_back();
    entry.name = name;
    entry.dtype = dtype;
    entry.shape = std::move(shape);
  };
  const int64_t d = c.hidden_size, q = c.n_heads * c.rope.head_dim, kv = c.n_kv_heads * c.rope.head_dim;
  add("fc.weight", {d, 3 * d});
  for (const char* norm : {"midlayer.input_layernorm.weight", "midlayer.hidden_norm.weight",
                           "midlayer.post_attention_layernorm.weight", "norm.weight"})
    add(norm, {d});
  add("midlayer.self_attn.q_proj.weight", {q, 2 * d});
  add("midlayer.self_attn.k_proj.weight", {kv, 2 * d});
  add("midlayer.self_attn.v_proj.weight", {kv, 2 * d});
  add("midlayer.self_attn.o_proj.weight", {d, q});
  add("midlayer.mlp.gate_proj.weight", {c.mlp_width, d});
  add("midlayer.mlp.up_proj.weight", {c.mlp_width, d});
  add("midlayer.mlp.down_proj.weight", {d, c.mlp_width});
  add("lm_head.weight", {c.vocab_size, d});
  add("d2t", {c.vocab_size}, DType::i64);
  return {c, synthetic_tensors(std::move(tensors), seed)};
}

}  // namespace sigmoe
