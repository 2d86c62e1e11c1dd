// Makes checkpoints for tests: float32 tensors, random or read from a golden one, written in any storage format the
// loader knows, with the dequantised truth beside them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "nlohmann/json.hpp"

namespace sigmoe::testing {

struct FloatTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using FloatTensors = std::map<std::string, FloatTensor>;

struct StoredTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

enum class Storage { f32, bf16, fp8_block, fp8_channel, fp8_tensor, int4_group, int8_channel };
constexpr Storage kStorages[] = {Storage::f32,        Storage::bf16,       Storage::fp8_block,   Storage::fp8_channel,
                                 Storage::fp8_tensor, Storage::int4_group, Storage::int8_channel};
const char* storage_name(Storage storage);

struct StoredModel {
  nlohmann::json config;  // with its quantization_config
  std::vector<StoredTensor> tensors;
  FloatTensors truth;  // what the stored tensors mean
};

// A config of a few thousand parameters with every kind of layer; `changes` is merged over it.
nlohmann::json tiny_config(const nlohmann::json& changes = nlohmann::json::object());

// Gaussian tensors for every name a config of this shape needs.
FloatTensors random_tensors(const nlohmann::json& config, uint64_t seed);
FloatTensors read_tensors(const Checkpoint& checkpoint);  // of F32 and BF16 tensors

// `config` without quantization_config. Linear layers of the body are quantised, everything else is BF16 (F32 for f32).
StoredModel store_model(nlohmann::json config, const FloatTensors& tensors, Storage storage);

// The bytes of one safetensors file.
std::vector<std::byte> safetensors_bytes(const std::vector<StoredTensor>& tensors);
std::vector<std::byte> safetensors_bytes(const std::string& header, const std::vector<StoredTensor>& tensors);
std::string safetensors_header(const std::vector<StoredTensor>& tensors);

// Tensors dealt over n files in turn, and the index text that says so.
struct Shards {
  std::vector<std::string> names;
  std::vector<std::vector<std::byte>> files;
  std::string index;
};
Shards shard_model(const std::vector<StoredTensor>& tensors, int n_files);

Checkpoint memory_checkpoint(const StoredModel& model, int n_files = 1);

}  // namespace sigmoe::testing
