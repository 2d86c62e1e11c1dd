#include "make_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

namespace sigmoe::testing {

using nlohmann::json;

namespace {

constexpr int64_t kBlock = 32, kGroup = 16;  // small, so that small tensors have several

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> out(values.size() * sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), values.data(), out.size());
  return out;
}

uint8_t to_fp8(float value) {  // nearest of the 127 magnitudes, by search: a test helper may be slow
  static const std::vector<float> magnitudes = [] {
    std::vector<float> out;
    for (int code = 0; code < 127; ++code) out.push_back(f8e4m3_to_f32(static_cast<uint8_t>(code)));
    return out;
  }();
  const float wanted = std::fabs(value);
  const auto above = std::lower_bound(magnitudes.begin(), magnitudes.end(), wanted);
  auto best = above == magnitudes.end() ? above - 1 : above;
  if (best != magnitudes.begin() && wanted - *(best - 1) < *best - wanted) --best;
  return static_cast<uint8_t>((best - magnitudes.begin()) | (value < 0 ? 0x80 : 0));
}

class Writer {
 public:
  Writer(StoredModel& out, Storage storage) : out_(out), storage_(storage) {}

  void plain(const std::string& name, const FloatTensor& tensor, bool wide) {
    FloatTensor truth = tensor;
    if (wide) {
      out_.tensors.push_back({name, "F32", tensor.shape, bytes_of(tensor.values)});
    } else {
      std::vector<uint16_t> bits;
      for (float& value : truth.values) {
        bits.push_back(f32_to_bf16(value));
        value = bf16_to_f32(bits.back());
      }
      out_.tensors.push_back({name, "BF16", tensor.shape, bytes_of(bits)});
    }
    out_.truth[name] = std::move(truth);
  }

  void quantised(const std::string& module, const FloatTensor& tensor) {
    const int64_t n = tensor.shape[0], k = tensor.shape[1];
    const int64_t bn = storage_ == Storage::fp8_block ? kBlock : storage_ == Storage::fp8_tensor ? n : 1;
    const int64_t bk = storage_ == Storage::fp8_block ? kBlock : storage_ == Storage::int4_group ? kGroup : k;
    const int64_t rows = (n + bn - 1) / bn, columns = (k + bk - 1) / bk;
    const float top = storage_ == Storage::int4_group ? 7.0f : storage_ == Storage::int8_channel ? 127.0f : 448.0f;
    std::vector<float> scales(rows * columns, 0.0f);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j) {
        float& scale = scales[i / bn * columns + j / bk];
        scale = std::max(scale, std::fabs(tensor.values[i * k + j]) / top);
      }
    for (float& scale : scales) scale = std::max(scale, 1e-6f);
    std::vector<uint16_t> narrow;  // channel and group scales come in BF16 as well
    const bool narrow_scales = storage_ == Storage::fp8_channel || storage_ == Storage::int4_group;
    if (narrow_scales)
      for (float& scale : scales) {
        narrow.push_back(f32_to_bf16(scale));
        scale = bf16_to_f32(narrow.back());
      }
    FloatTensor truth = tensor;
    std::vector<uint8_t> codes;
    std::vector<uint32_t> packed(storage_ == Storage::int4_group ? n * k / 8 : 0);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j) {
        float& value = truth.values[i * k + j];
        const float scale = scales[i / bn * columns + j / bk];
        if (storage_ == Storage::int4_group) {
          const int level = std::clamp(static_cast<int>(std::lround(value / scale)), -8, 7);
          packed[(i * k + j) / 8] |= static_cast<uint32_t>(level + 8) << (4 * (j % 8));
          value = static_cast<float>(level) * scale;
        } else if (storage_ == Storage::int8_channel) {
          // Codes go down to -128, which the largest negative weight of every other row becomes.
          const int level = std::clamp(static_cast<int>(std::lround(value / scale)), i % 2 == 0 ? -128 : -127, 127);
          codes.push_back(static_cast<uint8_t>(level == -127 && i % 2 == 0 ? -128 : level));
          value = static_cast<float>(static_cast<int8_t>(codes.back())) * scale;
        } else {
          codes.push_back(to_fp8(value / scale));
          value = f8e4m3_to_f32(codes.back()) * scale;
        }
      }
    if (storage_ == Storage::int4_group) {
      out_.tensors.push_back({module + ".weight_packed", "I32", {n, k / 8}, bytes_of(packed)});
      out_.tensors.push_back({module + ".weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{n, k})});
    } else {
      out_.tensors.push_back(
          {module + ".weight", storage_ == Storage::int8_channel ? "I8" : "F8_E4M3", {n, k}, bytes_of(codes)});
    }
    std::vector<int64_t> shape = {rows, columns};
    if (storage_ == Storage::fp8_tensor) shape = {};
    out_.tensors.push_back({module + (storage_ == Storage::fp8_block ? ".weight_scale_inv" : ".weight_scale"),
                            narrow_scales ? "BF16" : "F32", shape, narrow_scales ? bytes_of(narrow) : bytes_of(scales)});
    out_.truth[module + ".weight"] = std::move(truth);
  }

 private:
  StoredModel& out_;
  Storage storage_;
};

