// FP8 pages of sequences with many rows in a step as BF16 pages, which prefill attention reads.
//
// Bound: memory, and little of it: a page is expanded once a chunk, and each of the chunk's tiles reads it.
#include "cuda/attention_prefill.h"
#include "cuda/kv_address.cuh"
#include "cuda/kv_fp8.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kThreads = 256;

// Block: half a page of K or V of a KV head. Grid: (pages, G * 4, sequences).
__global__ void __launch_bounds__(kThreads) expand_pages_kernel(BatchView batch, int n_kv_heads, int head_dim, int least_rows,
                                                                int first_seq, KvView kv, uint4* k, uint4* v) {
  let_next_start();
  wait_for_previous();
  const int page = blockIdx.x, head = blockIdx.y / 4, half = blockIdx.y % 2, seq = first_seq + blockIdx.z;
  const bool is_value = blockIdx.y / 2 % 2;
  const int begin = batch.seq_offsets[seq], end = batch.seq_offsets[seq + 1];
  if (end - begin < least_rows || page * kPageTokens > batch.positions[end - 1]) return;
  const int32_t* pages = batch.page_tables + static_cast<int64_t>(seq) * batch.max_pages;
  const int64_t from = kv_offset(pages, page * kPageTokens + half * kPageTokens / 2, head, n_kv_heads, head_dim);
  const int64_t to =
      ((static_cast<int64_t>(blockIdx.z * gridDim.x + page) * n_kv_heads + head) * kPageTokens + half * kPageTokens / 2) *
      head_dim;
  const auto* codes = static_cast<const uint8_t*>(is_value ? kv.v : kv.k) + from;
  const float* scales = (is_value ? kv.v_scales : kv.k_scales) + from / head_dim;
  uint4* out = (is_value ? v : k) + to / 8;
  for (int i = threadIdx.x; i < kPageTokens / 2 * head_dim / 16; i += kThreads) {
    uint4 values[2];
    expand_sixteen(load_stream(codes + 16 * i), expanding_scale(scales[16 * i / head_dim]), values);
    out[2 * i] = values[0];
    out[2 * i + 1] = values[1];
  }
}

}  // namespace

void launch_expand_pages(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows, int first_seq,
                         int n_seqs, const KvView& kv, void* k, void* v) {
  launch(queue, expand_pages_kernel, dim3(batch.max_pages, shape.n_kv_heads * 4, n_seqs), kThreads, 0, batch, shape.n_kv_heads,
         shape.head_dim, least_rows, first_seq, kv, static_cast<uint4*>(k), static_cast<uint4*>(v));
}

}  // namespace sigmoe::cuda
