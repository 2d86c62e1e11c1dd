// A MoE layer of up to four rows on one of several ranks: which of its parts have a kernel that does several ops at once.
//
// One row, FP8 or BF16, GPUs that reach each other's memory: six kernels, as on one rank; the sums over ranks have none of
// their own (rank_row.cuh). Where a rank lacks one of these all take the next best, eight kernels, two of them the sums.
// Several rows: attention with its heads; the other ops as ever.
#include "cuda/cuda_backend.h"
#include "cuda/rank_rows.h"

namespace sigmoe::cuda {

// The experts' part of a layer of one row, if there are kernels for it that do several ops.
std::optional<CudaBackend::RowExperts> CudaBackend::rank_experts(const DecodeLayer& layer) {
  const ExpertTable& table = table_of(layer.experts);
  const KernelChoice choice = choose_rank_experts(facts_, shapes_of(layer.experts, table, layer.router.n_active),
                                                  shape_of(view_of(*layer.gate)), layer.router);
  note("route and experts", 1, choice);
  if (choice.kernel != Kernel::rank_experts) return {};
  return row_experts(layer, table);
}

// Whether all ranks push the sums of this layer themselves: each has to have the kernels for its part of it. Asked once for
// each layer, by all ranks at the same time.
bool CudaBackend::ranks_push(const DecodeLayer& layer, bool takes_experts) {
  if (!world_ || world_->way() != DeviceWorld::Way::peer_memory) return false;
  if (const auto known = ranks_push_.find(layer.gate); known != ranks_push_.end()) return known->second;
  const auto takes = [&](const LinearWeight& weight, bool behind_sum) {
    return choose_rank_linear(facts_, shape_of(view_of(weight)), behind_sum).kernel == Kernel::rank_linear;
  };
  const bool own = layer.qkv && takes_experts && takes(*layer.qkv, true) && takes(*layer.attn_out, false);
  bool all = true;
  for (const auto& rank : layer.comm->exchange(std::make_shared<bool>(own))) all = all && *static_cast<const bool*>(rank.get());
  return ranks_push_[layer.gate] = all;
}

// Six kernels. The residual stream moves between two places: who adds to it must not write what other blocks still read.
void CudaBackend::pushing_layer(const DecodeLayer& layer, const RowExperts& experts, int& n_pending) {
  float* spare = scratch<float>(spare_residual_, kRankWidth);
  float* residual = layer.residual;
  const auto other = [&](const float* place) { return place == layer.residual ? spare : layer.residual; };
  const RowExchange behind_attention = world_->row_exchange(kRankWidth, 0),
                    behind_experts = world_->row_exchange(kRankWidth, 1);
  if (n_pending > 0 && pushed_.partial == layer.partial) {
    note("sum, norm and qkv", 1, {Kernel::rank_linear, Kernel::none, {}});
    writes(layer.qkv_out);
    residual = other(pushed_.residual);
    launch_rank_qkv(queue_, view_of(*layer.qkv),
                    {behind_experts, pushed_.residual, residual, layer.partial, layer.input_norm, layer.eps}, layer.qkv_out);
  } else {
    reduce_add_rms_norm(layer.residual, n_pending ? layer.partial : nullptr, n_pending, layer.comm, layer.input_norm, layer.eps,
                        1, layer.width, layer.normed);
    linear(layer.normed, *layer.qkv, 1, layer.qkv_out);
  }
  attend_few(layer);
  note("attention out", 1, {Kernel::rank_linear, Kernel::none, {}});
  writes(layer.partial);
  launch_rank_out(queue_, view_of(*layer.attn_out), layer.attended, layer.partial, &behind_attention);
  writes(layer.residual);
  launch_rank_router(queue_, {behind_attention, residual, other(residual), layer.partial, layer.post_attention_norm, layer.eps},
                     view_of(*layer.gate), experts.logits, experts.normed);
  launch_rank_gate_up(queue_, experts.few);
  launch_rank_down(queue_, experts.few, layer.partial, &behind_experts);
  pushed_ = {layer.partial, other(residual), behind_experts};
  n_pending = 1;
}

bool CudaBackend::rank_layer(const DecodeLayer& layer, int& n_pending) {
  const int n_tokens = layer.batch.n_tokens;
  const bool takes = takes_decode_layer(facts_, n_tokens), one = n_tokens == 1;
  const std::optional<RowExperts> few = takes && one ? rank_experts(layer) : std::nullopt;
  const bool pushes = one && ranks_push(layer, few.has_value());  // asked by every rank, whatever it has
  if (!layer.qkv || !takes) return false;
  if (pushes) {
    pushing_layer(layer, *few, n_pending);
    return true;
  }
  const auto norm = [&](const float* weight) {
    reduce_add_rms_norm(layer.residual, n_pending ? layer.partial : nullptr, n_pending, layer.comm, weight, layer.eps, n_tokens,
                        layer.width, layer.normed);
  };
  norm(layer.input_norm);
  linear(layer.normed, *layer.qkv, n_tokens, layer.qkv_out);
  attend_few(layer);
  const KernelChoice out = one ? choose_rank_linear(facts_, shape_of(view_of(*layer.attn_out)), false) : KernelChoice{};
  if (out.kernel == Kernel::rank_linear) {
    note("attention out", 1, out);
    writes(layer.partial);
    launch_rank_out(queue_, view_of(*layer.attn_out), layer.attended, layer.partial, nullptr);
  } else {
    linear(layer.attended, *layer.attn_out, n_tokens, layer.partial);
  }
  n_pending = 1;
  norm(layer.post_attention_norm);
  if (few) {
    launch_rank_router(queue_, layer.normed, view_of(*layer.gate), few->logits, few->normed);
    writes(layer.partial);
    launch_rank_gate_up(queue_, few->few);
    launch_rank_down(queue_, few->few, layer.partial, nullptr);
    n_pending = 1;
    return true;
  }
  route(layer.normed, *layer.gate, layer.gate_bias, layer.router, n_tokens, nullptr, layer.router_logits, layer.routing);
  experts(layer.normed, layer.experts, layer.routing, layer.router.n_active, n_tokens, layer.width, layer.partial);
  n_pending = layer.router.n_active + (layer.experts.shared_gate_up ? 1 : 0);
  return true;
}

}  // namespace sigmoe::cuda
