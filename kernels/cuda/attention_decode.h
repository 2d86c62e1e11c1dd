// Attention of sequences with few rows in a step (decoding, chains of drafts): split over keys, sm_90 alone.
#pragma once

#include "backend/backend.h"
#include "cuda/kernel_choice.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {

struct ChainScratch {
  float* partial = nullptr;    // chain_partial_bytes
  int32_t* row_ids = nullptr;  // most_chain_rows
};
size_t chain_partial_bytes(const AttentionShape& shape, const BatchView& batch, int n_rows);
// Rows that chains of these many sequences of the batch have at most.
int most_chain_rows(const BatchView& batch, int n_seqs);

// Of sequences [first_seq, first_seq + n_seqs), those with at most kMostChainRows rows in the step; other rows of out stay.
void launch_chain_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int first_seq, int n_seqs,
                            const float* q, const KvView& kv, const ChainScratch& scratch, float* out);

}  // namespace sigmoe::cuda
