// A MoE layer of one row in few kernels: heads and attention (few_attention.cu, for some rows too); norm and router's logits
// (few_router.cu); the router's choice and gate-up, down with the sum over slots (few_experts.cu). The bits are those of the
// ops.
#pragma once

#include "cuda/gemm.h"
#include "cuda/ops.h"

namespace sigmoe::cuda {

// qk_norm_rope_store and attention. Positions, page tables and older keys are read before the kernels ahead are done: whatever
// wrote them must be older than the kernel ahead of the one ahead.
// Which of several ways each part goes, from the environment's SIGMOE_FEW ("up=1,ring=6,plan=1"): read at every launch.
struct FewVariant {
  int up = 0;    // gate-up: 0 five blocks an SM of two tiles each; 1 even_gate_up with activations in registers; 2 nine
                 // blocks an SM of a tile each; 3 even_gate_up in 64 registers, so that a block of down fits beside it
  int five = 0;  // 1: even_gate_up makes norm and logits, too: five kernels a layer
  int ring = 6;  // of even_gate_up: groups of weights on their way per warp, 2 KB each
  int plan = 0;  // 1: gate-up leaves down the addresses of its weights
  int dpf = 0;   // eighths of down's weights that gate-up asks for in L2 as it ends
  int hint = 0;  // 1: even_gate_up's weights are the first that L2 forgets
  int roll = 0;  // 4: less code: loops of down that are otherwise unrolled
  int reh = 0;   // 1: even_gate_up's choice goes through its code with old data before the wait
  unsigned long long* stamps = nullptr;  // few_stamps.cuh
  int er = 0, eu = 0, ed = 0;            // where router, gate-up and down let the next start
};
FewVariant few_variant();

struct FewAttention {
  const float* qkv = nullptr;  // (T, (H + 2G) * Dh)
  const float *q_norm = nullptr, *k_norm = nullptr, *cos = nullptr, *sin = nullptr;
  float eps = 0.0f;
};
void launch_few_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const FewAttention& from,
                          const KvView& kv, float* out);

// partial (kRouterSlices, E) and normed (D) bf16 from residual (D).
void launch_few_router(const Queue& queue, const float* residual, const float* norm_weight, float eps, const WeightView& gate,
                       float* partial, void* normed, unsigned long long* plan = nullptr, const FewVariant& variant = {});

// What down needs of each chosen expert, in words that are 0 until gate-up has written them: tiles, scales, and the weight's
// bits with 1 << 32. The router's kernel clears them.
constexpr int kPlanWords = 3 * 8 + 1;  // and the count of even_gate_up's blocks that have met

struct FewExperts {
  const float* partial = nullptr;  // of launch_few_router
  const void* normed = nullptr;    // likewise
  const float* bias = nullptr;     // (E)
  bool normalise = true;
  float scaling = 1.0f;
  WeightView gate_up, down;                                           // the shape that all routed experts share
  const ExpertTiles *gate_up_tiles = nullptr, *down_tiles = nullptr;  // (E) in device memory, none missing
  WeightView shared_gate_up, shared_down;
  void* inner = nullptr;               // (A + 1, F) bf16: scratch
  float* residual = nullptr;           // (D): gets the weighted outputs of all experts added
  unsigned long long* plan = nullptr;  // (kPlanWords), or null: down chooses for itself
  FewVariant variant;
  bool routes = false;  // even_gate_up makes norm and logits, too: from residual, with these
  const float* norm_weight = nullptr;
  float eps = 0.0f;
  WeightView gate;
  unsigned long long* meeting = nullptr;
};
// Whether this build has the kernels for the device; what they take is choose_products.cpp's.
bool has_few_experts();
// even_gate_up.cu: gate-up by one block per SM.
bool takes_even_gate_up(const FewExperts& args);
void launch_even_gate_up(const Queue& queue, const FewExperts& args);
// Two kernels.
void launch_few_experts(const Queue& queue, const FewExperts& args);

}  // namespace sigmoe::cuda
