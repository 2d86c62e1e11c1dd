// Attention that cuts a row's keys into runs and adds them up: of decode rows, and of whatever has no other kernel.
#pragma once

#include "backend/backend.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {

struct SplitScratch {
  float* partial = nullptr;     // split_partial_bytes of them
  int32_t* arrivals = nullptr;  // (rows, G), zero between launches
};
int max_splits(int max_pages);
size_t split_partial_bytes(const AttentionShape& shape, int n_rows, int max_pages);

// Over BF16 pages. Row i of the n_rows from first_row on is row i of the step, or, where most_rows is not 0, row i % most_rows
// of sequence i / most_rows, if that has so many and at most most_rows. twin (T, H * head_dim) BF16 or null: the result again,
// for the product that follows.
void launch_split_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int most_rows,
                            int first_row, int n_rows, const float* q, const KvView& kv, const SplitScratch& scratch,
                            float* out, void* twin);

}  // namespace sigmoe::cuda
