#include "engine/forward/graph.h"

#include <algorithm>

namespace sigmoe {

Workspace::Workspace(const ModelConfig& config, const HeadShard& heads, Backend& backend, int64_t max_tokens,
                     int64_t n_positions, bool mtp)
    : max_tokens(max_tokens) {
  const auto floats = [&](int64_t per_token, const char* what) {
    return backend.alloc(static_cast<size_t>(max_tokens * per_token) * sizeof(float), what);
  };
  const int64_t d = config.hidden_size, n_slots = max_tokens * config.n_active;
  residual = floats(d, "residual stream");
  normed = floats(d, "normed activations");
  qkv = floats((heads.q.size() + 2 * heads.kv.size()) * config.head_dim, "qkv activations");
  query = floats(heads.q.size() * config.head_dim, "query activations");
  attended = floats(heads.q.size() * config.head_dim, "attention output");
  partial = floats((config.n_active + 1) * d, "expert outputs");
  router_logits = floats(config.n_experts, "router logits");
  expert_ids = backend.alloc(n_slots * sizeof(int32_t), "expert choices");
  expert_weights = backend.alloc(n_slots * sizeof(float), "expert weights");
  expert_offsets = backend.alloc((config.n_experts + 1) * sizeof(int32_t), "expert lists");
  slot_order = backend.alloc(n_slots * sizeof(int32_t), "expert lists");
  if (mtp) {
    mtp_joined = floats(2 * d, "MTP input");
    mtp_hidden = floats(d, "MTP hidden states");
  }
  std::vector<float> cos, sin;
  rope_tables(config, n_positions, cos, sin);
  rope_cos = backend.alloc(cos.size() * sizeof(float), "RoPE tables");
  rope_sin = backend.alloc(sin.size() * sizeof(float), "RoPE tables");
  backend.upload(rope_cos.data(), cos.data(), cos.size() * sizeof(float));
  backend.upload(rope_sin.data(), sin.data(), sin.size() * sizeof(float));
}

uint64_t Workspace::bytes_per_token(const ModelConfig& config, const HeadShard& heads, bool mtp) {
  const int64_t n_rows = 2 + (config.n_active + 1) + (mtp ? 3 : 0);  // as wide as the residual stream
  const int64_t n_heads = 3 * heads.q.size() + 2 * heads.kv.size();
  const int64_t n_floats = n_rows * config.hidden_size + n_heads * config.head_dim + config.n_experts + config.n_active;
  return n_floats * sizeof(float) + 2 * config.n_active * sizeof(int32_t);
}

uint64_t Workspace::bytes() const {
  uint64_t total = 0;
  for (const DeviceBuffer* buffer :
       {&residual, &normed, &qkv, &query, &attended, &partial, &router_logits, &expert_ids, &expert_weights, &expert_offsets,
        &slot_order, &mtp_joined, &mtp_hidden, &rope_cos, &rope_sin})
    total += buffer->bytes();
  return total;
}

Graph::Graph(const ModelConfig& config, const ModelWeights& weights, const HeadShard& heads, Backend& backend, Comm* comm,
             KvCache& kv, Workspace& workspace)
    : config_(config),
      weights_(weights),
      backend_(backend),
      at_once_(dynamic_cast<DecodeLayers*>(&backend)),
      comm_(comm),
      kv_(kv),
      ws_(workspace) {
  attention_shape_.n_heads = static_cast<int>(heads.q.size());
  attention_shape_.n_kv_heads = static_cast<int>(heads.kv.size());
  attention_shape_.head_dim = static_cast<int>(config.head_dim);
  attention_shape_.rotary_dim = static_cast<int>(config.rotary_dim);
  router_shape_.n_experts = static_cast<int>(config.n_experts);
  router_shape_.n_active = static_cast<int>(config.n_active);
  router_shape_.n_groups = static_cast<int>(config.n_groups);
  router_shape_.n_groups_kept = static_cast<int>(config.n_groups_kept);
  router_shape_.normalise = config.normalise_topk;
  router_shape_.scaling = config.routed_scaling;
}

void Graph::forward(const BatchView& batch, Trace* trace, const FeatureSink* features) {
  const Tensor table(weights_.embedding.data(), weights_.embedding_dtype, {config_.vocab_size, config_.hidden_size});
  backend_.embed(table, batch.token_ids, batch.n_tokens, ws_.residual.as<float>());
  pending_slots_ = 0;
  moe_index_ = 0;
  const int64_t n_layers = static_cast<int64_t>(weights_.layers.size());
  const auto tapped = [&](int64_t i) {
    return features && std::ranges::find(features->tap.layers, i) != features->tap.layers.end();
  };
  for (int64_t i = 0; i < n_layers; ++i) {
    if (i > 0 && !trace && !tapped(i) && decoder_layer_at_once(i, batch)) continue;
    decoder_layer(weights_.layers[i], kv_.layer(i), batch, trace, [&] { keep_features(features, i, batch.n_tokens); });
  }
  add_pending_and_norm(weights_.final_norm, batch.n_tokens);
  record_hidden(trace, ws_.normed, batch.n_tokens);
  keep_features(features, n_layers, batch.n_tokens);
}

// The residual stream as it enters `layer`, if it is wanted.
void Graph::keep_features(const FeatureSink* sink, int64_t layer, int n_tokens) {
  if (!sink) return;
  const int64_t width = config_.hidden_size, stride = sink->tap.width(width);
  const auto keep = [&](const DeviceBuffer& from, int64_t column) {
    backend_.copy_rows(from.as<float>(), nullptr, width, sink->rows + column * width, sink->row_ids, stride, n_tokens,
                       static_cast<int>(width));
  };
  const std::vector<int64_t>& layers = sink->tap.layers;
  for (size_t column = 0; column < layers.size(); ++column)
    if (layers[column] == layer) keep(ws_.residual, static_cast<int64_t>(column));
  if (layers.empty() && layer == static_cast<int64_t>(weights_.layers.size())) keep(ws_.normed, 0);
}

void Graph::forward_mtp(const BatchView& batch, const int32_t* next_ids, Trace* trace) {
  const MtpWeights& mtp = weights_.mtp.front();
  const int n_tokens = batch.n_tokens;
  const int width = static_cast<int>(config_.hidden_size);
  const Tensor table(weights_.embedding.data(), weights_.embedding_dtype, {config_.vocab_size, config_.hidden_size});

  float* embedded = ws_.mtp_hidden.as<float>();
  backend_.embed(table, next_ids, n_tokens, embedded);
  backend_.join_norms(embedded, mtp.embedding_norm.as<float>(), ws_.normed.as<float>(), mtp.hidden_norm.as<float>(),
                      config_.rms_eps, n_tokens, width, ws_.mtp_joined.as<float>());
  backend_.linear(ws_.mtp_joined.as<float>(), *mtp.join, n_tokens, ws_.residual.as<float>());
  decoder_layer(mtp.layer, kv_.layer(static_cast<int64_t>(weights_.layers.size())), batch, trace, [] {});
  add_pending_and_norm(mtp.final_norm, n_tokens);
}

// x += attention(norm(x)); x += mlp(norm(x)). The second sum stays pending until the next norm, which does it in passing.
void Graph::decoder_layer(const LayerWeights& layer, const KvView& kv, const BatchView& batch, Trace* trace,
                          const std::function<void()>& on_entry) {
  const int n_tokens = batch.n_tokens;
  const int width = static_cast<int>(config_.hidden_size);
  float* normed = ws_.normed.as<float>();
  float* partial = ws_.partial.as<float>();

  add_pending_and_norm(layer.input_norm, n_tokens);
  record_hidden(trace, ws_.residual, n_tokens);
  on_entry();
  if (layer.qkv) {
    backend_.linear(normed, *layer.qkv, n_tokens, ws_.qkv.as<float>());
    backend_.qk_norm_rope_store(batch, attention_shape_, ws_.qkv.as<float>(), layer.q_norm.as<float>(),
                                layer.k_norm.as<float>(), config_.rms_eps, ws_.rope_cos.as<float>(), ws_.rope_sin.as<float>(),
                                kv, ws_.query.as<float>());
    backend_.attention(batch, attention_shape_, ws_.query.as<float>(), kv, ws_.attended.as<float>());
    backend_.linear(ws_.attended.as<float>(), *layer.attn_out, n_tokens, partial);
  } else {  // more ranks than heads, and this one has none
    backend_.zero(partial, static_cast<size_t>(n_tokens) * width * sizeof(float));
  }
  pending_slots_ = 1;

  add_pending_and_norm(layer.post_attention_norm, n_tokens);
  Routing routing;
  int n_active = 0;
  if (!layer.dense) {
    n_active = router_shape_.n_active;
    routing = {ws_.expert_ids.as<int32_t>(), ws_.expert_weights.as<float>(), ws_.expert_offsets.as<int32_t>(),
               ws_.slot_order.as<int32_t>()};
    const bool forced = trace && !trace->forced_ids.empty();
    backend_.route(normed, *layer.router, layer.router_bias.as<float>(), router_shape_, n_tokens,
                   forced ? trace->forced_ids[moe_index_].data() : nullptr, ws_.router_logits.as<float>(), routing);
    if (trace) {
      const size_t n_logits = static_cast<size_t>(n_tokens) * config_.n_experts,
                   n_ids = static_cast<size_t>(n_tokens) * n_active;
      backend_.download(trace->router_logits.emplace_back(n_logits).data(), ws_.router_logits.data(), n_logits * sizeof(float));
      backend_.download(trace->router_ids.emplace_back(n_ids).data(), ws_.expert_ids.data(), n_ids * sizeof(int32_t));
    }
    ++moe_index_;
  }
  backend_.experts(normed, layer.experts, routing, n_active, n_tokens, width, partial);
  pending_slots_ = n_active + (layer.dense || layer.experts.shared_gate_up ? 1 : 0);
}

// The same by a backend that has kernels for a few rows of a whole layer; false when it has none for these.
bool Graph::decoder_layer_at_once(int64_t index, const BatchView& batch) {
  const LayerWeights& layer = weights_.layers[index];
  if (!at_once_ || layer.dense) return false;
  return at_once_->decode_layer({.comm = comm_,
                                 .batch = batch,
                                 .attention = attention_shape_,
                                 .router = router_shape_,
                                 .width = static_cast<int>(config_.hidden_size),
                                 .eps = config_.rms_eps,
                                 .input_norm = layer.input_norm.as<float>(),
                                 .post_attention_norm = layer.post_attention_norm.as<float>(),
                                 .q_norm = layer.q_norm.as<float>(),
                                 .k_norm = layer.k_norm.as<float>(),
                                 .rope_cos = ws_.rope_cos.as<float>(),
                                 .rope_sin = ws_.rope_sin.as<float>(),
                                 .qkv = layer.qkv.get(),
                                 .attn_out = layer.attn_out.get(),
                                 .gate = layer.router.get(),
                                 .gate_bias = layer.router_bias.as<float>(),
                                 .experts = layer.experts,
                                 .kv = kv_.layer(index),
                                 .residual = ws_.residual.as<float>(),
                                 .normed = ws_.normed.as<float>(),
                                 .qkv_out = ws_.qkv.as<float>(),
                                 .query = ws_.query.as<float>(),
                                 .attended = ws_.attended.as<float>(),
                                 .partial = ws_.partial.as<float>(),
                                 .router_logits = ws_.router_logits.as<float>(),
                                 .routing = {ws_.expert_ids.as<int32_t>(), ws_.expert_weights.as<float>(),
                                             ws_.expert_offsets.as<int32_t>(), ws_.slot_order.as<int32_t>()}},
                                pending_slots_);
}

void Graph::add_pending_and_norm(const DeviceBuffer& weight, int n_tokens) {
  backend_.reduce_add_rms_norm(ws_.residual.as<float>(), pending_slots_ ? ws_.partial.as<float>() : nullptr, pending_slots_,
                               comm_, weight.as<float>(), config_.rms_eps, n_tokens, static_cast<int>(config_.hidden_size),
                               ws_.normed.as<float>());
  pending_slots_ = 0;
}

void Graph::record_hidden(Trace* trace, const DeviceBuffer& hidden, int n_tokens) {
  if (!trace) return;
  const size_t n = static_cast<size_t>(n_tokens) * config_.hidden_size;
  backend_.download(trace->hidden.emplace_back(n).data(), hidden.data(), n * sizeof(float));
}

}  // namespace sigmoe
