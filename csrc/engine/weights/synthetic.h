// Models of published shapes with random weights, for benchmarks.
#pragma once

#include <string>

#include "engine/checkpoint/config.h"

namespace sigmoe {

// "nano", "ling-mini-2.0" or "ling-flash-2.0", each with ":N" for N layers of which the first is dense. Throws
// invalid_argument for anything else. The weights themselves: synthetic_weights in engine/weights/weights.h.
ModelConfig shape_config(const std::string& shape);

}  // namespace sigmoe
