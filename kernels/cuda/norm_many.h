// The norm of many rows, packed for the products behind it.
#pragma once

#include "cuda/quantise.h"

namespace sigmoe::cuda {

struct ManyNormArgs {
  float* residual = nullptr;     // (T, width), += the sum over slots of addend
  const void* addend = nullptr;  // (T, slots, width) or null
  bool addend_is_bf16 = false;   // else float32
  int n_slots = 0;
  const float* weight = nullptr;
  float eps = 0.0f;
  int n_tokens = 0, width = 0;
  float* out = nullptr;                     // (T, width) RMSNorm(residual) * weight
  PackedRows packed;                        // the same as quantise.cu packs it
  WeightFormat format = WeightFormat::fp8;  // of what multiplies `packed`
};

void launch_many_norm(const Queue& queue, const ManyNormArgs& args);

}  // namespace sigmoe::cuda
