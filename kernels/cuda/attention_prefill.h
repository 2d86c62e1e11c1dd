// Attention of sequences with many rows in a step: warpgroup products, sm_90 alone.
#pragma once

#include <cuda_bf16.h>

#include "backend/backend.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {

// Of sequences [first_seq, first_seq + n_seqs), those with at least least_rows rows in the step; other rows of out stay as they
// are. BF16 pages. tables_expanded: page i of the n-th of these sequences is page n * max_pages + i of kv, whatever the batch's
// tables say. Queries are q's, or in BF16, times query_factor(), brief_q's.
void launch_prefill_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                              int first_seq, int n_seqs, bool tables_expanded, const float* q, const __nv_bfloat16* brief_q,
                              const KvView& kv, float* out);

// kv_expand.cu: FP8 pages of those sequences as BF16 ones, numbered as tables_expanded says; k and v hold n_seqs * max_pages.
void launch_expand_pages(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows, int first_seq,
                         int n_seqs, const KvView& kv, void* k, void* v);

}  // namespace sigmoe::cuda
