// Linears of 5 to 23 rows and few enough weights that the device's registers hold them all.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

// False when this is none of them; nothing was launched then.
bool launch_held_linear(const Queue& queue, const GemmArgs& gemm, bool x_is_float);

}  // namespace sigmoe::cuda
