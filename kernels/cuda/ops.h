// Kernel launchers that the backend is made of, one group per file.
#pragma once

#include <cmath>

#include "backend/backend.h"
#include "cuda/kernel_choice.h"
#include "cuda/launch.h"
#include "cuda/weight.h"

namespace sigmoe::cuda {

// What queries are multiplied by before they meet keys: softmax's exponents are then of two.
__host__ __device__ inline float query_factor(int head_dim) { return 1.44269504f / sqrtf(static_cast<float>(head_dim)); }

// ---- elementwise.cu
void launch_embed(const Queue& queue, const Tensor& table, const int32_t* ids, int n_tokens, float* out);
// twin (T, width) BF16 or null: the result again, for the products that follow; only where norm_has_twin(), which is row_norm.
void launch_reduce_add_rms_norm(const Queue& queue, float* residual, const float* addend, int n_slots, const float* weight,
                                float eps, int n_tokens, int width, float* out, void* twin);
// out (n) f32 = factor * rows (n) bf16.
void launch_widen(const Queue& queue, const void* rows, size_t n, float factor, float* out);
void launch_sum_slots(const Queue& queue, const void* addend, bool is_bf16, int n_slots, int n_tokens, int width, float* out);
void launch_join_norms(const Queue& queue, const float* embedding, const float* embedding_norm, const float* hidden,
                       const float* hidden_norm, float eps, int n_tokens, int width, float* out);
void launch_to_bf16(const Queue& queue, const float* x, const int32_t* row_ids, int n_rows, int width, void* out);
void launch_copy_rows(const Queue& queue, const float* from, const int32_t* from_ids, int64_t from_stride, float* to,
                      const int32_t* to_ids, int64_t to_stride, int n_rows, int width);

// ---- qk_store.cu
void launch_qk_norm_rope_store(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const float* qkv,
                               const float* q_norm, const float* k_norm, float eps, const float* cos, const float* sin,
                               const KvView& kv, float* q_out);

// ---- exact.cu: everything in float32, one warp per result
void launch_exact_linear(const Queue& queue, const float* x, const int32_t* row_ids, const WeightView& weight, int n_tokens,
                         float* y);
void launch_exact_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const float* q,
                            const KvView& kv, float* out);
// inner (T, A + 1, F): of slot a < A by expert, of slot A by the shared weight. views (E) in device memory.
struct ExactExperts {
  const WeightView* gate_up = nullptr;  // (E) in device memory; tiles null where this rank has no share
  const WeightView* down = nullptr;
  WeightView shared_gate_up, shared_down;  // tiles null: absent
  const int32_t* expert_ids = nullptr;
  const float* slot_weights = nullptr;
  int n_tokens = 0, n_active = 0, n_slots = 0, width = 0;
  int inner_stride = 0;  // floats of inner per slot
};
void launch_exact_experts(const Queue& queue, const ExactExperts& args, const float* x, float* inner, float* out);

// ---- route.cu
constexpr int kRouterSlices = 8;  // partial logits per (token, expert)
struct RouterScratch {
  float* partial = nullptr;     // (kRouterSlices, T, E)
  int32_t* arrivals = nullptr;  // (1), zero between launches
};
// by_tensor: the logits by route_tensor.cu.
void launch_route(const Queue& queue, const float* x, const WeightView& gate, const float* bias, const RouterShape& shape,
                  int n_tokens, bool by_tensor, const int32_t* forced_ids, const RouterScratch& scratch, float* logits,
                  const Routing& out);
bool can_route(const RouterShape& shape);

// ---- sample.cu
// penalised (rows, V) and group_bests, of group_bests_bytes, are scratch.
void launch_sample(const Queue& queue, const SampleArgs& args, float* penalised, uint64_t* group_bests);
size_t group_bests_bytes(int n_rows);
void launch_count_tokens(const Queue& queue, uint32_t* counts_row, const int32_t* prompt, int n_prompt,
                         const int32_t* generated, int n_generated);

}  // namespace sigmoe::cuda
