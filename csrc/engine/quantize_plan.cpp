#include "engine/quantize_plan.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "engine/checkpoint_spec.h"
#include "engine/json_text.h"

namespace sigmoe {
namespace {

using Json = nlohmann::ordered_json;

// The modules that quantisation touches: the linear layers of attention, MLPs and experts.
class BodyLayers : private TensorWalk {
 public:
  explicit BodyLayers(const ModelFolder& model) : TensorWalk(model.config), checkpoint_(model.checkpoint) { walk(); }
  std::set<std::string> modules;

 private:
  QuantMethod method_of(const std::string& module, int64_t, int64_t, LinearRole role) override {
    if (role == LinearRole::body) modules.insert(module);
    return QuantMethod::none;
  }
  void tensor(const std::string&, const std::vector<Shape>&, const std::vector<DType>&) override {}
  void optional_tensor(const std::string&, const std::vector<Shape>&, const std::vector<DType>&) override {}
  bool enter(const std::string& prefix, bool) override {
    const auto it = checkpoint_.tensors().lower_bound(prefix);
    return it != checkpoint_.tensors().end() && it->first.starts_with(prefix);
  }
  const Checkpoint& checkpoint_;
};

// "model.layers.3.mlp.experts.17.gate_proj" is of the kind "mlp.experts.*.gate_proj".
std::string kind_of(const std::string& module) {
  std::string kind;
  for (size_t at = std::strlen("model.layers."), part = 0; at < module.size(); ++part) {
    const size_t end = std::min(module.find('.', at), module.size());
    const std::string word = module.substr(at, end - at);
    const bool number = word.find_first_not_of("0123456789") == std::string::npos;
    if (part > 1) kind += ".";  // part 0 is the number of the layer
    if (part > 0) kind += number ? "*" : word;
    at = end + 1;
  }
  return kind;
}

// The publisher's exporter rounds these scales up to powers of two and leaves the others.
bool has_power_of_two_scales(const std::string& kind) {
  return kind == "attention.dense" || kind == "mlp.experts.*.gate_proj" || kind == "mlp.experts.*.up_proj";
}

Json quantization_config(QuantTarget target) {
  if (target == QuantTarget::fp8_block)
    return {{"quant_method", "fp8"},
            {"fmt", "e4m3"},
            {"activation_scheme", "dynamic"},
            {"weight_block_size", {kQuantBlock, kQuantBlock}}};
  // compressed-tensors: weights per output channel; engines that multiply in INT8 quantise activations per token.
  const Json weights = {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "channel"}, {"dynamic", false}};
  const Json inputs = {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "int-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", inputs}}}}},
          {"ignore", {"lm_head", "re:.*mlp\\.gate$", "re:.*eh_proj$"}}};
}

// A tensor of an output file, before its place is known.
struct OutTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  uint64_t bytes;
  size_t tensor;  // index in ShardPlan::tensors
  bool is_scales;
};

std::vector<OutTensor> tensors_out(const ShardPlan& shard, QuantTarget target) {
  std::vector<OutTensor> out;
  for (size_t i = 0; i < shard.tensors.size(); ++i) {
    const TensorEntry& source = *shard.tensors[i].source;
    if (!shard.tensors[i].quantized) {
      out.push_back({source.name, source.dtype, source.shape, source.bytes, i, false});
      continue;
    }
    const int64_t n = source.shape[0], k = source.shape[1];
    const auto blocks = [](int64_t size) { return (size + kQuantBlock - 1) / kQuantBlock; };
    const bool fp8 = target == QuantTarget::fp8_block;
    const std::vector<int64_t> scales = fp8 ? std::vector<int64_t>{blocks(n), blocks(k)} : std::vector<int64_t>{n, 1};
    out.push_back({source.name, fp8 ? DType::f8_e4m3 : DType::i8, source.shape, static_cast<uint64_t>(n * k), i, false});
    out.push_back({source.name + (fp8 ? "_scale_inv" : "_scale"), DType::f32, scales,
                   static_cast<uint64_t>(scales[0] * scales[1]) * 4, i, true});
  }
  // Wide elements first, so that every tensor is aligned to its elements.
  std::sort(out.begin(), out.end(), [](const OutTensor& a, const OutTensor& b) {
    const size_t width_a = dtype_bytes(a.dtype), width_b = dtype_bytes(b.dtype);
    return width_a != width_b ? width_a > width_b : a.name < b.name;
  });
  return out;
}

