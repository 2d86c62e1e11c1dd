// The arithmetic of quantisation: rows of float weights to FP8 blocks or INT8 channels. reference/model.md 4.2.
//
//   FP8:  scale = max(|w| of a 128 x 128 block, 1e-4) / 448, rounded up to a power of two where the publisher's exporter does;
//         code = w / scale to the nearest E4M3 value, ties to even.
//   INT8: scale = max(|w| of a row, 1e-30) / 127; code = w / scale to the nearest integer, ties to even.
// Every operation is one in float32, so that a plain loop anywhere gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/dtype.h"

namespace sigmoe {

constexpr int64_t kQuantBlock = 128;

enum class QuantTarget : uint8_t { fp8_block, int8_channel };

float fp8_scale(float largest, bool power_of_two);
float int8_scale(float largest);

// Sums over weights, of which sqrt(error / weight) is the relative error.
struct QuantError {
  double error = 0;   // (w - what is stored for it)^2
  double weight = 0;  // w^2
  void add(const QuantError& other) {
    error += other.error;
    weight += other.weight;
  }
};

// Quantises `n_rows` rows of k values, BF16 or F32 by `dtype`; for FP8 at most 128 rows, all of one row of blocks. codes
// (n_rows, k); scales one per block of k (FP8) or per row (INT8). Returns false when a value is NaN or infinite.
bool quantize_rows(QuantTarget target, bool power_of_two, DType dtype, const std::byte* rows, int64_t n_rows, int64_t k,
                   uint8_t* codes, float* scales, QuantError& error);

}  // namespace sigmoe
