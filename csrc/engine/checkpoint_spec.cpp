#include "engine/checkpoint_spec.h"

#include <algorithm>
#include <unordered_set>

#include "engine/json_text.h"
#include "engine/weights.h"

namespace sigmoe {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* weight_suffix(QuantMethod method) { return method == QuantMethod::int4_group ? ".weight_packed" : ".weight"; }
const char* scale_suffix(QuantMethod method) {
  return method == QuantMethod::fp8_block ? ".weight_scale_inv" : ".weight_scale";
}

bool any_tensor_begins_with(const Checkpoint& checkpoint, const std::string& prefix) {
  const auto it = checkpoint.tensors().lower_bound(prefix);
  return it != checkpoint.tensors().end() && it->first.starts_with(prefix);
}

using Shape = TensorWalk::Shape;

std::string shape_text(const Shape& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

// Compares the tensors a config implies with those there are.
class Checker : private TensorWalk {
 public:
  Checker(const ModelConfig& config, const Checkpoint& checkpoint) : TensorWalk(config), checkpoint_(checkpoint) {}

  void check() {
    walk();
    for (const auto& [name, entry] : checkpoint_.tensors())
      if (!expected_.contains(&entry) && !ignorable(name)) unexpected_.push_back(shortened(name));
    report();
  }

 private:
  QuantMethod method_of(const std::string& module, int64_t n, int64_t k, LinearRole role) override {
    return stored_linear(config_, checkpoint_, module, n, k, role).method;
  }

  // A layer or expert that is absent altogether is one line of the report, and costs no walk: a config may claim a million.
  bool enter(const std::string& prefix, bool is_mtp_layer) override {
    const bool stored = any_tensor_begins_with(checkpoint_, prefix);
    if (!stored && !is_mtp_layer) absent_.push_back(prefix + "*");
    return stored;
  }

  void optional_tensor(const std::string& name, const std::vector<Shape>& shapes, const std::vector<DType>& dtypes) override {
    if (checkpoint_.find(name)) tensor(name, shapes, dtypes);
  }

  void tensor(const std::string& name, const std::vector<Shape>& shapes, const std::vector<DType>& dtypes) override {
    const TensorEntry* entry = checkpoint_.find(name);
    if (!entry) {
      absent_.push_back(name);
      return;
    }
    expected_.insert(entry);
    if (entry->dtype == DType::f16) half_.push_back(name);
    if (entry->dtype != DType::f16 && std::find(dtypes.begin(), dtypes.end(), entry->dtype) == dtypes.end()) {
      std::string wanted = dtype_name(dtypes[0]);
      for (size_t i = 1; i < dtypes.size(); ++i) wanted += std::string(" or ") + dtype_name(dtypes[i]);
      wrong_dtype_.push_back(name + " is " + dtype_name(entry->dtype) + ", must be " + wanted);
    }
    if (std::find(shapes.begin(), shapes.end(), entry->shape) == shapes.end())
      wrong_shape_.push_back(name + " is " + shape_text(entry->shape) + ", must be " + shape_text(shapes[0]));
  }

  // Present in some exports and not needed: computed tables, scales of activations and caches that are not quantised
  // here, and what an MTP layer shares with the model.
  bool ignorable(const std::string& name) const {
    for (const char* end : {".inv_freq", ".input_scale", ".k_scale", ".v_scale", ".kv_scale"})
      if (name.ends_with(end)) return true;
    if (name.find("v_head") != std::string::npos || (config_.tied_embeddings && name == "lm_head.weight")) return true;
    for (int64_t layer = config_.n_layers; layer < config_.n_layers + config_.n_mtp_layers; ++layer)
      for (const char* shared : {"shared_head.head.", "embed_tokens."})
        if (name.starts_with(layer_prefix(layer) + shared)) return true;
    return false;
  }

  void report() const {
    std::string message;
    const auto list = [&](const char* what, const std::vector<std::string>& names) {
      if (names.empty()) return;
      constexpr size_t kMost = 20;
      message += (message.empty() ? "" : "; ") + std::to_string(names.size()) + " " + what + ": ";
      for (size_t i = 0; i < names.size() && i < kMost; ++i) message += (i ? ", " : "") + names[i];
      if (names.size() > kMost) message += " and " + std::to_string(names.size() - kMost) + " more";
    };
    list("tensors in F16, which is not supported", half_);
    const bool only_half = !message.empty();
    const size_t half_length = message.size();
    list("tensors absent", absent_);
    list("tensors unexpected", unexpected_);
    list("tensors of wrong shape", wrong_shape_);
    list("tensors of wrong dtype", wrong_dtype_);
    if (message.empty()) return;
    const std::string format = std::string(" (weights by config: ") + quant_method_name(config_.quant.method) + ")";
    if (only_half && message.size() == half_length)
      throw EngineError(ErrorCode::unsupported, "checkpoint: " + message,
                        "convert the checkpoint to BF16, the format the family is trained in");
    throw EngineError(ErrorCode::bad_checkpoint, "checkpoint does not match its config.json: " + message + format,
                      "config.json and the tensors must be of the same release; fetch the folder again");
  }

  const Checkpoint& checkpoint_;
  std::unordered_set<const TensorEntry*> expected_;
  std::vector<std::string> absent_, unexpected_, wrong_shape_, wrong_dtype_, half_;
};

}  // namespace

void TensorWalk::walk() {
  const int64_t D = config_.hidden_size, V = config_.vocab_size;
  tensor("model.word_embeddings.weight", {{V, D}}, {DType::bf16, DType::f32});
  for (int64_t layer = 0; layer < config_.n_layers; ++layer)
    if (enter(layer_prefix(layer), false)) decoder_layer(layer_prefix(layer), config_.is_dense(layer));
  for (int64_t layer = config_.n_layers; layer < config_.n_layers + config_.n_mtp_layers; ++layer)
    if (enter(layer_prefix(layer), true)) mtp_layer(layer_prefix(layer));
  norm("model.norm.weight", D);
  if (!config_.tied_embeddings) linear("lm_head", V, D, LinearRole::edge);
}

void TensorWalk::decoder_layer(const std::string& at, bool dense) {
  const int64_t D = config_.hidden_size, Dh = config_.head_dim, H = config_.n_heads, G = config_.n_kv_heads;
  norm(at + "input_layernorm.weight", D);
  norm(at + "post_attention_layernorm.weight", D);
  linear(at + "attention.query_key_value", (H + 2 * G) * Dh, D, LinearRole::body);
  linear(at + "attention.dense", D, H * Dh, LinearRole::body);
  if (config_.qk_norm) {
    norm(at + "attention.query_layernorm.weight", Dh);
    norm(at + "attention.key_layernorm.weight", Dh);
  }
  if (dense) return mlp(at + "mlp.", config_.dense_width);
  linear(at + "mlp.gate", config_.n_experts, D, LinearRole::router);
  if (config_.expert_bias) norm(at + "mlp.gate.expert_bias", config_.n_experts);
  for (int64_t e = 0; e < config_.n_experts; ++e) {
    const std::string expert = at + "mlp.experts." + std::to_string(e) + ".";
    if (enter(expert, false)) mlp(expert, config_.expert_width);
  }
  if (config_.shared_width > 0) mlp(at + "mlp.shared_experts.", config_.shared_width);
}

void TensorWalk::mtp_layer(const std::string& at) {
  const int64_t D = config_.hidden_size;
  for (const char* name : {"enorm.weight", "hnorm.weight", "final_layernorm.weight"}) norm(at + name, D);
  linear(at + "eh_proj", D, 2 * D, LinearRole::edge);
  decoder_layer(at, false);
}

void TensorWalk::mlp(const std::string& at, int64_t width) {
  linear(at + "gate_proj", width, config_.hidden_size, LinearRole::body);
  linear(at + "up_proj", width, config_.hidden_size, LinearRole::body);
  linear(at + "down_proj", config_.hidden_size, width, LinearRole::body);
}

void TensorWalk::norm(const std::string& name, int64_t size) { tensor(name, {{size}}, {DType::bf16, DType::f32}); }

void TensorWalk::linear(const std::string& module, int64_t n, int64_t k, LinearRole role) {
  const QuantMethod method = method_of(module, n, k, role);
  const QuantConfig& quant = config_.quant;
  const std::string weight = module + weight_suffix(method), scale = module + scale_suffix(method);
  const std::vector<DType> scales = {DType::f32, DType::bf16};
  switch (method) {
    case QuantMethod::none: tensor(weight, {{n, k}}, {DType::bf16, DType::f32}); break;
    case QuantMethod::fp8_block:
      tensor(weight, {{n, k}}, {DType::f8_e4m3});
      tensor(scale, {{ceil_div(n, quant.block_n), ceil_div(k, quant.block_k)}}, scales);
      break;
    case QuantMethod::fp8_channel:
      tensor(weight, {{n, k}}, {DType::f8_e4m3});
      tensor(scale, {{n, 1}, {n}}, scales);
      break;
    case QuantMethod::int8_channel:
      tensor(weight, {{n, k}}, {DType::i8});
      tensor(scale, {{n, 1}, {n}}, scales);
      break;
    case QuantMethod::fp8_tensor:
      tensor(weight, {{n, k}}, {DType::f8_e4m3});
      tensor(scale, {{}, {1}, {1, 1}}, scales);
      break;
    case QuantMethod::int4_group:
      tensor(weight, {{n, k / 8}}, {DType::i32});
      tensor(scale, {{n, ceil_div(k, quant.group)}}, scales);
      optional_tensor(module + ".weight_shape", {{2}}, {DType::i64, DType::i32});
      break;
  }
}

WeightFormat StoredLinear::format() const {
  switch (method) {
    case QuantMethod::none: return weight->dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16;
    case QuantMethod::int4_group: return WeightFormat::int4;
    case QuantMethod::int8_channel: return WeightFormat::int8;
    default: return WeightFormat::fp8;
  }
}

StoredLinear stored_linear(const ModelConfig& config, const Checkpoint& checkpoint, const std::string& module, int64_t n,
                           int64_t k, LinearRole role) {
  StoredLinear out;
  out.module = module;
  out.n = n;
  out.k = k;
  out.method = role != LinearRole::router && config.quant.applies_to(module) ? config.quant.method : QuantMethod::none;
  if (role == LinearRole::edge) {
    const TensorEntry* plain = checkpoint.find(module + ".weight");
    if (plain && (plain->dtype == DType::bf16 || plain->dtype == DType::f32)) out.method = QuantMethod::none;
  }
  out.weight = checkpoint.find(module + weight_suffix(out.method));
  if (out.method != QuantMethod::none) out.scale = checkpoint.find(module + scale_suffix(out.method));
  if (out.method == QuantMethod::int4_group) out.shape = checkpoint.find(module + ".weight_shape");
  return out;
}

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

bool layer_is_stored(const Checkpoint& checkpoint, int64_t layer) {
  return any_tensor_begins_with(checkpoint, layer_prefix(layer));
}

void check_tensors(const ModelConfig& config, const Checkpoint& checkpoint) { Checker(config, checkpoint).check(); }

}  // namespace sigmoe
