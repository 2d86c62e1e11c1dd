// The router's kernels, one file each.
#pragma once

#include "cuda/ops.h"

namespace sigmoe::cuda {

// route_logits.cu: partial (kRouterSlices, T, E), the logits, cut along k.
void launch_router_logits(const Queue& queue, const float* x, const WeightView& gate, int n_tokens, float* partial);

// route_tensor.cu, on Hopper: the same; or, where adds_slices(), the logits (T, E) themselves.
bool adds_slices(int n_tokens);
void launch_tensor_logits(const Queue& queue, const float* x, const WeightView& gate, int n_tokens, float* out);

// route_lists.cu: expert_offsets and slot_order of what expert_ids (T, A) say.
void launch_route_lists(const Queue& queue, const int32_t* expert_ids, int n_slots, int n_experts, const Routing& out);

}  // namespace sigmoe::cuda
