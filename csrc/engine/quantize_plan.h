// What quantising a checkpoint folder makes: for every shard a shard of the same name, with the linear layers of the body as
// codes and scales and everything else as it was.
#pragma once

#include <string>
#include <vector>

#include "engine/model_folder.h"
#include "engine/quantize_rule.h"

namespace sigmoe {

QuantTarget parse_quant_target(const std::string& name);  // "fp8" or "int8"; else invalid_argument

// One tensor of a shard to be written; offsets count from the beginning of the file.
struct ShardTensor {
  const TensorEntry* source = nullptr;
  uint64_t offset = 0;  // of its bytes, or of its codes
  // Quantised ones only:
  bool quantized = false;
  std::string kind;  // "mlp.experts.*.gate_proj"
  bool power_of_two = false;
  uint64_t scales_offset = 0;
};

struct ShardPlan {
  std::string file;  // plain name
  const FileReader* source = nullptr;
  bool unchanged = false;  // nothing in it is quantised: the file is copied whole
  std::string header;      // of safetensors, with its length before it
  std::vector<ShardTensor> tensors;
  uint64_t bytes = 0;
};

struct QuantizePlan {
  bool unchanged = false;  // the checkpoint has this format already
  std::vector<ShardPlan> shards;
  std::string config, index;  // texts of the files; index is empty for a single model.safetensors
};

// Pointers into `model`. Throws unsupported when the checkpoint is quantised in another format.
QuantizePlan plan_shards(const ModelFolder& model, const std::string& folder, QuantTarget target);

}  // namespace sigmoe
