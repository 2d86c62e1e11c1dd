// How a block of one row's gate-up begins, in few_experts.cu and rank_gate_up.cu: tables of experts and the row on their way,
// the router's choice meanwhile. What it does with weights is theirs. By kScoringThreads threads, all that the block has.
#pragma once

#include "cuda/few_choice.cuh"
#include "cuda/few_rows.h"

namespace sigmoe::cuda::few {

// A routed expert's block, ahead of wait_for_previous(): what of the choice does not need the logits, and where experts are.
__device__ inline void load_tables(const FewExperts& args, float (&bias)[2], ExpertTiles (&table)[kExperts]) {
  load_bias(args.bias, bias);
  for (int e = threadIdx.x; e < kExperts; e += kScoringThreads) copy_16_bytes(table + e, args.gate_up_tiles + e);
}

// The normed row to x and, in a routed expert's block, the number of the slot-th best to choice.ids[0]; they and the table are
// there for all afterwards. Waits for the kernel ahead.
template <int kWidth>
__device__ inline void take_row_and_choose(const FewExperts& args, bool shared, int slot, const float (&bias)[2],
                                           __nv_bfloat16 (&x)[kWidth], Choice& choice) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  wait_for_previous();
  let_next_start();
  for (int i = threadIdx.x; i < kWidth / 8; i += kScoringThreads)
    copy_16_bytes(x + 8 * i, static_cast<const __nv_bfloat16*>(args.normed) + 8 * i);
  if (!shared) {
    score_experts(args.partial, bias, choice);
    __syncthreads();
    if (warp == static_cast<int>(blockIdx.x) % (kScoringThreads / 32)) {
      const int chosen = choose_experts(choice, slot + 1);
      if (lane == slot) choice.ids[0] = chosen;
    }
  }
  wait_for_copies();
  __syncthreads();
}

}  // namespace sigmoe::cuda::few
