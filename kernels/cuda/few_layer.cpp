// A MoE layer of up to four rows: which of its parts have a kernel that does several ops at once, and the ops for the others.
//
// One row, FP8: norm and qkv; heads and attention; attention out and its sum; norm and router; choice and gate-up; down and its
// sum: six kernels. Several rows: attention with its heads, and attention out with its sum; the other ops as ever.
#include "cuda/cuda_backend.h"
#include "cuda/early_linear.h"
#include "cuda/few_rows.h"

namespace sigmoe::cuda {

void CudaBackend::attend_few(const DecodeLayer& layer) {
  const BatchView& batch = layer.batch;
  const KernelChoice choice = choose_few_attention(facts_, batch, layer.attention, layer.kv.dtype);
  note("norm, rope, store and attention", batch.n_tokens, choice);
  if (choice.kernel == Kernel::few_attention) {
    writes(layer.attended);
    launch_few_attention(queue_, batch, layer.attention,
                         {layer.qkv_out, layer.q_norm, layer.k_norm, layer.rope_cos, layer.rope_sin, layer.eps}, layer.kv,
                         layer.attended);
  } else {
    qk_norm_rope_store(batch, layer.attention, layer.qkv_out, layer.q_norm, layer.k_norm, layer.eps, layer.rope_cos,
                       layer.rope_sin, layer.kv, layer.query);
    attention(batch, layer.attention, layer.query, layer.kv, layer.attended);
  }
}

// What the kernels of one row take of a layer's experts, whose weights are all alike.
CudaBackend::RowExperts CudaBackend::row_experts(const DecodeLayer& layer, const ExpertTable& table) {
  RowExperts row;
  row.logits = scratch<float>(partial_logits_, static_cast<size_t>(kRouterSlices) * layer.router.n_experts);
  row.normed = scratch<uint16_t>(x_, layer.width);
  FewExperts& few = row.few;
  few.partial = row.logits;
  few.normed = row.normed;
  few.bias = layer.gate_bias;
  few.normalise = layer.router.normalise;
  few.scaling = layer.router.scaling;
  few.gate_up = table.gate_up_shape, few.down = table.down_shape;
  few.gate_up_tiles = table.gate_up_tiles.as<ExpertTiles>(), few.down_tiles = table.down_tiles.as<ExpertTiles>();
  few.shared_gate_up = view_of(*layer.experts.shared_gate_up), few.shared_down = view_of(*layer.experts.shared_down);
  few.inner = scratch<uint16_t>(inner_, static_cast<size_t>(layer.router.n_active + 1) * few.down.k);
  return row;
}

bool CudaBackend::decode_layer(const DecodeLayer& layer, int& n_pending) {
  if (layer.comm) return rank_layer(layer, n_pending);
  const BatchView& batch = layer.batch;
  if (!takes_decode_layer(facts_, batch.n_tokens)) return false;
  const int n_tokens = batch.n_tokens;
  const auto norm = [&](const float* weight) {
    reduce_add_rms_norm(layer.residual, n_pending ? layer.partial : nullptr, n_pending, nullptr, weight, layer.eps, n_tokens,
                        layer.width, layer.normed);
    n_pending = 0;
  };

  // What a kernel of several ops refuses is noted where the ops themselves do not say so.
  writes(layer.qkv_out);
  const WeightView& qkv = view_of(*layer.qkv);
  const KernelChoice normed = choose_normed_linear(facts_, shape_of(qkv), n_tokens, n_pending);
  if (normed.kernel == Kernel::normed_linear) {
    note("norm and qkv", n_tokens, normed);
    launch_normed_linear(queue_, qkv, layer.residual, layer.input_norm, layer.eps, layer.qkv_out);
  } else {
    norm(layer.input_norm);
    linear(layer.normed, *layer.qkv, n_tokens, layer.qkv_out);
  }

  attend_few(layer);

  writes(layer.residual);
  const WeightView& attn_out = view_of(*layer.attn_out);
  const KernelChoice adding = choose_adding_linear(facts_, shape_of(attn_out), n_tokens);
  if (adding.kernel == Kernel::adding_linear) {
    note("attention out and its sum", n_tokens, adding);
    launch_adding_linear(queue_, attn_out, layer.attended, n_tokens, layer.residual);
  } else {
    linear(layer.attended, *layer.attn_out, n_tokens, layer.partial);
    n_pending = 1;
  }

  const ExpertTable& table = table_of(layer.experts);
  const WeightView& gate = view_of(*layer.gate);
  const KernelChoice chosen = choose_few_experts(facts_, shapes_of(layer.experts, table, layer.router.n_active), table.complete,
                                                 shape_of(gate), layer.router, n_tokens, n_pending);
  note("route and experts", n_tokens, chosen);
  if (chosen.kernel == Kernel::few_experts) {
    RowExperts row = row_experts(layer, table);
    row.few.residual = layer.residual;
    launch_few_router(queue_, layer.residual, layer.post_attention_norm, layer.eps, gate, row.logits, row.normed);
    launch_few_experts(queue_, row.few);
    return true;
  }

  norm(layer.post_attention_norm);
  route(layer.normed, *layer.gate, layer.gate_bias, layer.router, n_tokens, nullptr, layer.router_logits, layer.routing);
  experts(layer.normed, layer.experts, layer.routing, layer.router.n_active, n_tokens, layer.width, layer.partial);
  n_pending = layer.router.n_active + (layer.experts.shared_gate_up ? 1 : 0);
  return true;
}

}  // namespace sigmoe::cuda
