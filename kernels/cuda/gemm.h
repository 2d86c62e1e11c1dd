// Matrix products of few rows: weights stream once from memory into tensor cores, activations in BF16.
#pragma once

#include "cuda/launch.h"
#include "cuda/weight.h"

namespace sigmoe::cuda {

struct ExpertTiles {  // of one expert, in device memory
  const uint4* tiles = nullptr;
  const float* scales = nullptr;
};

// One launch: a dense part that every token meets (a plain linear, or the shared expert) and a routed part (each expert meets
// its list of tokens). Either may be absent.
struct GemmArgs {
  GemmMode mode = GemmMode::linear;
  int n_tokens = 0;  // T
  int n_active = 0;  // A
  int n_slots = 0;   // of the down output: A, plus one for the shared expert

  WeightView dense;                  // tiles null: absent
  const void* dense_x = nullptr;     // (rows, k): rows are row_ids[j], or j
  const int32_t* row_ids = nullptr;  // (T) or null
  void* dense_out = nullptr;

  WeightView routed;                     // the shape all experts share; n 0: absent
  const ExpertTiles* experts = nullptr;  // (E)
  int n_experts = 0;                     // E
  const int32_t* expert_ids = nullptr;   // (T, A), and the rest of a Routing
  const int32_t* expert_offsets = nullptr;
  const int32_t* slot_order = nullptr;
  const float* slot_weights = nullptr;  // (T, A)
  const void* routed_x = nullptr;       // gate_up: (T, k); down: (T * A, k)
  void* routed_out = nullptr;

  // Filled by launch_gemm:
  int few_tokens = 0;  // that a block of few_kernel takes at a time
  int dense_blocks = 0, dense_row_blocks = 0, dense_slices = 1;
  int routed_row_blocks = 0, routed_slices = 1;
};

// x is (., k) f32 when x_is_float, for which reads_float() must hold; else bf16. What choose_gemm() said.
KernelChoice launch_gemm(const Queue& queue, const Facts& facts, GemmArgs args, bool x_is_float);

}  // namespace sigmoe::cuda
