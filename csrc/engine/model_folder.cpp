#include "engine/model_folder.h"

#include <algorithm>
#include <filesystem>

namespace sigmoe {

std::string weight_format_text(const ModelConfig& config, const Checkpoint& checkpoint) {
  if (config.quant.method != QuantMethod::none) return quant_method_name(config.quant.method);
  const TensorEntry* head = checkpoint.find("model.norm.weight");
  return head ? dtype_name(head->dtype) : "BF16";
}

std::string read_small_file(const std::filesystem::path& path) {
  constexpr uint64_t kMaxConfigBytes = 4u << 20;
  const auto file = open_file(path.string());
  if (file->size() > kMaxConfigBytes)
    throw EngineError(ErrorCode::bad_checkpoint,
                      path.string() + " has " + std::to_string(file->size()) + " bytes; a config has a few thousand",
                      "pass a folder that holds a Hugging Face model");
  std::string text(file->size(), '\0');
  file->read(0, text.data(), text.size());
  return text;
}

ModelFolder open_model_folder(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    throw EngineError(ErrorCode::not_found, "model '" + folder + "': no such folder",
                      "pass the path of a folder with config.json and model.safetensors");
  const fs::path config_path = fs::path(folder) / "config.json";
  if (!fs::exists(config_path, ignored))
    throw EngineError(ErrorCode::not_found, "model '" + folder + "': the folder has no config.json",
                      "pass the path of a folder with config.json and model.safetensors");
  const fs::path quant_path = fs::path(folder) / "hf_quant_config.json";
  const std::string quant_text = fs::exists(quant_path, ignored) ? read_small_file(quant_path) : std::string();
  ModelFolder model{parse_model_config(read_small_file(config_path), quant_text), Checkpoint::open(folder)};
  check_tensors(model.config, model.checkpoint);
  return model;
}

EngineInfo describe_model(const ModelConfig& config) {
  EngineInfo info;
  info.architecture = config.architecture;
  info.context = config.context;
  info.vocab_size = config.vocab_size;
  info.hidden_size = config.hidden_size;
  info.n_layers = config.n_layers;
  info.n_dense_layers = std::min(config.n_dense_layers, config.n_layers);
  info.n_mtp_layers = config.n_mtp_layers;
  info.n_heads = config.n_heads;
  info.n_kv_heads = config.n_kv_heads;
  info.head_dim = config.head_dim;
  info.n_experts = config.n_experts;
  info.n_active = config.n_active;
  info.n_shared = config.expert_width > 0 ? config.shared_width / config.expert_width : 0;
  info.eos_ids = config.eos_ids;
  const ParameterCount count = count_parameters(config);
  info.parameters = count.total();
  info.active_parameters = count.active();
  info.parts = {{"embedding", count.embedding},
                {"head", count.head},
                {"attention", count.attention},
                {"dense MLP", count.dense_mlp},
                {"routed experts", count.routed_experts},
                {"shared experts", count.shared_experts},
                {"router", count.router},
                {"norms", count.norms},
                {"MTP", count.mtp}};
  info.kv_bytes_per_token = kv_bytes_per_token(config, config.n_kv_heads, DType::bf16, config.n_layers);
  return info;
}

EngineInfo inspect_model(const std::string& folder, int tensor_parallel, bool expert_parallel) {
  const ModelFolder model = open_model_folder(folder);
  EngineInfo info = describe_model(model.config);
  info.weight_format = weight_format_text(model.config, model.checkpoint);
  info.checkpoint_bytes = model.checkpoint.total_bytes();
  info.weight_bytes = info.checkpoint_bytes;
  info.tensor_parallel = tensor_parallel;
  for (int rank = 0; rank < tensor_parallel; ++rank) {
    const int64_t kv_heads = shard_heads(model.config, rank, tensor_parallel).kv.size();
    info.ranks.push_back({rank_bytes(model.config, model.checkpoint, rank, tensor_parallel, expert_parallel),
                          kv_bytes_per_token(model.config, kv_heads, DType::bf16, model.config.n_layers)});
  }
  return info;
}

}  // namespace sigmoe
