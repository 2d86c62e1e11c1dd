#include "engine/bench/ops.h"

#include <set>

namespace sigmoe::bench {

AttentionShape attention_shape(const ModelConfig& config) {
  return {static_cast<int>(config.n_heads), static_cast<int>(config.n_kv_heads), static_cast<int>(config.head_dim),
          static_cast<int>(config.rotary_dim)};
}

RouterShape router_shape(const ModelConfig& config) {
  return {static_cast<int>(config.n_experts),
          static_cast<int>(config.n_active),
          static_cast<int>(config.n_groups),
          static_cast<int>(config.n_groups_kept),
          config.normalise_topk,
          config.routed_scaling};
}

LayerOps::LayerOps(BenchModel& model, Step& step, const Costs& costs, int chunk)
    : model_(model), step_(step), router_(router_shape(model.config)) {
  const BatchView& view = step.view(chunk);
  const int n_tokens = view.n_tokens, width = static_cast<int>(model.config.hidden_size);
  const AttentionShape shape = attention_shape(model.config);
  step.use_noise();
  count_touched(n_tokens);

  Backend& b = *model.backend;
  Workspace& ws = step.workspace();
  const auto layer_of = [&model](size_t i) -> const LayerWeights& { return model.weights.layers[i]; };
  const auto add = [&](const char* name, Layers layers, const Cost& cost, std::function<void(size_t)> run) {
    ops_.push_back({name, layers, cost, std::move(run)});
  };
  const float eps = model.config.rms_eps;
  // What a norm moves stays in the cache between two kernels of a step: it has no bound of its own.
  const auto norm = [=, &b, &ws](size_t i, int n_slots) {
    b.reduce_add_rms_norm(ws.residual.as<float>(), ws.partial.as<float>(), n_slots, nullptr,
                          layer_of(i).input_norm.template as<float>(), eps, n_tokens, width, ws.normed.as<float>());
  };
  add("qkv", Layers::all, costs.qkv(n_tokens),
      [=, &b, &ws](size_t i) { b.linear(ws.normed.as<float>(), *layer_of(i).qkv, n_tokens, ws.qkv.as<float>()); });
  add("norm, rope, store", Layers::all, {}, [=, &b, &ws, &step](size_t i) {
    const LayerWeights& w = layer_of(i);
    b.qk_norm_rope_store(view, shape, ws.qkv.as<float>(), w.q_norm.as<float>(), w.k_norm.as<float>(), eps,
                         ws.rope_cos.as<float>(), ws.rope_sin.as<float>(), step.kv(i), ws.query.as<float>());
  });
  add("attention", Layers::all, costs.attention(view.n_seqs, n_tokens / view.n_seqs, step.context_after(chunk)),
      [=, &b, &ws, &step](size_t i) { b.attention(view, shape, ws.query.as<float>(), step.kv(i), ws.attended.as<float>()); });
  add("attention out", Layers::all, costs.attention_out(n_tokens),
      [=, &b, &ws](size_t i) { b.linear(ws.attended.as<float>(), *layer_of(i).attn_out, n_tokens, ws.partial.as<float>()); });
  const bool has_dense = model.weights.layers[0].dense;
  if (has_dense)
    add("dense MLP", Layers::dense, costs.dense_mlp(n_tokens), [=, &b, &ws](size_t i) {
      b.experts(ws.normed.as<float>(), layer_of(i).experts, {}, 0, n_tokens, width, ws.partial.as<float>());
    });
  // Norms come last, for they change the hidden states that the others read.
  const auto add_norms = [&](int n_slots) {
    add("add and norm, 1 slot", Layers::all, {}, [=](size_t i) { norm(i, 1); });
    if (n_slots > 1) add("add and norm, all slots", Layers::moe, {}, [=](size_t i) { norm(i, n_slots); });
  };
  if (touched_ == 0) {  // no MoE layers
    add_norms(1);
    return;
  }
  const RouterShape router = router_;
  const Routing routing = step.routing();
  add("route", Layers::moe, costs.route(n_tokens), [=, &b, &ws](size_t i) {
    b.route(ws.normed.as<float>(), *layer_of(i).router, layer_of(i).router_bias.as<float>(), router, n_tokens, nullptr,
            ws.router_logits.as<float>(), routing);
  });
  // After the counting above the routing is that of the last layer.
  add("experts", Layers::moe, costs.experts(touched_last_, n_tokens), [=, &b, &ws](size_t i) {
    b.experts(ws.normed.as<float>(), layer_of(i).experts, routing, router.n_active, n_tokens, width, ws.partial.as<float>());
  });
  add_norms(router.n_active + 1);
}

void LayerOps::count_touched(int n_tokens) {
  Backend& b = *model_.backend;
  const Routing routing = step_.routing();
  std::vector<int32_t> ids(static_cast<size_t>(n_tokens) * router_.n_active);
  for (size_t i = 0; i < model_.weights.layers.size(); ++i) {
    const LayerWeights& layer = model_.weights.layers[i];
    if (layer.dense) continue;
    b.route(step_.workspace().normed.as<float>(), *layer.router, layer.router_bias.as<float>(), router_, n_tokens, nullptr,
            step_.workspace().router_logits.as<float>(), routing);
    b.download(ids.data(), routing.expert_ids, ids.size() * sizeof(int32_t));
    touched_last_ = static_cast<double>(std::set<int32_t>(ids.begin(), ids.end()).size());
    touched_ += touched_last_;
  }
}

const LayerOp& LayerOps::op(const std::string& name) const {
  for (const LayerOp& op : ops_)
    if (op.name == name) return op;
  throw EngineError(ErrorCode::internal, "no op '" + name + "' to measure");
}

bool LayerOps::has(const LayerOp& op, size_t layer) const {
  return op.layers == Layers::all || (op.layers == Layers::dense) == model_.weights.layers[layer].dense;
}

void LayerOps::run(const LayerOp& op) const {
  for (size_t i = 0; i < model_.weights.layers.size(); ++i)
    if (has(op, i)) op.run(i);
}

int LayerOps::count(const LayerOp& op) const {
  int n = 0;
  for (size_t i = 0; i < model_.weights.layers.size(); ++i) n += has(op, i);
  return n;
}

void LayerOps::attention_blocks() const {
  for (size_t i = 0; i < model_.weights.layers.size(); ++i)
    for (size_t op = 0; op < 4; ++op) ops_[op].run(i);
}

void LayerOps::expert_blocks() const {
  const LayerOp &route = op("route"), &experts = op("experts");
  for (size_t i = 0; i < model_.weights.layers.size(); ++i) {
    if (model_.weights.layers[i].dense) continue;
    route.run(i);
    experts.run(i);
  }
}

void LayerOps::linear_layers() const {
  for (size_t i = 0; i < model_.weights.layers.size(); ++i)
    for (const char* name : {"qkv", "attention out", "dense MLP", "route", "experts"})
      for (const LayerOp& op : ops_)
        if (op.name == name && has(op, i)) op.run(i);
}

}  // namespace sigmoe::bench
