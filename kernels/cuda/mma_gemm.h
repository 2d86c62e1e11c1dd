// Matrix products of many rows on the tensor cores that every card since Ampere has: linear layers, and both products of an
// expert layer with its shared expert. Activations in BF16, weights of any format but F32 expanded to BF16 in registers.
#pragma once

#include "cuda/gemm.h"
#include "cuda/quantise.h"

namespace sigmoe::cuda {

constexpr int kMmaTileRows = 128;  // of a tile of the list, at most

struct MmaGemmArgs {
  GemmMode mode = GemmMode::linear;
  WeightView weight;        // of every expert; tiles and scales are the shared expert's, or the only weight's
  const void* x = nullptr;  // BF16. linear: (rows, k); gate_up: (T, k); down: (packed rows, k), as gate_up left them

  // linear: no list, all rows meet the one weight
  int n_rows = 0;

  // gate_up and down: the list that launch_pack_rows made
  const RowTile* tiles = nullptr;
  const int32_t* n_tiles = nullptr;
  int most_tiles = 0;                    // of the list
  const ExpertTiles* experts = nullptr;  // (E)
  int n_experts = 0;
  const int32_t* slot_order = nullptr;
  const float* slot_weights = nullptr;  // (T, A)
  int n_active = 0, n_slots = 0;

  float* out = nullptr;   // linear: (rows, n) f32; down: (T, slots, n) f32, weighted
  void* inner = nullptr;  // gate_up: silu(gate x) * up x, (packed rows, n / 2) BF16

  // Filled by launch_mma_gemm:
  int tile_rows = 0;  // of x that a block takes, linear
};

void launch_mma_gemm(const Queue& queue, MmaGemmArgs args);

}  // namespace sigmoe::cuda
