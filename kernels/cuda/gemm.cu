// Products of few rows, by the kernel that choose_products.cpp names: y = x W^T for 1 to some hundred rows of x. Bound: memory,
// the bytes of W.
//
// In all of them weights are the 16-row operand of the tensor core and tokens the 8-wide one, so a token costs nothing until
// there are eight, and all add in one order (gemm_walk.cuh): they differ in how they keep memory busy.
#include "cuda/early_linear.h"
#include "cuda/gemm_walk.cuh"
#include "cuda/held_linear.h"
#include "cuda/stream_gemm.h"

namespace sigmoe::cuda {

KernelChoice launch_gemm(const Queue& queue, const Facts& facts, GemmArgs args, bool x_is_float) {
  const GemmShape shape{
      args.mode, args.n_tokens, args.n_experts, args.dense.tiles != nullptr, shape_of(args.dense), shape_of(args.routed)};
  const KernelChoice choice = choose_gemm(facts, shape, x_is_float);
  switch (choice.kernel) {
    case Kernel::early_linear: launch_early_linear(queue, args, x_is_float); break;
    case Kernel::held_linear: launch_held_linear(queue, args, held_blocks(facts.n_sms, shape.dense, args.n_tokens)); break;
    case Kernel::stream_gemm: launch_stream_gemm(queue, args); break;
    case Kernel::gemm_few: launch_few(queue, args, x_is_float); break;
    default: launch_wide(queue, args);
  }
  return choice;
}

}  // namespace sigmoe::cuda
