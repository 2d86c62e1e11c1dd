// The device memory of one step to measure: sequences whose caches hold noise up to the step's rows, activations, a graph over
// them, and what the head and the sampler take.
#pragma once

#include <memory>
#include <vector>

#include "engine/bench/bench_model.h"
#include "engine/forward/graph.h"
#include "engine/forward/kv_cache.h"

namespace sigmoe::bench {

class Step {
 public:
  // `n_seqs` sequences, each with `context` tokens in the cache of which the step's are the last `n_tokens`, run `chunk` of
  // them at once (one sequence only). A decode step has n_tokens 1.
  Step(BenchModel& model, int n_seqs, int n_tokens, int64_t context, int chunk);
  Step(const Step&) = delete;

  int n_chunks() const { return static_cast<int>(views_.size()); }
  const BatchView& view(int chunk) const { return views_[chunk]; }
  const BatchView& last() const { return views_.back(); }
  int64_t context_after(int chunk) const { return contexts_[chunk]; }
  int rows() const { return views_[0].n_tokens; }  // of the largest chunk
  int n_seqs() const { return n_seqs_; }
  int64_t context() const { return context_; }

  Graph& graph() { return graph_; }
  Workspace& workspace() { return workspace_; }
  const KvView& kv(size_t layer) const { return kv_.layer(static_cast<int64_t>(layer)); }
  Routing routing() const;

  // Puts random hidden states where the ops of a layer find theirs: the residual, and its norm.
  void use_noise();

  // Final hidden states to tokens: one row per sequence.
  void head();
  void sample();
  void sample_with(float temperature, float top_p, int top_k);  // from the next sample() on

  // Distinct experts of each MoE layer in forward(), counted.
  std::vector<double> touched_by_forward();

  // Keys and values of all layers: noise through the backend's own kernels, so that their layout is the backend's.
  void fill_cache();

 private:
  const int32_t* put(const std::vector<int32_t>& values);
  void make_views(int n_tokens, int chunk);
  void make_sampler();

  BenchModel& model_;
  const ModelConfig& config_;
  int n_seqs_;
  int64_t context_, n_pages_each_;
  HeadShard heads_;
  KvCache kv_;
  Workspace workspace_;
  Graph graph_;
  std::vector<DeviceBuffer> held_;
  std::vector<BatchView> views_;
  std::vector<int64_t> contexts_;
  std::vector<int32_t> pages_;
  const int32_t* page_tables_ = nullptr;
  const int32_t* head_rows_ = nullptr;
  DeviceBuffer logits_, counts_, outputs_, sample_rows_;
  SampleArgs sample_;
};

}  // namespace sigmoe::bench
