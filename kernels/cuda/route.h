// The router's two kernels, one file each.
#pragma once

#include "cuda/ops.h"

namespace sigmoe::cuda {

// partial (kRouterSlices, T, E): the logits, cut along k.
void launch_router_logits(const Queue& queue, const float* x, const WeightView& gate, int n_tokens, float* partial);

}  // namespace sigmoe::cuda
