// A Hugging Face folder, what it says of its model (model_folder.cpp), and the way from it to a running World: device and ranks
// (load_model.cpp), what they have room for (memory_plan.cpp).
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "engine/checkpoint/config.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/engine.h"
#include "engine/forward/world.h"
#include "engine/schedule/step_builder.h"
#include "engine/speculation/drafter.h"

namespace sigmoe {

struct ModelFolder {
  ModelConfig config;
  Checkpoint checkpoint;
};

// Reads config.json (and hf_quant_config.json) and all tensor headers, and checks them against each other.
ModelFolder open_model_folder(const std::string& folder);

// The text of a config: bad_checkpoint when it is far too large to be one.
std::string read_small_file(const std::filesystem::path& path);

// Sizes that follow from a config and options, before any memory is taken.
struct MemoryPlan {
  int64_t context = 0;          // tokens a sequence may hold
  int64_t kv_cache_tokens = 0;  // a multiple of kPageTokens
};
// kv_bytes is what the KV cache may take when the options do not say, bytes_per_token what a token takes of it.
MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, uint64_t bytes_per_token, uint64_t kv_bytes);
// The token budget of a step: what the options say, or where they leave it open what suits the device. There, on CUDA, it is
// halved until the step fits: bytes_per_token is what a token of it takes of a rank's workspace, spare_bytes what weights and
// KV cache leave of the device's memory. It is never more than max_num_seqs sequences of `context` tokens can fill.
int step_tokens(const EngineOptions& options, const std::string& device, int64_t context, uint64_t bytes_per_token,
                uint64_t spare_bytes);

struct LoadedModel {
  EngineInfo info;
  std::unique_ptr<World> world;
  bool has_mtp = false;
  int max_waiting = 0;
  bool prefix_cache = true;
  std::unique_ptr<Drafter> drafter;  // null: no speculation
  bool adaptive_depth = true;
  std::optional<Replay> replay;  // benchmarks alone
  bool run_ahead = true;
  std::shared_ptr<Node> node;  // null: one process
};

std::unique_ptr<Engine> start_engine(LoadedModel model);

LoadedModel load_model(const std::string& folder, const EngineOptions& options, const Engine::ProgressFn& on_progress,
                       const std::atomic<bool>* cancelled);

// What config and headers alone say; device fields are empty.
EngineInfo describe_model(const ModelConfig& config);
std::string weight_format_text(const ModelConfig& config, const Checkpoint& checkpoint);

// Joins the other processes of options.node, which must have the same model and options; null where there is one alone.
std::shared_ptr<Node> join_nodes(const ModelFolder& model, const EngineOptions& options, const std::atomic<bool>* cancelled);
// The smallest of the capacities that the nodes have found room for.
int64_t agree_on_capacity(Node& node, int64_t kv_cache_tokens);

// Picks the device for "auto" and says why; returns the name unchanged otherwise.
std::string resolve_device(const std::string& asked, std::string& reason);
BackendOptions backend_options(const EngineOptions& options);

}  // namespace sigmoe
