// The sum over two GPUs with the norm of many rows, packed for the products behind it.
#pragma once

#include "cuda/comm.h"
#include "cuda/norm_many.h"

namespace sigmoe::cuda {

// `norm.addend` is this rank's; whole groups, at most kMostNormGroups. No packed.data: a rank without weights of many rows. bf16_wire: parts
// are rounded to BF16 before they are added.
void launch_many_reduce(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ManyNormArgs& norm,
                        bool bf16_wire);

}  // namespace sigmoe::cuda
