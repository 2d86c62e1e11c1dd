// Attention of sequences with many rows in a step (prompts) for cards before Hopper: mma.sync.
#pragma once

#include "backend/backend.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {

// Of every sequence with at least least_rows rows in the step; other rows of out stay as they are. BF16 pages.
void launch_mma_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                          const float* q, const KvView& kv, float* out);

}  // namespace sigmoe::cuda
