// A MoE layer of one row in few kernels: heads and attention (few_attention.cu, for some rows too); norm and router's logits
// (few_router.cu); the router's choice and gate-up, down with the sum over slots (few_experts.cu). The bits are those of the
// ops.
#pragma once

#include "cuda/gemm.h"
#include "cuda/ops.h"

namespace sigmoe::cuda {

// qk_norm_rope_store and attention. Positions, page tables and older keys are read before the kernels ahead are done: whatever
// wrote them must be older than the kernel ahead of the one ahead.
struct FewAttention {
  const float* qkv = nullptr;  // (T, (H + 2G) * Dh)
  const float *q_norm = nullptr, *k_norm = nullptr, *cos = nullptr, *sin = nullptr;
  float eps = 0.0f;
};
void launch_few_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const FewAttention& from,
                          const KvView& kv, float* out);

// partial (kRouterSlices, E) and normed (D) bf16 from residual (D).
void launch_few_router(const Queue& queue, const float* residual, const float* norm_weight, float eps, const WeightView& gate,
                       float* partial, void* normed);

struct FewExperts {
  const float* partial = nullptr;  // of launch_few_router
  const void* normed = nullptr;    // likewise
  const float* bias = nullptr;     // (E)
  bool normalise = true;
  float scaling = 1.0f;
  WeightView gate_up, down;                                           // the shape that all routed experts share
  const ExpertTiles *gate_up_tiles = nullptr, *down_tiles = nullptr;  // (E) in device memory, none missing
  WeightView shared_gate_up, shared_down;
  void* inner = nullptr;      // (A + 1, F) bf16: scratch
  float* residual = nullptr;  // (D): gets the weighted outputs of all experts added
};
// Whether this build has the kernels for the device; what they take is choose_products.cpp's. Two kernels.
bool has_few_experts();
void launch_few_experts(const Queue& queue, const FewExperts& args);

}  // namespace sigmoe::cuda