// Places tensors and writes the header.
void lay_out(ShardPlan& shard, QuantTarget target) {
  const std::vector<OutTensor> out = tensors_out(shard, target);
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t at = 0;
  for (const OutTensor& tensor : out) {
    header[tensor.name] = {
        {"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes}}};
    at += tensor.bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  for (int i = 0; i < 8; ++i) shard.header += static_cast<char>(length >> (8 * i));
  shard.header += text;
  uint64_t offset = shard.header.size();
  for (const OutTensor& tensor : out) {
    ShardTensor& placed = shard.tensors[tensor.tensor];
    (tensor.is_scales ? placed.scales_offset : placed.offset) = offset;
    offset += tensor.bytes;
  }
  shard.bytes = offset;
}

bool has_format(const QuantConfig& quant, QuantTarget target) {
  if (target == QuantTarget::int8_channel) return quant.method == QuantMethod::int8_channel;
  return quant.method == QuantMethod::fp8_block && quant.block_n == kQuantBlock && quant.block_k == kQuantBlock;
}

std::string index_text(const ShardIndex& map, uint64_t total_bytes) {
  return Json{{"metadata", {{"total_size", total_bytes}}}, {"weight_map", map}}.dump(2) + "\n";
}

}  // namespace

QuantTarget parse_quant_target(const std::string& name) {
  if (name == "fp8") return QuantTarget::fp8_block;
  if (name == "int8") return QuantTarget::int8_channel;
  throw EngineError(ErrorCode::invalid_argument, "format '" + shortened(name) + "' asked for: no such format",
                    "use fp8 (blocks of 128 x 128) or int8 (per channel)");
}

QuantizePlan plan_shards(const ModelFolder& model, const std::string& folder, QuantTarget target) {
  const QuantConfig& quant = model.config.quant;
  QuantizePlan plan;
  plan.unchanged = has_format(quant, target);
  if (!plan.unchanged && quant.method != QuantMethod::none)
    throw EngineError(ErrorCode::unsupported,
                      "quantising '" + folder + "': its weights are " + quant_method_name(quant.method) + " already",
                      "start from the BF16 or F32 checkpoint it was made of");
  const std::set<std::string> body = BodyLayers(model).modules;
  std::map<std::string, ShardPlan> shards;
  for (const auto& [name, entry] : model.checkpoint.tensors()) {
    const std::string file = std::filesystem::path(entry.file->path()).filename().string();
    ShardPlan& shard = shards[file];
    shard.file = file;
    shard.source = entry.file;
    ShardTensor tensor;
    tensor.source = &entry;
    const std::string module = name.ends_with(".weight") ? name.substr(0, name.size() - std::strlen(".weight")) : "";
    tensor.quantized = !plan.unchanged && body.contains(module);
    if (tensor.quantized) {
      tensor.kind = kind_of(module);
      tensor.power_of_two = target == QuantTarget::fp8_block && has_power_of_two_scales(tensor.kind);
    }
    shard.tensors.push_back(std::move(tensor));
  }
  ShardIndex map;
  uint64_t total_bytes = 0;
  for (auto& [file, shard] : shards) {
    shard.unchanged =
        std::none_of(shard.tensors.begin(), shard.tensors.end(), [](const ShardTensor& t) { return t.quantized; });
    if (shard.unchanged)
      shard.bytes = shard.source->size();
    else
      lay_out(shard, target);
    for (const OutTensor& tensor : tensors_out(shard, target)) {
      map[tensor.name] = file;
      total_bytes += tensor.bytes;
    }
    plan.shards.push_back(std::move(shard));
  }
  const std::filesystem::path base(folder);
  plan.config = read_small_file(base / "config.json");
  std::error_code ignored;
  const bool sharded = std::filesystem::exists(base / kIndexName, ignored);
  if (!plan.unchanged) {
    Json config = Json::parse(plan.config);
    config.erase("quantization_config");  // null, where it is there at all
    config["quantization_config"] = quantization_config(target);
    plan.config = config.dump(2) + "\n";
  }
  if (sharded) plan.index = index_text(map, total_bytes);
  return plan;
}

}  // namespace sigmoe
