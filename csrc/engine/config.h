// Hyperparameters of a BailingMoeV2 model, read from config.json. Dimension letters as in backend/backend.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/name_pattern.h"

namespace sigmoe {

// YaRN context extension; factor 1 means plain RoPE.
struct YarnConfig {
  double factor = 1.0;
  int64_t original_context = 0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double attention_factor = 0.0;  // 0: 0.1 ln(factor) + 1, or the mscale ratio
  double mscale = 0.0, mscale_all_dim = 0.0;
  bool truncate = true;  // round the correction range to whole dims
};

// How linear weights are stored. Chosen by quantization_config, confirmed by the scale tensors of the checkpoint.
enum class QuantMethod : uint8_t {
  none,          // BF16 or F32
  fp8_block,     // X.weight F8_E4M3 + X.weight_scale_inv (ceil(n/block_n), ceil(k/block_k))
  fp8_channel,   // X.weight F8_E4M3 + X.weight_scale (n, 1) or (n)
  fp8_tensor,    // X.weight F8_E4M3 + X.weight_scale scalar
  int8_channel,  // X.weight I8 + X.weight_scale (n, 1) or (n)
  int4_group,    // X.weight_packed I32 (n, k/8) + X.weight_scale (n, k/group) + X.weight_shape
};

const char* quant_method_name(QuantMethod method);

struct QuantConfig {
  QuantMethod method = QuantMethod::none;
  int64_t block_n = 128, block_k = 128;  // fp8_block
  int64_t group = 0;                     // int4_group: elements of k per scale
  std::vector<NamePattern> targets;      // modules that are quantised; empty: every linear layer
  std::vector<NamePattern> ignored;      // of those, the modules kept in BF16
  // True when a module of this name (no ".weight") is stored quantised.
  bool applies_to(const std::string& module) const;
};

struct ModelConfig {
  std::string architecture;  // "BailingMoeV2ForCausalLM"
  int64_t vocab_size = 0;    // V
  int64_t hidden_size = 0;   // D
  int64_t n_layers = 0;
  int64_t n_dense_layers = 0;  // layers [0, n_dense_layers) have one MLP instead of experts
  int64_t n_mtp_layers = 0;    // stored as layers [n_layers, n_layers + n_mtp_layers)
  int64_t n_heads = 0;         // H
  int64_t n_kv_heads = 0;      // G
  int64_t head_dim = 0;        // Dh
  int64_t rotary_dim = 0;
  int64_t dense_width = 0;   // intermediate_size
  int64_t expert_width = 0;  // F, moe_intermediate_size
  int64_t shared_width = 0;  // all shared experts together; 0: none
  int64_t n_experts = 0;     // E
  int64_t n_active = 0;      // A
  int64_t n_groups = 1, n_groups_kept = 1;
  bool normalise_topk = true;
  float routed_scaling = 1.0f;
  bool expert_bias = true;  // checkpoint has mlp.gate.expert_bias
  bool qk_norm = true;
  bool normalise_head = false;  // norm_head of older Bailing models
  bool tied_embeddings = false;
  float rms_eps = 1e-6f;
  double rope_theta = 10000.0;
  YarnConfig yarn;
  int64_t context = 0;  // positions the model may see: max_position_embeddings, times factor under YaRN
  std::vector<int32_t> eos_ids;
  QuantConfig quant;

  bool is_dense(int64_t layer) const { return layer < n_dense_layers; }
};

// Parses and validates config.json text. Every wrong field is named in one EngineError (bad_checkpoint or unsupported).
// `hf_quant_config` is the text of hf_quant_config.json (ModelOpt), or empty.
ModelConfig parse_model_config(const std::string& text, const std::string& hf_quant_config = {});

class Fields;
// rope_theta with rope_scaling, or everything in rope_parameters, and the context; reference/model.md 1.1 and 2.4. Needs
// head_dim. Without default_theta a config must name its own.
void parse_rope(const Fields& fields, std::optional<double> default_theta, ModelConfig& out);

// cos and sin tables, each (n_positions, rotary_dim / 2) f32, computed in double. reference/model.md 2.3 and 2.4:
// inv_freq_j = theta^(-2j/d); under YaRN blended with inv_freq_j / factor, and both tables times the attention factor.
void rope_tables(const ModelConfig& config, int64_t n_positions, std::vector<float>& cos, std::vector<float>& sin);

}  // namespace sigmoe
