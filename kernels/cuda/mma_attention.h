// Attention of sequences with many rows in a step (prompts) for cards before Hopper: mma.sync.
#pragma once

#include "backend/backend.h"
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace sigmoe::cuda {

// Of every sequence with at least least_rows rows in the step; other rows of out stay as they are. BF16 pages.
void launch_mma_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                          const float* q, const KvView& kv, float* out);

// attention.cu: of every sequence with at most most_rows rows in the step. Row i of the n_rows from first_row on is row
// i % most_rows of sequence i / most_rows, if there is one; most_rows 0: row i of the step, whatever its sequence.
void launch_split_attention_of_few(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int most_rows,
                                   int first_row, int n_rows, const float* q, const KvView& kv, const SplitScratch& scratch,
                                   float* out, void* twin);

}  // namespace sigmoe::cuda
