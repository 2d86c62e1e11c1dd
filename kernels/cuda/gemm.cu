// Which kernel a product of few rows goes to: y = x W^T for 1 to some hundred rows of x. Bound: memory, the bytes of W.
//
// In all of them weights are the 16-row operand of the tensor core and tokens the 8-wide one, so a token costs nothing until
// there are eight, and all add in one order (gemm_walk.cuh): they differ in how they keep memory busy.
#include "cuda/early_linear.h"
#include "cuda/gemm_walk.cuh"
#include "cuda/held_linear.h"
#include "cuda/stream_gemm.h"

namespace sigmoe::cuda {

void launch_gemm(const Queue& queue, GemmArgs args, bool x_is_float) {
  if (launch_early_linear(queue, args, x_is_float) || launch_held_linear(queue, args, x_is_float)) return;
  if (!x_is_float && launch_stream_gemm(queue, args)) return;
  if (x_is_float || fits_few(args))
    launch_few(queue, args, x_is_float);
  else
    launch_wide(queue, args);
}

}  // namespace sigmoe::cuda
