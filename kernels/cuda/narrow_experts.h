// Both products of an expert layer for steps of some tens to hundreds of tokens: FP8 times FP8 on Hopper, weights streamed
// once.
#pragma once

#include <cuda_bf16.h>

#include "cuda/gemm.h"
#include "cuda/quantise.h"

namespace sigmoe::cuda {

struct NarrowArgs {
  GemmArgs gemm;  // the lists and weights of a gate_up or down launch; its activations and outputs are these instead:
  PackedRows x;   // gate_up: (T); down: what gate_up left, packed
  __nv_bfloat16* inner_rows = nullptr;  // gate_up: silu(gate x) * up x, (narrow_packed_rows(), k of down)
  __nv_bfloat16* slots = nullptr;       // down: (T, slots, n), weighted
};

// Rows between the products of n_slots routed slots over n_experts and n_shared tokens at the shared expert, at most.
int narrow_packed_rows(int n_slots, int n_experts, int n_shared);

void launch_narrow_experts(const Queue& queue, const NarrowArgs& args);

}  // namespace sigmoe::cuda
