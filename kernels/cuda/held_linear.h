// Linears of 5 to 23 rows and few enough weights that the device's registers hold them all.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

// Whether this build has the kernels for the device; what they take is choose_products.cpp's.
bool has_held_linear();
void launch_held_linear(const Queue& queue, const GemmArgs& gemm, const HeldBlocks& blocks);

}  // namespace sigmoe::cuda
