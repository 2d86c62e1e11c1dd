// The ops of a decoder layer, one by one, as Graph calls them, over the memory of a Step.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/bench/meter.h"
#include "engine/bench/step.h"

namespace sigmoe::bench {

enum class Layers : uint8_t { all, moe, dense };

struct LayerOp {
  std::string name;
  Layers layers = Layers::all;  // those that have it
  Cost cost;                    // of one layer
  std::function<void(size_t layer)> run;
};

class LayerOps {
 public:
  // Over the step's chunk number `chunk`. Routes once per layer, to count what its experts cost.
  LayerOps(BenchModel& model, Step& step, const Costs& costs, int chunk);

  const std::vector<LayerOp>& all() const { return ops_; }
  const LayerOp& op(const std::string& name) const;
  double touched() const { return touched_; }  // experts of all MoE layers together, of the routed noise

  // Runs `op` in every layer that has it; every layer has weights of its own, far more than a cache holds.
  void run(const LayerOp& op) const;
  int count(const LayerOp& op) const;

  // As the engine goes through them, without norms: attention of all layers, experts of all layers, products alone.
  void attention_blocks() const;
  void expert_blocks() const;
  void linear_layers() const;  // products, routing and what they need, all layers, without attention and norms

 private:
  void count_touched(int n_tokens);
  bool has(const LayerOp& op, size_t layer) const;

  BenchModel& model_;
  Step& step_;
  std::vector<LayerOp> ops_;
  RouterShape router_;
  double touched_ = 0, touched_last_ = 0;
};

AttentionShape attention_shape(const ModelConfig& config);
RouterShape router_shape(const ModelConfig& config);

}  // namespace sigmoe::bench
