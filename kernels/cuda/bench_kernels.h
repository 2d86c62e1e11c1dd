// What a benchmark needs besides the ops: the ceilings to compare with, and data that is not zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"

namespace sigmoe::cuda {

// Reads `bytes` (a multiple of 16) once and leaves a sum in `sink` (1 word): the read-only stream every fraction is of.
void launch_read_stream(const Queue& queue, int n_sms, const void* data, size_t bytes, uint32_t* sink);

// Keeps the matrix units of n_blocks SMs busy for about a millisecond and says how much each block has multiplied. The FLOP
// stay as they were (set them to 0 before) where the device has no units for FP8.
struct MatrixPeak {
  double flop_per_block;
  float sum;
};
void launch_matrix_peak(const Queue& queue, bool fp8, int n_blocks, MatrixPeak* peak);

// data (n) f32 or bf16 <- uniform in [-limit, limit).
void launch_fill_f32(const Queue& queue, uint64_t seed, float limit, size_t n, float* data);
void launch_fill_bf16(const Queue& queue, uint64_t seed, float limit, size_t n, void* data);

}  // namespace sigmoe::cuda
