// The router: float32 logits, then the reference's choice of experts, token by token.
#include <algorithm>

#include "cpu/cpu_backend.h"

namespace sigmoe {
namespace {

constexpr int kChunkTokens = 16;  // choosing takes some microseconds a token

// Slots (token, choice) by expert; tokens stay in order within one.
void sort_slots(int n_experts, int64_t n_slots, const Routing& routing) {
  std::fill(routing.expert_offsets, routing.expert_offsets + n_experts + 1, 0);
  for (int64_t i = 0; i < n_slots; ++i) ++routing.expert_offsets[routing.expert_ids[i] + 1];
  for (int e = 0; e < n_experts; ++e) routing.expert_offsets[e + 1] += routing.expert_offsets[e];
  // Offsets serve as cursors while slots are placed, each ending where the next expert begins: then all move up by one.
  for (int64_t i = 0; i < n_slots; ++i)
    routing.slot_order[routing.expert_offsets[routing.expert_ids[i]]++] = static_cast<int32_t>(i);
  std::copy_backward(routing.expert_offsets, routing.expert_offsets + n_experts, routing.expert_offsets + n_experts + 1);
  routing.expert_offsets[0] = 0;
}

}  // namespace

void CpuBackend::route(const float* x, const LinearWeight& gate, const float* bias, const RouterShape& shape, int n_tokens,
                       const int32_t* forced_ids, float* logits, const Routing& out) {
  multiply(x, nullptr, n_tokens, packed(gate), Products::f32, logits);  // float32 whatever the path: near ties must not flip
  const int n_chunks = (n_tokens + kChunkTokens - 1) / kChunkTokens;
  if (n_chunks <= 1) return choose_experts(logits, bias, shape, n_tokens, forced_ids, out);

  // Chunks choose on their own; their lists, sorted within the chunk only, are scratch.
  const int64_t list_size = shape.n_experts + 1 + static_cast<int64_t>(kChunkTokens) * shape.n_active;
  int32_t* lists = chunk_lists_.get<int32_t>(n_chunks * list_size);
  pool_.parallel_for(n_chunks, [&](int64_t chunk, int) {
    const int64_t first = chunk * kChunkTokens, slot = first * shape.n_active;
    int32_t* offsets = lists + chunk * list_size;
    choose_experts(logits + first * shape.n_experts, bias, shape,
                   static_cast<int>(std::min<int64_t>(kChunkTokens, n_tokens - first)),
                   forced_ids ? forced_ids + slot : nullptr,
                   {out.expert_ids + slot, out.weights + slot, offsets, offsets + shape.n_experts + 1});
  });
  sort_slots(shape.n_experts, static_cast<int64_t>(n_tokens) * shape.n_active, out);
}

}  // namespace sigmoe
