// Attention: q/k norms, RoPE and the store, then the kernels that choose_rows.cpp names.
#include <algorithm>

#include "cuda/attention_decode.h"
#include "cuda/attention_prefill.h"
#include "cuda/cuda_backend.h"
#include "cuda/mma_attention.h"
#include "cuda/ops.h"
#include "cuda/qk_store_many.h"
#include "cuda/split_attention.h"

namespace sigmoe::cuda {
namespace {

constexpr size_t kMaxSplitBytes = size_t{64} << 20;      // attention partials; longer batches take several launches
constexpr size_t kMaxChainBytes = size_t{256} << 20;     // likewise
constexpr size_t kMaxExpandedBytes = size_t{512} << 20;  // pages in another format; more sequences take several launches

}  // namespace

void CudaBackend::qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv, const float* q_norm,
                                     const float* k_norm, float eps, const float* cos, const float* sin, const KvView& kv,
                                     float* q_out) {
  writes(q_out);
  if (batch.n_tokens == 0) return;
  const KernelChoice choice = choose_qk_store(facts_, batch.n_tokens, shape, kv.dtype);
  note("norm, rope, store", batch.n_tokens, choice);
  if (choice.kernel == Kernel::qk_store_many) {
    // Attention of prompts rounds queries as they are rounded here, whichever way they come.
    const AttentionChoice next = choose_attention(facts_, batch.n_tokens, batch.n_seqs, shape, kv.dtype);
    const bool brief = batch.n_tokens >= kBriefRows && next.few.kernel == Kernel::none;
    const float factor = query_factor(shape.head_dim);
    if (!is_brief(qkv)) floats(qkv);
    launch_many_qk_norm_rope_store(queue_, batch, shape, qkv, is_brief(qkv), q_norm, k_norm, eps, cos, sin, kv, q_out, factor,
                                   brief ? reinterpret_cast<__nv_bfloat16*>(q_out) : nullptr);
    if (brief) leave_brief(q_out, static_cast<size_t>(batch.n_tokens) * shape.n_heads * shape.head_dim, factor);
    return;
  }
  floats(qkv);
  launch_qk_norm_rope_store(queue_, batch, shape, qkv, q_norm, k_norm, eps, cos, sin, kv, q_out);
}

void CudaBackend::attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv, float* out) {
  writes(out);
  if (batch.n_tokens == 0) return;
  const AttentionChoice choice = choose_attention(facts_, batch.n_tokens, batch.n_seqs, shape, kv.dtype);
  const Kernel few = choice.few.kernel, many = choice.many.kernel;
  if (few == Kernel::none && many == Kernel::none)
    throw EngineError(ErrorCode::unsupported,
                      "an FP8 KV cache of heads of " + std::to_string(shape.head_dim) + " dims has no CUDA kernel",
                      "use KV cache type bfloat16");
  if (few != Kernel::none) note("attention", batch.n_tokens, choice.few);
  if (many != Kernel::none) note("attention", batch.n_tokens, choice.many);
  const bool brief = few == Kernel::none && choice.reads_prompts_on_hopper() && is_brief(q);
  if (!brief) floats(q);
  if (few == Kernel::exact_attention) return launch_exact_attention(queue_, batch, shape, q, kv, out);
  if (few == Kernel::chain_attention || choice.reads_prompts_on_hopper())
    return attention_by_rows(batch, shape, choice, q, kv, out);
  int n_rows = batch.n_tokens, most_rows = 0;
  if (many == Kernel::mma_attention) {
    launch_mma_attention(queue_, batch, shape, kMostChainRows + 1, q, kv, out);
    if (few == Kernel::none) return;
    n_rows = batch.n_seqs * kMostChainRows, most_rows = kMostChainRows;
  }
  const size_t row_bytes = split_partial_bytes(shape, 1, batch.max_pages);
  const int rows_at_once = static_cast<int>(std::clamp<size_t>(kMaxSplitBytes / row_bytes, 1, n_rows));
  const int width = shape.n_heads * shape.head_dim;
  uint16_t* twin = nullptr;
  if (most_rows == 0 && batch.n_tokens > 1 && batch.n_tokens <= (facts_.many_rows() ? kManyRows - 1 : kMostTwinTokens)) {
    twin = scratch<uint16_t>(normed_, static_cast<size_t>(batch.n_tokens) * width);
    twin_ = {out, batch.n_tokens, width, twin, {}, {}};
  }
  const SplitScratch split = split_scratch(batch, shape, rows_at_once);
  for (int row = 0; row < n_rows; row += rows_at_once)
    launch_split_attention(queue_, batch, shape, most_rows, row, std::min(rows_at_once, n_rows - row), q, kv, split, out, twin);
}

