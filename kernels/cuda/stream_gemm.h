// The same products as launch_gemm, for devices that copy to shared memory by themselves (sm_90): see stream_gemm.cu.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

constexpr int kStreamFloatTokens = 16;  // as many rows of a linear are converted while they are staged

// True when the kernel ran: device, format, shape and number of rows are ones it takes. x_is_float: a linear of few rows.
bool launch_stream_gemm(const Queue& queue, const GemmArgs& args, bool x_is_float);

// Whether it would take a linear of n_tokens float rows.
bool stream_reads_float(const WeightView& weight, int n_tokens);

}  // namespace sigmoe::cuda
