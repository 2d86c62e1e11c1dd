// Checkpoint tensors to device weights: names, shapes, dtypes, shards, formats. Reference: model.md section 4.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "engine/checkpoint/config.h"
#include "engine/checkpoint/safetensors.h"

namespace sigmoe {

// This rank's part of a dimension, half-open. Parts are multiples of `unit` (the last may be ragged) and may be empty.
struct Shard {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
Shard shard_range(int64_t size, int64_t unit, int rank, int world);
constexpr int64_t kVocabUnit = 16;  // of the head's rows

struct StoredLinear;
// Of the inner width of an MLP, whose down projection this is: whole scale blocks where there are enough, else as fine as gives
// every rank a share.
Shard shard_width(const QuantConfig& quant, const StoredLinear& down, int rank, int world);

// This rank's heads. KV heads are replicated when there are fewer of them than ranks; of more ranks than query heads some have
// none.
struct HeadShard {
  Shard q;   // query heads
  Shard kv;  // KV heads they read
};
HeadShard shard_heads(const ModelConfig& config, int rank, int world);  // throws unsupported when heads do not divide

struct LayerWeights {
  std::unique_ptr<LinearWeight> qkv;             // ((Hr + 2 Gr) * Dh, D); null on a rank without heads
  std::unique_ptr<LinearWeight> attn_out;        // (D, Hr * Dh); likewise
  DeviceBuffer input_norm, post_attention_norm;  // (D) f32
  DeviceBuffer q_norm, k_norm;                   // (Dh) f32; empty without QK-Norm
  // MoE layers only:
  std::unique_ptr<LinearWeight> router;                      // (E, D), used in float32
  DeviceBuffer router_bias;                                  // (E) f32, zeros when the checkpoint has none
  std::vector<std::unique_ptr<LinearWeight>> gate_up, down;  // E each; null where this rank's share is empty
  // Shared expert, or the MLP of a dense layer; null where this rank's share is empty:
  std::unique_ptr<LinearWeight> shared_gate_up, shared_down;
  ExpertWeights experts;  // views of the above
  bool dense = false;
};

struct MtpWeights {
  DeviceBuffer embedding_norm, hidden_norm, final_norm;  // (D) f32: enorm, hnorm, final_layernorm
  std::unique_ptr<LinearWeight> join;                    // eh_proj (D, 2D)
  LayerWeights layer;
};

struct ModelWeights {
  DeviceBuffer embedding;  // (V, D), whole on every rank
  DType embedding_dtype = DType::bf16;
  std::vector<LayerWeights> layers;
  std::vector<MtpWeights> mtp;            // empty unless asked for
  DeviceBuffer final_norm;                // (D) f32
  std::unique_ptr<LinearWeight> lm_head;  // (Vr, D)
  std::vector<int64_t> vocab_widths;      // of every rank
  size_t bytes = 0;                       // device memory held
};

struct LoadProgress {
  uint64_t bytes_done = 0, bytes_total = 0;
};

struct LoadOptions {
  int rank = 0, world = 1;
  bool expert_parallel = false;  // routed experts are whole, each on one rank; else every rank has a part of each
  bool with_mtp = false;
  int n_threads = 0;                                     // readers; 0 = as many as cores
  std::function<void(const LoadProgress&)> on_progress;  // from a loader thread, at most about 20 times a second
  const std::atomic<bool>* cancelled = nullptr;          // checked between reads: ErrorCode::aborted
};

// What the checkpoint must hold, compared with what it holds; throws one bad_checkpoint error that lists every tensor
// absent, unexpected, or of wrong shape or dtype (the first 20 of each, then a count).
void check_tensors(const ModelConfig& config, const Checkpoint& checkpoint);

ModelWeights load_weights(const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend,
                          const LoadOptions& options);

// The same for several ranks of one process, each {rank, its backend}: what more than one of them wants is read once.
// options.rank is not looked at.
std::vector<ModelWeights> load_ranks(const ModelConfig& config, const Checkpoint& checkpoint,
                                     const std::vector<std::pair<int, Backend*>>& ranks, const LoadOptions& options);

// Bytes of the checkpoint that a rank keeps, MTP layers included.
uint64_t rank_bytes(const ModelConfig& config, const Checkpoint& checkpoint, int rank, int world, bool expert_parallel);

// Random weights of a shape, made on the host in the given format, for benchmarks: Gaussian, std 0.02.
ModelWeights synthetic_weights(const ModelConfig& config, WeightFormat format, Backend& backend, uint64_t seed, int n_threads);

// Parameter counts by part, from the config alone.
struct ParameterCount {
  int64_t embedding = 0, head = 0, attention = 0, dense_mlp = 0, routed_experts = 0, shared_experts = 0, router = 0, norms = 0,
          mtp = 0;
  int64_t routed_active = 0;  // of routed_experts, those that one token uses
  int64_t total() const;      // without MTP
  int64_t active() const;     // per token; embedding table, head and norms excluded
};
ParameterCount count_parameters(const ModelConfig& config);

}  // namespace sigmoe
