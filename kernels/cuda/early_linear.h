// The products of launch_gemm for few rows and weights that fit the device's shared memory whole: see early_linear.cu.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

// True when the kernel ran: device, format, shape and number of rows are ones it takes. The bits are launch_gemm's.
bool launch_early_linear(const Queue& queue, const GemmArgs& args, bool x_is_float);

// Bytes that the kernel's blocks ask for in L2 once their own are on the way: a later kernel reads them.
struct AheadBytes {
  const void* from = nullptr;
  size_t n = 0;
};

// x (1, k) is the RMSNorm of `residual` times norm_weight, y (1, n) its product with `weight`: a norm and a linear at once.
// False when the kernel does not take the weight.
bool launch_normed_linear(const Queue& queue, const WeightView& weight, const float* residual, const float* norm_weight,
                          float eps, float* y, int early = 0, unsigned long long* stamps = nullptr, bool rolled = false);

// residual (T, n) += x (T, k) W^T, T <= 4. False when the kernel does not take the weight.
bool launch_adding_linear(const Queue& queue, const WeightView& weight, const float* x, int n_tokens, float* residual,
                          AheadBytes ahead = {}, int early = 0, unsigned long long* stamps = nullptr, bool rolled = false,
                          unsigned long long* clears = nullptr);

}  // namespace sigmoe::cuda
