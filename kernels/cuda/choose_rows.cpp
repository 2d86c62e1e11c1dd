// Which kernel takes an op that is no product of a body's weight: attention, the store before it, norms, the router.
#include "cuda/verdict.h"

namespace sigmoe::cuda {
namespace {

Verdict has_heads(const AttentionShape& shape, int most_group_heads) {
  if (shape.head_dim != 64 && shape.head_dim != 128) return refuses(Reason::exactly, "head_dim", shape.head_dim, 128);
  const int group_heads = shape.n_heads / shape.n_kv_heads;
  if (group_heads > most_group_heads)
    return refuses(Reason::at_most, "query heads of a KV head", group_heads, most_group_heads);
  return takes();
}

Verdict split_takes(const AttentionShape& shape, DType kv_dtype) {
  return kv_dtype == DType::bf16 ? has_heads(shape, kSplitGroupHeads) : refuses(Reason::kv_format);
}

Verdict chain_takes(const Facts& facts, const AttentionShape& shape) {
  return facts.sm == 90 ? has_heads(shape, kHopperGroupHeads) : refuses(Reason::no_hopper);
}

// Two classes of rows: those of sequences with at most kMostChainRows rows in the step, and the others. Within a class a row's
// bits depend on its position alone.
AttentionChoice by_rows(const Facts& facts, int n_tokens, int n_seqs, const AttentionShape& shape) {
  AttentionChoice choice;
  if (n_seqs > 1 || n_tokens <= kMostChainRows) choice.few.kernel = Kernel::chain_attention;
  if (n_tokens - n_seqs < kMostChainRows) return choice;
  const auto fp8 = [&] {
    if (!facts.fp8_prefill) return outside();
    if (shape.head_dim == kFp8PrefillHeadDim) return takes();
    return refuses(Reason::exactly, "head_dim", shape.head_dim, kFp8PrefillHeadDim);
  };
  Candidates many;
  choice.many = many.tries(Kernel::fp8_prefill, fp8()) ? many.found() : many.otherwise(Kernel::prefill_attention);
  return choice;
}

}  // namespace

AttentionChoice choose_attention(const Facts& facts, int n_tokens, int n_seqs, const AttentionShape& shape, DType kv_dtype) {
  const Verdict chain = chain_takes(facts, shape);
  if (kv_dtype == DType::f8_e4m3) {
    if (chain.takes) return by_rows(facts, n_tokens, n_seqs, shape);
    return {{Kernel::none, Kernel::chain_attention, chain.refusal}, {}};
  }
  const Verdict split = split_takes(shape, kv_dtype);
  if (facts.exact || !split.takes)
    return {{Kernel::exact_attention, Kernel::split_attention, facts.exact ? Refusal{Reason::float32_mode} : split.refusal},
            {}};
  // Few sequences whose rows may all be tokens and drafts: split attention is sooner there. A draft's step has as many
  // sequences as one without drafts, so drafts change no class.
  if (n_seqs < 24 && n_tokens <= kMostChainRows * n_seqs) return {{Kernel::split_attention, Kernel::none, {}}, {}};
  const Verdict rows = facts.deterministic ? refuses(Reason::deterministic) : chain;
  if (rows.takes) return by_rows(facts, n_tokens, n_seqs, shape);
  const bool has_many = n_tokens - n_seqs >= kMostChainRows;
  const KernelChoice few{Kernel::split_attention, Kernel::chain_attention, rows.refusal};
  // Two classes of rows here too, but in those steps; only what may have both is split up.
  Candidates many;
  many.remember(Kernel::prefill_attention, rows.refusal);
  if (has_many && many.tries(Kernel::mma_attention, facts.mma_rows() ? has_heads(shape, kMmaGroupHeads) : outside())) {
    const bool alone = n_seqs == 1;
    return {alone ? KernelChoice{} : few, many.found()};
  }
  return {few, {}};
}

KernelChoice choose_qk_store(const Facts& facts, int n_tokens, const AttentionShape& shape, DType kv_dtype) {
  constexpr int kHeadDim = 128, kRotaryDim = 64;
  const auto verdict = [&] {
    if (n_tokens < kManyExpertRows) return outside();
    if (!facts.many_rows()) return refuses_many_rows(facts);
    if (shape.head_dim != kHeadDim) return refuses(Reason::exactly, "head_dim", shape.head_dim, kHeadDim);
    if (shape.rotary_dim != kRotaryDim) return refuses(Reason::exactly, "rotary_dim", shape.rotary_dim, kRotaryDim);
    return kv_dtype == DType::bf16 || kv_dtype == DType::f8_e4m3 ? takes() : refuses(Reason::kv_format);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::qk_store_many, verdict())) return kernels.found();
  return kernels.otherwise(Kernel::qk_store);
}

KernelChoice choose_norm(const Facts& facts, int n_tokens, int width, bool packs) {
  const auto many = [&] {
    if (!packs || n_tokens < kManyExpertRows) return outside();
    if (!facts.many_rows()) return refuses_many_rows(facts);
    if (width % kGroup != 0) return refuses(Reason::multiple, "width", width, kGroup);
    return width <= kMostNormGroups * kGroup ? takes() : refuses(Reason::at_most, "width", width, kMostNormGroups * kGroup);
  };
  const auto row = [&] {
    if (norm_has_twin(width)) return takes();
    return width % 4 != 0 ? refuses(Reason::multiple, "width", width, 4)
                          : refuses(Reason::at_most, "width", width, kMostNormWidth);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::norm_many, many()) || kernels.tries(Kernel::row_norm, row())) return kernels.found();
  return kernels.otherwise(Kernel::any_norm);
}

KernelChoice choose_route(const Facts& facts, const WeightShape& gate, int n_tokens) {
  const auto verdict = [&] {
    if (n_tokens < kManyRouterRows) return outside();
    if (!facts.many_rows()) return refuses_many_rows(facts);
    if (gate.format != WeightFormat::bf16) return refuses_format(gate);
    return gate.k % 4 == 0 ? takes() : refuses(Reason::multiple, "k", gate.k, 4);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::route_tensor, verdict())) return kernels.found();
  return kernels.otherwise(Kernel::route_logits);
}

KernelChoice choose_few_attention(const Facts& facts, const BatchView& batch, const AttentionShape& shape, DType kv_dtype) {
  using namespace limits::few;
  const auto verdict = [&] {
    if (batch.n_seqs != batch.n_tokens || batch.max_pages > kMostPages) return outside();
    if (!facts.overlap || !facts.has_early) return refuses(Reason::no_hopper);
    if (kv_dtype != DType::bf16) return refuses(Reason::kv_format);
    if (shape.head_dim != kHeadDim) return refuses(Reason::exactly, "head_dim", shape.head_dim, kHeadDim);
    if (shape.rotary_dim != kRotaryDim) return refuses(Reason::exactly, "rotary_dim", shape.rotary_dim, kRotaryDim);
    const int group_heads = shape.n_heads / shape.n_kv_heads;
    return group_heads <= kMostHeads ? takes() : refuses(Reason::at_most, "query heads of a KV head", group_heads, kMostHeads);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::few_attention, verdict())) return kernels.found();
  return kernels.otherwise(Kernel::ops);
}

}  // namespace sigmoe::cuda
