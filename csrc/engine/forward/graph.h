// The forward pass of BailingMoeV2 on one rank: reference/model.md section 2, op by op.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "backend/decode_layer.h"
#include "engine/checkpoint/config.h"
#include "engine/forward/kv_cache.h"
#include "engine/weights/weights.h"

namespace sigmoe {

// Device memory for activations of at most max_tokens per step, allocated once. Shapes with this rank's H, G.
struct Workspace {
  Workspace(const ModelConfig& config, const HeadShard& heads, Backend& backend, int64_t max_tokens, int64_t n_positions,
            bool mtp);
  // What each of max_tokens takes.
  static uint64_t bytes_per_token(const ModelConfig& config, const HeadShard& heads, bool mtp);

  int64_t max_tokens;
  DeviceBuffer residual;       // (T, D)
  DeviceBuffer normed;         // (T, D); after forward(): the final norm's output
  DeviceBuffer qkv;            // (T, (H + 2G) * Dh)
  DeviceBuffer query;          // (T, H, Dh)
  DeviceBuffer attended;       // (T, H * Dh)
  DeviceBuffer partial;        // (T, A + 1, D): what the last block wants added to the residual, by slot
  DeviceBuffer router_logits;  // (T, E)
  DeviceBuffer expert_ids, expert_weights, expert_offsets, slot_order;
  DeviceBuffer mtp_joined;          // (T, 2D), empty without MTP
  DeviceBuffer mtp_hidden;          // (T, D), likewise
  DeviceBuffer rope_cos, rope_sin;  // (positions, rotary_dim / 2)
  uint64_t bytes() const;
};

// What tests look at and change inside a forward pass. MoE layers count from 0, MTP layers last.
struct Trace {
  std::vector<std::vector<float>> hidden;         // input of layer i (T, D); last: after the final norm
  std::vector<std::vector<float>> router_logits;  // (T, E) per MoE layer
  std::vector<std::vector<int32_t>> router_ids;   // (T, A) per MoE layer
  std::vector<std::vector<int32_t>> forced_ids;   // when not empty: the choice of each MoE layer
};

// What a draft model reads of its target, a row per token: the residual stream as it enters some layers (n_layers: as it leaves
// the last), side by side; or, without layers, the final norm's output.
struct FeatureTap {
  std::vector<int64_t> layers;
  int64_t n_rows = 0;  // of the buffer they are kept in; 0: nothing is kept
  int64_t width(int64_t hidden_size) const { return hidden_size * std::max<int64_t>(1, static_cast<int64_t>(layers.size())); }
};

// Where the features of one step's rows go.
struct FeatureSink {
  const FeatureTap& tap;
  float* rows;             // (tap.n_rows, width)
  const int32_t* row_ids;  // (T) on the device
};

class Graph {
 public:
  Graph(const ModelConfig& config, const ModelWeights& weights, const HeadShard& heads, Backend& backend, Comm* comm,
        KvCache& kv, Workspace& workspace);

  // Runs the main layers over the batch; workspace.normed holds the final hidden states (T, D).
  void forward(const BatchView& batch, Trace* trace = nullptr, const FeatureSink* features = nullptr);

  // The first MTP layer over a batch: workspace.normed holds the rows' hidden states, as forward() left them or those of this
  // layer one position before, next_ids (T) on the device is each row's next token. workspace.normed then holds the MTP hidden
  // states. reference/model.md 3.3.
  void forward_mtp(const BatchView& batch, const int32_t* next_ids, Trace* trace = nullptr);

 private:
  void decoder_layer(const LayerWeights& layer, const KvView& kv, const BatchView& batch, Trace* trace,
                     const std::function<void()>& on_entry);
  bool decoder_layer_at_once(int64_t index, const BatchView& batch);
  void keep_features(const FeatureSink* sink, int64_t layer, int n_tokens);
  void add_pending_and_norm(const DeviceBuffer& weight, int n_tokens);
  void record_hidden(Trace* trace, const DeviceBuffer& hidden, int n_tokens);

  const ModelConfig& config_;
  const ModelWeights& weights_;
  Backend& backend_;
  DecodeLayers* at_once_;  // null: the backend has ops alone
  Comm* comm_;
  KvCache& kv_;
  Workspace& ws_;
  AttentionShape attention_shape_;
  RouterShape router_shape_;
  int pending_slots_ = 0;  // slots in ws_.partial not yet added to the residual
  size_t moe_index_ = 0;   // of the next MoE layer, for the trace
};

}  // namespace sigmoe
