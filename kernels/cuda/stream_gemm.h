// The same products as launch_gemm, for Hopper: see stream_gemm.cu.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

// Whether this build has the kernels for the device; what they take is choose_products.cpp's.
bool has_stream_gemm();
// x is BF16.
void launch_stream_gemm(const Queue& queue, const GemmArgs& args);

}  // namespace sigmoe::cuda
