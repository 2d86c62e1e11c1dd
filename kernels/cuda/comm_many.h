// The sum over two GPUs with the norm of many rows, packed for the products behind it.
#pragma once

#include "cuda/comm.h"
#include "cuda/norm_many.h"

namespace sigmoe::cuda {

// `norm.addend` is this rank's; whole groups, at most kMostNormGroups. No packed.data: a rank without weights of many rows.
// twin: (T, width) BF16 or null, `out` again.
void launch_many_reduce(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ManyNormArgs& norm,
                        void* twin);

}  // namespace sigmoe::cuda
