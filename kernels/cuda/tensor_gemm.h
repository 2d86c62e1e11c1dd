// Matrix products of many rows on Hopper's tensor cores, FP8 times FP8 or BF16 times BF16: linear layers, and both products of
// an expert layer with its shared expert.
#pragma once

#include <cuda_bf16.h>

#include "cuda/gemm.h"
#include "cuda/quantise.h"

namespace sigmoe::cuda {

struct TensorGemmArgs {
  GemmMode mode = GemmMode::linear;
  WeightView weight;  // of every expert; tiles and scales are the shared expert's, or the only weight's
  PackedRows x;       // linear: (rows); gate_up: (T), gathered; down: what gate_up left, packed

  // linear: no list, all rows meet the one weight
  int n_rows = 0;

  // gate_up and down: the list that launch_pack_rows made
  const RowTile* tiles = nullptr;
  const int32_t* n_tiles = nullptr;
  const ExpertTiles* experts = nullptr;  // (E)
  int n_experts = 0;
  const int32_t* slot_order = nullptr;
  const float* slot_weights = nullptr;  // (T, A)
  int n_active = 0, n_slots = 0;
  int rows_each = 0;  // of an expert, on the average

  float* out = nullptr;  // linear: (rows, n) f32, or
  __nv_bfloat16* brief_out = nullptr;
  __nv_bfloat16* slots = nullptr;  // down: (T, slots, n) bf16, weighted
  // gate_up: silu(gate x) * up x, for BF16 weights packed, for FP8 (packed rows, k of down) bf16 for launch_pack_inner
  PackedRows inner;
  __nv_bfloat16* inner_rows = nullptr;

  // Filled by launch_tensor_gemm:
  int n_splits = 1;  // blocks that divide k
  int n_paired = 1;  // blocks that bring W to each other: 2, or 1 for none
};

// Whether the device and this build have the kernels.
bool has_tensor_gemm();

void launch_tensor_gemm(const Queue& queue, TensorGemmArgs args);

}  // namespace sigmoe::cuda
