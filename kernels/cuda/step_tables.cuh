// Which rows of a step belong to which sequence, as blocks that pick their own work look it up: a table in shared memory.
#pragma once

#include "backend/backend.h"
#include "cuda/kernel_choice.h"

namespace sigmoe::cuda {

// Sequences [first_seq, first_seq + n_seqs) of a step. A sequence's rows are consecutive positions.
struct StepTable {
  int offsets[kTableSeqs + 1];
  int first_positions[kTableSeqs];

  __device__ void load(const BatchView& batch, int first_seq, int n_seqs) {
    for (int b = threadIdx.x; b <= n_seqs; b += blockDim.x) {
      const bool decode = batch.n_tokens == batch.n_seqs;  // a row each
      const int row = decode ? first_seq + b : batch.seq_offsets[first_seq + b];
      offsets[b] = row;
      if (b < n_seqs) first_positions[b] = row < batch.n_tokens ? batch.positions[row] : 0;
    }
  }
};

// The last index in [0, n) whose key(index) is at most `value`; keys ascend and key(0) is.
template <typename Key>
__device__ inline int last_at_most(int n, int value, const Key& key) {
  int low = 0, high = n - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (key(middle) <= value)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

}  // namespace sigmoe::cuda