SplitScratch CudaBackend::split_scratch(const BatchView& batch, const AttentionShape& shape, int n_rows) {
  return {scratch<float>(partial_attention_, split_partial_bytes(shape, n_rows, batch.max_pages) / sizeof(float)),
          scratch<int32_t>(arrivals_, static_cast<size_t>(n_rows) * shape.n_kv_heads)};
}

void CudaBackend::attention_by_rows(const BatchView& batch, const AttentionShape& shape, const AttentionChoice& choice,
                                    const float* q, const KvView& kv, float* out) {
  if (choice.few.kernel == Kernel::chain_attention) {
    int n_at_once = batch.n_seqs;
    const auto bytes = [&] { return chain_partial_bytes(shape, batch, most_chain_rows(batch, n_at_once)); };
    while (n_at_once > 1 && bytes() > kMaxChainBytes) n_at_once = (n_at_once + 1) / 2;
    const ChainScratch chain{scratch<float>(partial_attention_, bytes() / sizeof(float)),
                             scratch<int32_t>(chain_rows_, most_chain_rows(batch, n_at_once))};
    PackedRows rows;
    const PackedRows* packed = nullptr;
    const WeightFormat format = packs_.value_or(WeightFormat::fp8);
    if (packs_ && n_at_once == batch.n_seqs && packs_chain_rows(batch, shape)) {
      WeightView multiplier;  // attention out
      multiplier.format = format;
      multiplier.n_groups = shape.n_heads;
      rows = packed_rows(packed_normed_, normed_scales_, multiplier, batch.n_tokens);
      packed = &rows;
      twin_ = {out, batch.n_tokens, shape.n_heads * kGroup, nullptr, rows, format};
    }
    for (int b = 0; b < batch.n_seqs; b += n_at_once)
      launch_chain_attention(queue_, batch, shape, b, std::min(n_at_once, batch.n_seqs - b), q, kv, chain, out, packed, format);
  }
  if (choice.reads_prompts_on_hopper()) attend_prompts(batch, shape, choice.many.kernel == Kernel::fp8_prefill, q, kv, out);
}

void CudaBackend::attend_prompts(const BatchView& batch, const AttentionShape& shape, bool in_fp8, const float* q,
                                 const KvView& kv, float* out) {
  const int least_rows = kMostChainRows + 1;
  const auto* brief_q = is_brief(q) ? reinterpret_cast<const __nv_bfloat16*>(q) : nullptr;
  const bool fp8_cache = kv.dtype == DType::f8_e4m3;
  if (!in_fp8 && !fp8_cache)
    return launch_prefill_attention(queue_, batch, shape, least_rows, 0, batch.n_seqs, false, q, brief_q, kv, out);
  // Of a sequence, in the other type; keys in BF16 stay where they are.
  const size_t n = static_cast<size_t>(batch.max_pages) * shape.n_kv_heads * kPageTokens * shape.head_dim;
  const size_t v_bytes = in_fp8 ? n : 2 * n, k_bytes = fp8_cache ? v_bytes : 0;
  const int most_seqs = std::min(batch.n_seqs, kTableSeqs);
  const int n_at_once = static_cast<int>(std::clamp<size_t>(kMaxExpandedBytes / (k_bytes + v_bytes), 1, most_seqs));
  std::byte* v = scratch<std::byte>(expanded_, n_at_once * (k_bytes + v_bytes));
  std::byte* k = fp8_cache ? v + n_at_once * v_bytes : nullptr;
  for (int b = 0; b < batch.n_seqs; b += n_at_once) {
    const int n_seqs = std::min(n_at_once, batch.n_seqs - b);
    if (in_fp8) {
      launch_pack_pages(queue_, batch, shape, least_rows, b, n_seqs, kv, k, v);
      launch_fp8_prefill_attention(queue_, batch, shape, least_rows, b, n_seqs, q, brief_q, kv, k, v, out);
    } else {
      launch_expand_pages(queue_, batch, shape, least_rows, b, n_seqs, kv, k, v);
      launch_prefill_attention(queue_, batch, shape, least_rows, b, n_seqs, true, q, brief_q, {k, v, DType::bf16}, out);
    }
  }
}

}  // namespace sigmoe::cuda
