#include "engine/checkpoint/config.h"

#include <algorithm>
#include <cmath>

#include "engine/checkpoint/json_text.h"
#include "engine/checkpoint/quant_config.h"

namespace sigmoe {
namespace {

// Bounds of what is read at all: far above any published model, low enough that products of any three fit in 63 bits.
constexpr int64_t kMostLayers = 1024, kMostWidth = 1 << 17, kMostVocab = 1 << 22, kMostExperts = 4096, kMostPositions = 1 << 26;

void check_architecture(const Fields& fields, ModelConfig& out) {
  Problems& problems = fields.problems();
  constexpr const char* kArchitecture = "BailingMoeV2ForCausalLM";
  const std::vector<std::string> found = fields.strings("architectures");
  if (std::find(found.begin(), found.end(), kArchitecture) == found.end())
    problems.unsupported("architectures is " + (found.empty() ? std::string("missing") : "'" + shortened(found[0]) + "'") +
                         ", only " + kArchitecture + " is supported");
  out.architecture = kArchitecture;
  const std::string type = fields.string("model_type", "");
  if (type != "bailing_moe" && type != "bailing_moe_v2")
    problems.unsupported("model_type is '" + shortened(type) + "', must be bailing_moe or bailing_moe_v2");
  // What the forward pass is written for. Absent fields mean the same.
  fields.must_be("hidden_act", "silu");
  fields.must_be("score_function", "sigmoid");
  fields.must_be("use_rmsnorm", true);
  for (const char* name : {"use_bias", "use_qkv_bias", "attention_bias", "use_sliding_window", "rope_interleave"})
    fields.must_be(name, false);
  fields.must_be("moe_layer_freq", 1);
}

void parse_sizes(const Fields& fields, ModelConfig& out) {
  Problems& problems = fields.problems();
  out.vocab_size = fields.integer("vocab_size", 1, kMostVocab);
  out.hidden_size = fields.integer("hidden_size", 1, kMostWidth);
  out.n_layers = fields.integer("num_hidden_layers", 1, kMostLayers);
  out.n_dense_layers = fields.integer("first_k_dense_replace", 0, kMostLayers);
  out.n_mtp_layers = fields.integer("num_nextn_predict_layers", 0, 8, 0);
  out.n_heads = fields.integer("num_attention_heads", 1, 4096);
  out.n_kv_heads = fields.integer("num_key_value_heads", 1, 4096);
  if (out.n_heads > 0 && out.n_kv_heads > 0 && out.n_heads % out.n_kv_heads != 0)
    problems.wrong("num_attention_heads " + std::to_string(out.n_heads) + " is not a multiple of num_key_value_heads " +
                   std::to_string(out.n_kv_heads));
  if (out.n_layers > 0 && out.n_dense_layers > out.n_layers)
    problems.wrong("first_k_dense_replace " + std::to_string(out.n_dense_layers) + " is above num_hidden_layers " +
                   std::to_string(out.n_layers));
  const bool heads_divide = out.n_heads > 0 && out.hidden_size % out.n_heads == 0;
  out.head_dim =
      fields.integer("head_dim", 2, 1024, heads_divide ? std::optional(out.hidden_size / out.n_heads) : std::nullopt);
  if (out.head_dim % 2 != 0) problems.wrong("head_dim " + std::to_string(out.head_dim) + " is odd");
  out.dense_width =
      fields.integer("intermediate_size", 1, kMostWidth, out.n_dense_layers == 0 ? std::optional<int64_t>(0) : std::nullopt);
  out.rms_eps = static_cast<float>(fields.number("rms_norm_eps", 0.0, 1.0));
  out.qk_norm = fields.boolean("use_qk_norm", true);
  out.normalise_head = fields.boolean("norm_head", false);
  out.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  for (const int64_t id : fields.integers("eos_token_id", 0, std::max<int64_t>(out.vocab_size - 1, 0)))
    out.eos_ids.push_back(static_cast<int32_t>(id));
}

void parse_experts(const Fields& fields, ModelConfig& out) {
  Problems& problems = fields.problems();
  out.n_experts = fields.integer("num_experts", 1, kMostExperts);
  out.n_active = fields.integer("num_experts_per_tok", 1, 256);
  out.expert_width = fields.integer("moe_intermediate_size", 1, kMostWidth);
  out.n_groups = fields.integer("n_group", 1, kMostExperts);
  out.n_groups_kept = fields.integer("topk_group", 1, kMostExperts);
  out.shared_width = fields.integer("num_shared_experts", 0, 64) *
                     fields.integer("moe_shared_expert_intermediate_size", 1, kMostWidth, out.expert_width);
  out.normalise_topk = fields.boolean("norm_topk_prob", true);
  out.routed_scaling = static_cast<float>(fields.number("routed_scaling_factor", 1e-6, 1e6));
  out.expert_bias = fields.boolean("moe_router_enable_expert_bias", true);
  if (out.n_experts == 0 || out.n_active == 0 || out.n_groups == 0 || out.n_groups_kept == 0) return;  // already reported
  if (out.n_experts % out.n_groups != 0)
    problems.wrong("num_experts " + std::to_string(out.n_experts) + " is not a multiple of n_group " +
                   std::to_string(out.n_groups));
  else if (out.n_groups_kept > out.n_groups)
    problems.wrong("topk_group " + std::to_string(out.n_groups_kept) + " is above n_group " + std::to_string(out.n_groups));
  else if (out.n_active > out.n_experts / out.n_groups * out.n_groups_kept)
    problems.wrong("num_experts_per_tok " + std::to_string(out.n_active) + " is above the " +
                   std::to_string(out.n_experts / out.n_groups * out.n_groups_kept) + " experts of topk_group groups");
}

// A value that may stand at the top level, in rope_parameters, or, agreeing, in both.
double either(const Fields& top, const Fields& nested, const char* name, double lowest, double highest,
              std::optional<double> fallback) {
  if (!nested.has(name)) return top.number(name, lowest, highest, fallback);
  const double value = nested.number(name, lowest, highest);
  if (top.has(name) && top.number(name, lowest, highest) != value)
    top.problems().wrong(top.path(name) + " and " + nested.path(name) + " differ");
  return value;
}

void parse_yarn(const Fields& rope, ModelConfig& out) {
  YarnConfig& yarn = out.yarn;
  yarn.factor = rope.number("factor", 1.0, 1024.0);
  yarn.original_context = rope.integer("original_max_position_embeddings", 1, kMostPositions, out.context);
  yarn.beta_fast = rope.number("beta_fast", 1e-3, 1e6, 32.0);
  yarn.beta_slow = rope.number("beta_slow", 1e-3, 1e6, 1.0);
  yarn.attention_factor = rope.number("attention_factor", 0.0, 1e3, 0.0);
  yarn.mscale = rope.number("mscale", 0.0, 1e3, 0.0);
  yarn.mscale_all_dim = rope.number("mscale_all_dim", 0.0, 1e3, 0.0);
  yarn.truncate = rope.boolean("truncate", true);
  if (yarn.beta_fast < yarn.beta_slow) rope.problems().wrong(rope.path("beta_fast") + " is below beta_slow");
  const double extended = std::floor(yarn.factor * static_cast<double>(yarn.original_context));
  if (extended > static_cast<double>(kMostPositions))
    rope.problems().wrong(rope.path("factor") + " times original_max_position_embeddings is above " +
                          std::to_string(kMostPositions));
  else
    out.context = std::max(out.context, static_cast<int64_t>(extended));
}

}  // namespace

void parse_rope(const Fields& fields, std::optional<double> default_theta, ModelConfig& out) {
  Problems& problems = fields.problems();
  out.context = fields.integer("max_position_embeddings", 1, kMostPositions);
  const Fields parameters = fields.object("rope_parameters"), scaling = fields.object("rope_scaling");
  out.rope_theta = either(fields, parameters, "rope_theta", 1.0 + 1e-6, 1e12, default_theta);
  const double rotated = either(fields, parameters, "partial_rotary_factor", 1e-3, 1.0, 1.0);
  const int64_t from_factor = static_cast<int64_t>(static_cast<double>(out.head_dim) * rotated);
  out.rotary_dim = fields.integer("rotary_dim", 2, 1024, from_factor);
  if (out.head_dim > 0 && (out.rotary_dim < 2 || out.rotary_dim > out.head_dim || out.rotary_dim % 2 != 0))
    problems.wrong("the rotated part of a head is " + std::to_string(out.rotary_dim) + " of head_dim " +
                   std::to_string(out.head_dim) + " (partial_rotary_factor or rotary_dim): must be even and at least 2");
  if (fields.has("rotary_dim") && (fields.has("partial_rotary_factor") || parameters.has("partial_rotary_factor")) &&
      out.rotary_dim != from_factor)
    problems.wrong("rotary_dim " + std::to_string(out.rotary_dim) + " and partial_rotary_factor differ");

  const auto type_of = [](const Fields& rope) { return rope.string("rope_type", rope.string("type", "default")); };
  const Fields& rope = fields.has("rope_scaling") ? scaling : parameters;
  if (fields.has("rope_scaling") && fields.has("rope_parameters") && type_of(scaling) != type_of(parameters))
    problems.wrong("rope_scaling and rope_parameters name different types");
  const std::string type = type_of(rope);
  if (type == "yarn")
    parse_yarn(rope, out);
  else if (type != "default")
    problems.unsupported(rope.path("rope_type") + " is '" + shortened(type) + "', must be default or yarn");
}

ModelConfig parse_model_config(const std::string& text, const std::string& hf_quant_config) {
  const nlohmann::json config = parse_json(text, "config.json");
  const nlohmann::json modelopt =
      hf_quant_config.empty() ? nlohmann::json() : parse_json(hf_quant_config, "hf_quant_config.json");
  Problems problems;
  if (!config.is_object()) problems.wrong("must be an object");
  if (!modelopt.is_null() && !modelopt.is_object()) problems.wrong("hf_quant_config.json must be an object");
  const Fields fields(config.is_object() ? &config : nullptr, "", problems);
  const Fields quant_fields(modelopt.is_object() ? &modelopt : nullptr, "hf_quant_config.", problems);

  ModelConfig out;
  check_architecture(fields, out);
  parse_sizes(fields, out);
  parse_experts(fields, out);
  parse_rope(fields, std::nullopt, out);
  out.quant = parse_quant_config(fields, quant_fields);
  if (out.quant.method == QuantMethod::int4_group)
    for (const auto& [name, width] :
         {std::pair("hidden_size", out.hidden_size), std::pair("intermediate_size", out.dense_width),
          std::pair("moe_intermediate_size", out.expert_width)})
      if (width % 8 != 0)
        problems.unsupported(std::string(name) + " " + std::to_string(width) + " is not a multiple of 8 (INT4)");
  problems.throw_if_any("config.json");
  return out;
}

}  // namespace sigmoe
