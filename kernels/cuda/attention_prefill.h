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

// attention_fp8.cu: the same in E4M3, over a BF16 cache weights and values alone; of at most kTableSeqs sequences and heads of
// 128 dims. packed_v and, of an FP8 cache, packed_k are what launch_pack_pages left.
void launch_fp8_prefill_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                                  int first_seq, int n_seqs, const float* q, const __nv_bfloat16* brief_q, const KvView& kv,
                                  const void* packed_k, const void* packed_v, float* out);

// kv_pack.cu: pages of those sequences as E4M3 codes without scales: k (pages, G, P, 128), or null, and v, for its product's
// operand, (pages, G, 128, P) with tokens in the order of packed_token(). Pages as launch_expand_pages numbers them.
void launch_pack_pages(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows, int first_seq,
                       int n_seqs, const KvView& kv, void* k, void* v);

// A code is that of so many times the value: fixed, so that a row's bits do not depend on how its prompt is cut. Codes have
// their three bits from 2^-6 to 448 and are cut beyond. Keys stay as they are: QK-Norm leaves them near 1. So it does with
// queries, which by then are times query_factor(128), an eighth. Of values nothing is known but that they are what a normed row
// gives.
constexpr float kQueryUnits = 16.0f, kValueUnits = 2.0f;

// Where token t of 32 lies in a row of packed values: lane q of a tensor core's operand has places 4 q to 4 q + 3 of either
// half, and of scores columns 2 q and the next of every eight.
constexpr int packed_token(int t) { return t / 16 * 16 + t % 8 / 2 * 4 + t / 8 % 2 * 2 + t % 2; }

}  // namespace sigmoe::cuda
