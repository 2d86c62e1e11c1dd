// What a benchmark needs besides the ops: the ceiling to compare with, and data that is not zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"

namespace sigmoe::cuda {

// Reads `bytes` (a multiple of 16) once and leaves a sum in `sink` (1 word): the read-only stream every fraction is of.
void launch_read_stream(const Queue& queue, const void* data, size_t bytes, uint32_t* sink);

// data (n) f32 or bf16 <- uniform in [-limit, limit).
void launch_fill_f32(const Queue& queue, uint64_t seed, float limit, size_t n, float* data);
void launch_fill_bf16(const Queue& queue, uint64_t seed, float limit, size_t n, void* data);

}  // namespace sigmoe::cuda
