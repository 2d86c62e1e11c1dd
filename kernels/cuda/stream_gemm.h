// The same products as launch_gemm, for Hopper: see stream_gemm.cu.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

// x is BF16. True when the kernel ran: device, format, shape and number of rows are ones it takes.
bool launch_stream_gemm(const Queue& queue, const GemmArgs& args);

}  // namespace sigmoe::cuda
