// Models of published shapes with random weights, for benchmarks.
#pragma once

#include <string>
#include <vector>

#include "engine/checkpoint/config.h"
#include "engine/checkpoint/safetensors.h"

namespace sigmoe {

// "nano", "ling-mini-2.0" or "ling-flash-2.0", each with ":N" for N layers of which the first is dense. Throws
// invalid_argument for anything else. The weights themselves: synthetic_weights in engine/weights/weights.h.
ModelConfig shape_config(const std::string& shape);

// A checkpoint of these tensors, of which name, dtype and shape are filled in: BF16 matrices are random, BF16 vectors ones and
// I64 vectors zeros.
Checkpoint synthetic_tensors(std::vector<TensorEntry> tensors, uint64_t seed);

}  // namespace sigmoe
