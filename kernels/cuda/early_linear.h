// The products of launch_gemm for few rows and weights that fit the device's shared memory whole: see early_linear.cu.
#pragma once

#include "cuda/gemm.h"

namespace sigmoe::cuda {

// Whether this build has the kernels for the device; what they take is choose_products.cpp's. The bits are launch_gemm's.
bool has_early_linear();
void launch_early_linear(const Queue& queue, const GemmArgs& args, bool x_is_float);

// x (1, k) is the RMSNorm of `residual` times norm_weight, y (1, n) its product with `weight`: a norm and a linear at once.
void launch_normed_linear(const Queue& queue, const WeightView& weight, const float* residual, const float* norm_weight,
                          float eps, float* y);

// residual (T, n) += x (T, k) W^T, T <= 4.
void launch_adding_linear(const Queue& queue, const WeightView& weight, const float* x, int n_tokens, float* residual,
                          unsigned long long* clears = nullptr);

}  // namespace sigmoe::cuda
