// An EAGLE3 draft as it is published: what its config.json says, and its weights. reference/model.md 5.2 and 5.3.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/checkpoint/config.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/weights/weights.h"

namespace sigmoe {

struct DraftConfig {
  int64_t hidden_size = 0;  // D of the draft; the target's unless the draft brings its own embeddings
  int64_t mlp_width = 0;
  int64_t n_heads = 0, n_kv_heads = 0;
  int64_t vocab_size = 0;               // of the draft's head
  std::vector<int64_t> feature_layers;  // the target's residual stream entering these layers (n_layers: leaving the last)
  bool norm_before_residual = false;    // the layer's residual is the normed hidden state
  bool feature_norms = false;           // fc_norm: the features of each depth are RMS-normed by themselves before fc
  bool norm_output = false;             // what the next pass starts from is the output behind the final norm
  bool attention_bias = false;          // of the q, k, v and o projections
  float rms_eps = 1e-6f;
  ModelConfig rope;  // head_dim, rotary_dim, theta, YaRN and context only
};

uint64_t draft_kv_bytes_per_token(const DraftConfig& config, DType dtype);

struct DraftFolder {
  DraftConfig config;
  Checkpoint checkpoint;
  bool brings_head() const;  // or shares the target's
};

// Reads the config and all tensor headers, and checks them against each other and against the target. Throws not_found,
// bad_checkpoint or unsupported, naming everything that is wrong.
DraftFolder open_draft_folder(const std::string& folder, const ModelConfig& target);

struct DraftWeights {
  std::unique_ptr<LinearWeight> fuse;                              // fc (D, features)
  std::vector<DeviceBuffer> feature_norms;                         // (target D) f32 each, as many as depths, or none
  DeviceBuffer qkv_bias, attn_out_bias;                            // ((H + 2G) * Dh), (D) f32, or empty
  DeviceBuffer embedding_norm, hidden_norm, mlp_norm, final_norm;  // (D) f32
  std::unique_ptr<LinearWeight> qkv;                               // ((H + 2G) * Dh, 2D)
  std::unique_ptr<LinearWeight> attn_out;                          // (D, H * Dh)
  std::unique_ptr<LinearWeight> gate_up, down;                     // (2F, D), (D, F)
  std::unique_ptr<LinearWeight> lm_head;                           // (draft V, D); null: the target's
  DeviceBuffer embedding;                                          // (V, D); empty: the target's
  DType embedding_dtype = DType::bf16;
  std::vector<int32_t> target_ids;  // (draft V) the token of the target that a draft id means
  ExpertWeights mlp;                // views of gate_up and down
  size_t bytes = 0;                 // device memory held
};

DraftWeights load_draft_weights(const DraftFolder& draft, const ModelConfig& target, Backend& backend, int n_threads,
                                const std::atomic<bool>* cancelled);

}  // namespace sigmoe
