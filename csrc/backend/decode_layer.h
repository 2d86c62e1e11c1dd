// A decoder layer of a few rows as one call: what a backend may offer beside the ops, where kernels that do several ops at once
// are sooner. The graph asks for it with a dynamic_cast and takes the ops wherever the answer is no.
#pragma once

#include "backend/backend.h"

namespace sigmoe {

// Everything a MoE layer reads and writes on one rank without a Comm. Sizes as in the ops of backend.h.
struct DecodeLayer {
  const BatchView& batch;
  const AttentionShape& attention;
  const RouterShape& router;
  int width = 0;  // D
  float eps = 0.0f;
  const float *input_norm = nullptr, *post_attention_norm = nullptr;  // (D)
  const float *q_norm = nullptr, *k_norm = nullptr;                   // (Dh)
  const float *rope_cos = nullptr, *rope_sin = nullptr;
  const LinearWeight *qkv = nullptr, *attn_out = nullptr, *gate = nullptr;
  const float* gate_bias = nullptr;
  const ExpertWeights& experts;
  KvView kv;
  // Activations, each as large as the op that writes it wants.
  float *residual = nullptr, *normed = nullptr, *qkv_out = nullptr, *query = nullptr, *attended = nullptr, *partial = nullptr,
        *router_logits = nullptr;
  Routing routing;
};

class DecodeLayers {
 public:
  virtual ~DecodeLayers() = default;

  // Computes the layer: residual (T, D), with the n_pending slots of `partial` that the layer before left, becomes this layer's
  // output but for the slots of `partial` that n_pending then counts. The bits are those of the ops. False, and nothing done,
  // when the ops are to be called. Never for the first layer of a step: parts of a layer read what a step brings (positions,
  // page tables, keys of older tokens) while the kernels ahead still run.
  virtual bool decode_layer(const DecodeLayer& layer, int& n_pending) = 0;
};

}  // namespace sigmoe
