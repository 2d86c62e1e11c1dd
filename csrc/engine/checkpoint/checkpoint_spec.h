// What a BailingMoeV2 checkpoint holds: the names, shapes and storage formats of its tensors. reference/model.md 3.2, 4.
#pragma once

#include <string>
#include <vector>

#include "engine/checkpoint/config.h"
#include "engine/checkpoint/safetensors.h"

namespace sigmoe {

// Who decides how a linear layer is stored.
enum class LinearRole {
  body,    // attention, MLPs, experts: the config
  edge,    // lm_head, eh_proj: exporters leave them plain whatever the config says, so the checkpoint decides
  router,  // always plain
};

// One linear layer as it lies in the checkpoint: W (n, k).
struct StoredLinear {
  std::string module;  // "model.layers.3.attention.dense"
  int64_t n = 0, k = 0;
  QuantMethod method = QuantMethod::none;
  const TensorEntry* weight = nullptr;  // null when absent
  const TensorEntry* scale = nullptr;   // null when absent or plain
  const TensorEntry* shape = nullptr;   // int4_group: the stored (n, k), optional

  WeightFormat format() const;  // of a checked one
};

StoredLinear stored_linear(const ModelConfig& config, const Checkpoint& checkpoint, const std::string& module, int64_t n,
                           int64_t k, LinearRole role);

// Walks the tensors that a config implies. Derived classes say how linear layers are stored and what to do with each name.
class TensorWalk {
 public:
  using Shape = std::vector<int64_t>;
  explicit TensorWalk(const ModelConfig& config) : config_(config) {}
  virtual ~TensorWalk() = default;

 protected:
  void walk();
  virtual QuantMethod method_of(const std::string& module, int64_t n, int64_t k, LinearRole role) = 0;
  // Accepted shapes and dtypes, the usual one first.
  virtual void tensor(const std::string& name, const std::vector<Shape>& shapes, const std::vector<DType>& dtypes) = 0;
  virtual void optional_tensor(const std::string& name, const std::vector<Shape>& shapes, const std::vector<DType>& dtypes) = 0;
  // False skips all tensors that begin with `prefix`: one layer or one expert.
  virtual bool enter(const std::string& prefix, bool is_mtp_layer) = 0;

  const ModelConfig& config_;

 private:
  void decoder_layer(const std::string& at, bool dense);
  void mtp_layer(const std::string& at);
  void mlp(const std::string& at, int64_t width);
  void norm(const std::string& name, int64_t size);
  void linear(const std::string& module, int64_t n, int64_t k, LinearRole role);
};

std::string layer_prefix(int64_t layer);  // "model.layers.3."

// True when the checkpoint has any tensor of this layer. The MTP layers of a config may be left out of its checkpoint.
bool layer_is_stored(const Checkpoint& checkpoint, int64_t layer);

}  // namespace sigmoe
