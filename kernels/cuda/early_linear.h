// The products of launch_gemm for few rows and weights that fit the device's shared memory whole: see early_linear.cu.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

// True when the kernel ran: device, format, shape and number of rows are ones it takes. The bits are launch_gemm's.
bool launch_early_linear(const Queue& queue, const GemmArgs& args, bool x_is_float);

}  // namespace sigmoe::cuda
