// How a linear layer is cut for the cores: device/args/linear.h.
#pragma once

#include <cstdint>

#include "ascend/device/args/linear.h"
#include "ascend/host/cores.h"

namespace sigmoe::ascend {

struct LinearShape {
  int64_t rows = 0;  // T
  int64_t n = 0, k = 0;
  int64_t x_pitch = 0;        // elements of x from row to row
  int64_t element_bytes = 2;  // of x and W: 2 bf16, 1 int8, 4 float32
  bool gathered = false;      // rows of x are picked by row_ids
};

// Throws EngineError (unsupported) when the shape is past what the copies can address.
LinearTiling make_linear_tiling(const LinearShape& shape, const Cores& cores);

}  // namespace sigmoe::ascend