json quantization_config(Storage storage) {
  const json activations = {{"num_bits", 8}, {"type", "float"}, {"strategy", "token"}, {"dynamic", true}};
  const auto compressed = [&](const json& weights, const char* format, const json& input) {
    return json{
        {"quant_method", "compressed-tensors"},
        {"format", format},
        {"ignore", {"lm_head", "re:.*mlp\\.gate$", "re:.*eh_proj"}},
        {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", input}}}}}};
  };
  switch (storage) {
    case Storage::fp8_block:
      return {
          {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {kBlock, kBlock}}};
    case Storage::fp8_tensor:
      return {{"quant_method", "fp8"}, {"activation_scheme", "static"}, {"modules_to_not_convert", {"lm_head"}}};
    case Storage::fp8_channel:
      return compressed({{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}, {"symmetric", true}}, "float-quantized",
                        activations);
    case Storage::int8_channel:
      return compressed({{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}, {"symmetric", true}}, "int-quantized",
                        {{"num_bits", 8}, {"type", "int"}, {"strategy", "token"}, {"dynamic", true}});
    case Storage::int4_group:
      return compressed({{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", kGroup}, {"symmetric", true}},
                        "pack-quantized", nullptr);
    default: return nullptr;
  }
}

// The layers that quantisation touches: attention, MLPs and experts, not the router, the head, the tables or eh_proj.
bool is_body_linear(const std::string& name) {
  for (const char* end :
       {"attention.query_key_value.weight", "attention.dense.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight"})
    if (name.ends_with(end)) return true;
  return false;
}

}  // namespace

const char* storage_name(Storage storage) {
  switch (storage) {
    case Storage::f32: return "f32";
    case Storage::bf16: return "bf16";
    case Storage::fp8_block: return "fp8-block";
    case Storage::fp8_channel: return "fp8-channel";
    case Storage::fp8_tensor: return "fp8-tensor";
    case Storage::int4_group: return "int4-group";
    case Storage::int8_channel: return "int8-channel";
  }
  return "?";
}

json tiny_config(const json& changes) {
  json config = {{"architectures", {"BailingMoeV2ForCausalLM"}},
                 {"model_type", "bailing_moe"},
                 {"num_hidden_layers", 2},
                 {"hidden_size", 48},
                 {"intermediate_size", 80},
                 {"moe_intermediate_size", 40},
                 {"num_attention_heads", 8},
                 {"num_key_value_heads", 2},
                 {"head_dim", 8},
                 {"num_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"num_shared_experts", 1},
                 {"first_k_dense_replace", 1},
                 {"num_nextn_predict_layers", 1},
                 {"n_group", 2},
                 {"topk_group", 1},
                 {"routed_scaling_factor", 2.5},
                 {"partial_rotary_factor", 0.5},
                 {"rope_theta", 600000.0},
                 {"max_position_embeddings", 256},
                 {"rms_norm_eps", 1e-6},
                 {"vocab_size", 130},
                 {"eos_token_id", 1}};
  config.update(changes);
  return config;
}

FloatTensors random_tensors(const json& config, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  FloatTensors out;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    int64_t size = 1;
    for (const int64_t dim : shape) size *= dim;
    FloatTensor& tensor = out[name];
    tensor.shape = std::move(shape);
    for (int64_t i = 0; i < size; ++i) tensor.values.push_back(normal(random));
  };
  const auto number = [&](const char* name, int64_t fallback) { return config.value(name, fallback); };
  const int64_t D = number("hidden_size", 0), V = number("vocab_size", 0), H = number("num_attention_heads", 0),
                G = number("num_key_value_heads", 0), Dh = number("head_dim", 0), E = number("num_experts", 0),
                F = number("moe_intermediate_size", 0), L = number("num_hidden_layers", 0);
  const auto mlp = [&](const std::string& at, int64_t width) {
    add(at + "gate_proj.weight", {width, D});
    add(at + "up_proj.weight", {width, D});
    add(at + "down_proj.weight", {D, width});
  };
  add("model.word_embeddings.weight", {V, D});
  add("model.norm.weight", {D});
  if (!config.value("tie_word_embeddings", false)) add("lm_head.weight", {V, D});
  for (int64_t layer = 0; layer < L + number("num_nextn_predict_layers", 0); ++layer) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    for (const char* name : {"input_layernorm.weight", "post_attention_layernorm.weight"}) add(at + name, {D});
    add(at + "attention.query_key_value.weight", {(H + 2 * G) * Dh, D});
    add(at + "attention.dense.weight", {D, H * Dh});
    if (config.value("use_qk_norm", true))
      for (const char* name : {"attention.query_layernorm.weight", "attention.key_layernorm.weight"}) add(at + name, {Dh});
    if (layer >= L) {
      for (const char* name : {"enorm.weight", "hnorm.weight", "final_layernorm.weight"}) add(at + name, {D});
      add(at + "eh_proj.weight", {D, 2 * D});
    }
    if (layer < number("first_k_dense_replace", 0)) {
      mlp(at + "mlp.", number("intermediate_size", 0));
      continue;
    }
    add(at + "mlp.gate.weight", {E, D});
    if (config.value("moe_router_enable_expert_bias", true)) add(at + "mlp.gate.expert_bias", {E});
    for (int64_t e = 0; e < E; ++e) mlp(at + "mlp.experts." + std::to_string(e) + ".", F);
    if (const int64_t shared = number("num_shared_experts", 0)) mlp(at + "mlp.shared_experts.", shared * F);
  }
  return out;
}

FloatTensors read_tensors(const Checkpoint& checkpoint) {
  FloatTensors out;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    if (entry.dtype != DType::f32 && entry.dtype != DType::bf16) continue;
    FloatTensor& tensor = out[name];
    tensor.shape = entry.shape;
    tensor.values.resize(entry.bytes / dtype_bytes(entry.dtype));
    if (entry.dtype == DType::f32) {
      entry.file->read(entry.offset, tensor.values.data(), entry.bytes);
      continue;
    }
    std::vector<uint16_t> bits(tensor.values.size());
    entry.file->read(entry.offset, bits.data(), entry.bytes);
    std::transform(bits.begin(), bits.end(), tensor.values.begin(), bf16_to_f32);
  }
  return out;
}

StoredModel store_model(json config, const FloatTensors& tensors, Storage storage) {
  StoredModel out;
  const json quantisation = quantization_config(storage);
  if (!quantisation.is_null()) config["quantization_config"] = quantisation;
  out.config = std::move(config);
  Writer writer(out, storage);
  const bool quantise = storage != Storage::f32 && storage != Storage::bf16;
  for (const auto& [name, tensor] : tensors) {
    if (quantise && is_body_linear(name))
      writer.quantised(name.substr(0, name.size() - std::strlen(".weight")), tensor);
    else
      writer.plain(name, tensor, storage == Storage::f32 || name.ends_with("expert_bias"));
  }
  return out;
}

std::string safetensors_header(const std::vector<StoredTensor>& tensors) {
  json header = {{"__metadata__", {{"format", "pt"}}}};
  size_t offset = 0;
  for (const StoredTensor& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

std::vector<std::byte> safetensors_bytes(const std::string& header, const std::vector<StoredTensor>& tensors) {
  size_t total = 8 + header.size();
  for (const StoredTensor& tensor : tensors) total += tensor.bytes.size();
  std::vector<std::byte> out(total);
  const uint64_t length = header.size();
  std::memcpy(out.data(), &length, 8);
  std::memcpy(out.data() + 8, header.data(), header.size());
  size_t at = 8 + header.size();
  for (const StoredTensor& tensor : tensors) {
    std::copy(tensor.bytes.begin(), tensor.bytes.end(), out.begin() + static_cast<std::ptrdiff_t>(at));
    at += tensor.bytes.size();
  }
  return out;
}

std::vector<std::byte> safetensors_bytes(const std::vector<StoredTensor>& tensors) {
  return safetensors_bytes(safetensors_header(tensors), tensors);
}

Shards shard_model(const std::vector<StoredTensor>& tensors, int n_files) {
  std::vector<std::vector<StoredTensor>> dealt(n_files);
  Shards out;
  for (int i = 0; i < n_files; ++i)
    out.names.push_back("model-" + std::to_string(i + 1) + "-of-" + std::to_string(n_files) + ".safetensors");
  json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", json::object()}};
  for (size_t i = 0; i < tensors.size(); ++i) {
    dealt[i % n_files].push_back(tensors[i]);
    index["weight_map"][tensors[i].name] = out.names[i % n_files];
  }
  for (const auto& file : dealt) out.files.push_back(safetensors_bytes(file));
  out.index = index.dump();
  return out;
}

Checkpoint memory_checkpoint(const StoredModel& model, int n_files) {
  const Shards shards = shard_model(model.tensors, n_files);
  std::vector<std::unique_ptr<FileReader>> files;
  for (int i = 0; i < n_files; ++i) files.push_back(memory_file(shards.names[i], shards.files[i]));
  const ShardIndex index = parse_shard_index(shards.index);
  return Checkpoint::from_files(std::move(files), &index);
}

}  // namespace sigmoe::testing
