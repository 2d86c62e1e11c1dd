// Pages of sequences with many rows in a step as FP8 attention multiplies them: E4M3 codes without scales, values turned; keys
// only of an FP8 cache.
//
// Bound: memory, and little of it: a page is packed once a chunk, and each of the chunk's tiles reads it.
#include "cuda/attention_prefill.h"
#include "cuda/kv_address.cuh"
#include "cuda/kv_fp8.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kThreads = 256, kDim = 128;
constexpr int kWordStride = kPageTokens / 4 + 1;  // of a dim's codes while they are turned: lanes then write to different banks

struct PackArgs {
  BatchView batch;
  int n_kv_heads, least_rows, first_seq;
  KvView kv;
  uint32_t *k, *v;
};

// Sixteen keys or values of a token and head, times `units`; a token past the sequence's last is zeros.
__device__ inline void read_sixteen(const KvView& kv, bool is_value, int64_t at, bool valid, float units, float (&values)[16]) {
#pragma unroll
  for (float& value : values) value = 0.0f;
  if (!valid) return;
  uint4 pairs[2];
  if (kv.dtype == DType::bf16) {
    const auto* from = static_cast<const __nv_bfloat16*>(is_value ? kv.v : kv.k) + at;
    pairs[0] = load_stream(from), pairs[1] = load_stream(from + 8);
  } else {
    const float scale = (is_value ? kv.v_scales : kv.k_scales)[at / kDim];
    expand_sixteen(load_stream(static_cast<const uint8_t*>(is_value ? kv.v : kv.k) + at), expanding_scale(scale), pairs);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t pair = (&pairs[i / 4].x)[i % 4];
    values[2 * i] = bf16_low(pair) * units;
    values[2 * i + 1] = bf16_high(pair) * units;
  }
}

// Block: a page of V, or of K, of a KV head. Grid: (pages, G, sequences) for V, with 2 G for K behind.
__global__ void __launch_bounds__(kThreads) pack_pages_kernel(PackArgs args) {
  __shared__ uint32_t turned[kDim * kWordStride];
  let_next_start();
  wait_for_previous();
  const BatchView& batch = args.batch;
  const bool is_value = static_cast<int>(blockIdx.y) < args.n_kv_heads;
  const int page = blockIdx.x, head = blockIdx.y % args.n_kv_heads, seq = args.first_seq + blockIdx.z;
  const int begin = batch.seq_offsets[seq], end = batch.seq_offsets[seq + 1];
  if (end - begin < args.least_rows || page * kPageTokens > batch.positions[end - 1]) return;
  const int n_valid = min(kPageTokens, batch.positions[end - 1] + 1 - page * kPageTokens);
  const int32_t* pages = batch.page_tables + static_cast<int64_t>(seq) * batch.max_pages;
  const int64_t from = kv_offset(pages, page * kPageTokens, head, args.n_kv_heads, kDim);
  const int64_t to = (static_cast<int64_t>(blockIdx.z * gridDim.x + page) * args.n_kv_heads + head) * kPageTokens * kDim / 4;
  float values[16];
  if (!is_value) {
    for (int i = threadIdx.x; i < kPageTokens * kDim / 16; i += kThreads) {
      read_sixteen(args.kv, false, from + 16 * i, 16 * i / kDim < n_valid, 1.0f, values);
      const float* k = values;
      reinterpret_cast<uint4*>(args.k + to)[i] = {pack_e4m3(k[0], k[1], k[2], k[3]), pack_e4m3(k[4], k[5], k[6], k[7]),
                                                  pack_e4m3(k[8], k[9], k[10], k[11]), pack_e4m3(k[12], k[13], k[14], k[15])};
    }
    return;
  }
  // A lane has the four tokens of a word, a warp sixteen dims.
  const int word = threadIdx.x % 32, first_dim = threadIdx.x / 32 * 16;
  const int first_token = word / 8 * 32 + word % 8 / 4 * 16 + word % 4 * 2;
  uint32_t codes[4][4];  // of tokens, four dims each
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = first_token + i / 2 * 8 + i % 2;
    read_sixteen(args.kv, true, from + token * kDim + first_dim, token < n_valid, kValueUnits, values);
#pragma unroll
    for (int d = 0; d < 4; ++d) codes[i][d] = pack_e4m3(values[4 * d], values[4 * d + 1], values[4 * d + 2], values[4 * d + 3]);
  }
#pragma unroll
  for (int d = 0; d < 16; ++d) {
    const uint32_t byte = d % 4 * 0x11 + 0x40;  // of the first token's codes, then of the second's
    const uint32_t low = __byte_perm(codes[0][d / 4], codes[1][d / 4], byte);
    const uint32_t high = __byte_perm(codes[2][d / 4], codes[3][d / 4], byte);
    turned[(first_dim + d) * kWordStride + word] = __byte_perm(low, high, 0x5410);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kPageTokens * kDim / 16; i += kThreads) {
    const uint32_t* row = turned + i / 8 * kWordStride + i % 8 * 4;
    reinterpret_cast<uint4*>(args.v + to)[i] = {row[0], row[1], row[2], row[3]};
  }
}
static_assert(packed_token(0) == 0 && packed_token(1) == 1 && packed_token(8) == 2 && packed_token(9) == 3 &&
              packed_token(2) == 4 && packed_token(16) == 16);  // a word has tokens t, t + 1, t + 8 and t + 9

}  // namespace

void launch_pack_pages(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows, int first_seq,
                       int n_seqs, const KvView& kv, void* k, void* v) {
  launch(queue, pack_pages_kernel, dim3(batch.max_pages, shape.n_kv_heads * (k ? 2 : 1), n_seqs), kThreads, 0,
         PackArgs{batch, shape.n_kv_heads, least_rows, first_seq, kv, static_cast<uint32_t*>(k), static_cast<uint32_t*>(v)});
}

}  // namespace sigmoe::cuda
