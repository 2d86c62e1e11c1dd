// Which kernel takes a product: linear layers, the head, both products of an expert layer.
#include <algorithm>

#include "cuda/verdict.h"

namespace sigmoe::cuda {
namespace {

constexpr int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Blocks of early_linear.cu that run at once.
int most_early_blocks(const Facts& facts, int n_tokens) {
  using namespace limits::early;
  constexpr int kOwn = 3200;  // of a block: what the kernel declares, and the system's kilobyte
  return facts.n_sms * std::min(kBlocksPerSm, facts.shared_bytes / (kWarps * warp_bytes(n_tokens) + kOwn));
}

// Weights that the device holds whole.
Verdict early_takes(const Facts& facts, const WeightShape& w, int n_tokens) {
  using namespace limits::early;
  if (n_tokens > kMostTokens || w.format != WeightFormat::fp8 || w.n_tiles == 0 ||
      w.n_tiles > most_early_blocks(facts, n_tokens))
    return outside();
  if (!facts.overlap || !facts.has_early) return refuses(Reason::no_hopper);
  if (w.k != kGroups * kGroup) return refuses(Reason::exactly, "k", w.k, kGroups * kGroup);
  return takes();
}

Verdict early_takes(const Facts& facts, const GemmShape& gemm) {
  if (gemm.mode != GemmMode::linear || gemm.routed.n > 0 || !gemm.has_dense) return outside();
  return early_takes(facts, gemm.dense, gemm.n_tokens);
}

Verdict held_takes(const Facts& facts, const GemmShape& gemm, bool x_is_float) {
  using namespace limits::held;
  const WeightShape& w = gemm.dense;
  if (x_is_float || gemm.mode != GemmMode::linear || !gemm.has_dense || gemm.routed.n > 0 || gemm.n_tokens < kLeastTokens ||
      gemm.n_tokens > kMostTokens || w.format != WeightFormat::fp8)
    return outside();
  const int64_t held_groups = int64_t{facts.n_sms} * kSmWarps * kSliceGroups;
  if (int64_t{w.n_tiles} * w.n_groups > held_groups) return outside();
  if (!facts.overlap || !facts.has_held) return refuses(Reason::no_hopper);
  if (w.k != 4 * kSliceK && w.k != 2 * kSliceK)
    return refuses(Reason::exactly, "k", w.k, (w.k > 3 * kSliceK ? 4 : 2) * kSliceK);
  return held_blocks(facts.n_sms, w, gemm.n_tokens).warps > 0 ? takes() : outside();
}

Verdict stream_takes(const Facts& facts, const GemmShape& gemm, bool x_is_float) {
  using namespace limits::stream;
  const bool routed = gemm.routed.n > 0;
  const WeightShape& w = routed ? gemm.routed : gemm.dense;
  if (x_is_float || gemm.n_tokens < kLeastTokens) return outside();
  if (routed ? gemm.n_tokens > kMostRouted : gemm.n_tokens > kTokens || w.n_tiles < kLeastDenseTiles) return outside();
  if (!facts.has_stream) return refuses(Reason::no_hopper);
  if (w.format != WeightFormat::fp8 && w.format != WeightFormat::bf16) return refuses_format(w);
  if (w.k % kGroup != 0) return refuses(Reason::multiple, "k", w.k, kGroup);
  const int at_once = slices_for(w.n_groups) * depth(w.format);
  if (w.n_groups % at_once != 0) return refuses(Reason::multiple, "k", w.k, at_once * kGroup);
  if (gemm.has_dense && (gemm.dense.k != w.k || gemm.dense.format != w.format || gemm.dense.k_shift != w.k_shift))
    return refuses(Reason::unlike);
  if (routed && gemm.n_experts > kMaxExperts) return refuses(Reason::at_most, "n_experts", gemm.n_experts, kMaxExperts);
  const size_t lists = lists_bytes(routed ? gemm.n_experts + 1 : 1);
  if (2 * kTokens * x_stride(w.k) + lists > kMostSharedBytes)
    return refuses(Reason::at_most, "k", w.k, static_cast<int>((kMostSharedBytes - lists) / (2 * kTokens) - x_stride(0)) / 2);
  return takes();
}

// Shared memory of a block is about 163 KB on the least device (sm_80); longer rows go through L1.
constexpr size_t kMostStagedBytes = size_t{150} << 10;
constexpr size_t kBf16Bytes = 2;

Verdict few_takes(const GemmShape& gemm, bool x_is_float) {
  if (x_is_float) return takes();  // reads_float()
  // Routed experts see few tokens each even when the step has many.
  if (divide_up(gemm.n_tokens, gemm.routed.n > 0 ? 16 : 1) > kFewTokens) return outside();
  const int n_groups = std::max(gemm.has_dense ? gemm.dense.n_groups : 0, gemm.routed.n > 0 ? gemm.routed.n_groups : 0);
  const size_t row_bytes = kBf16Bytes * std::min(gemm.n_tokens, kFewTokens);
  if (row_bytes * staged_stride(n_groups) <= kMostStagedBytes) return takes();
  return refuses(Reason::at_most, "k", n_groups * kGroup,
                 static_cast<int>(kMostStagedBytes / row_bytes - staged_stride(0)) / kGroup * kGroup);
}

Verdict tensor_takes(const Facts& facts, const WeightShape& w, int n_rows, int least_rows) {
  if (n_rows < least_rows) return outside();
  if (!facts.many_rows()) return refuses_many_rows(facts);
  if (w.format == WeightFormat::bf16) return takes();
  if (w.format != WeightFormat::fp8) return refuses_format(w);
  // One scale per row or tensor, or blocks that a warpgroup's rows do not straddle.
  if (w.k_shift >= 30) return takes();
  if (w.k_shift < 7 || w.row_shift < 7) return refuses(Reason::scales);
  if (w.gate_up && w.n / 2 % 128 != 0) return refuses(Reason::multiple, "the expert's width", w.n / 2, 128);
  return takes();
}

Verdict mma_takes(const Facts& facts, const WeightShape& w, int n_rows, int least_rows) {
  if (n_rows < least_rows) return outside();
  if (!facts.mma_rows()) return refuses_many_rows(facts);
  if (w.k % 8 != 0) return refuses(Reason::multiple, "k", w.k, 8);  // rows of x are copied by 16 bytes
  switch (w.format) {
    case WeightFormat::bf16: return takes();
    case WeightFormat::int4: return w.k_shift >= 6 ? takes() : refuses(Reason::scales);  // a step has one scale of each row
    case WeightFormat::fp8:  // one scale per row or tensor, or blocks of 128 of k that a warp's rows do not straddle
      if (w.k_shift >= 30) return takes();
      if (w.k_shift < 7 || w.row_shift < 5) return refuses(Reason::scales);
      if (w.gate_up && w.n / 2 % 16 != 0) return refuses(Reason::multiple, "the expert's width", w.n / 2, 16);
      return takes();
    default: return refuses_format(w);
  }
}

// Whole places and groups, and scales of blocks of 128 by 128.
Verdict narrow_takes(const WeightShape& w) {
  using namespace limits::narrow;
  if (w.n == 0) return takes();
  if (w.format != WeightFormat::fp8) return outside();
  if (w.k % (kGroup * kDepth) != 0) return refuses(Reason::multiple, "k", w.k, kGroup * kDepth);
  if (w.n_groups > kMostGroups) return refuses(Reason::at_most, "k", w.k, kMostGroups * kGroup);
  if (w.n % kPlaceRows != 0) return refuses(Reason::multiple, "n", w.n, kPlaceRows);
  return w.row_shift == 7 && w.k_shift == 7 ? takes() : refuses(Reason::scales);
}

RowClass class_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::tensor_gemm: return RowClass::tensor;
    case Kernel::mma_gemm: return RowClass::mma;
    case Kernel::exact_linear:
    case Kernel::exact_experts: return RowClass::exact;
    default: return RowClass::few;
  }
}

ClassChoice choice_of_class(const KernelChoice& choice) { return {class_of(choice.kernel), choice.meant, choice.refusal}; }

// Whether a kind of kernel takes all products of an expert layer.
template <typename Takes>
Verdict all_take(const ExpertShapes& experts, const Takes& takes_one) {
  const auto both = [&](const WeightShape& gate_up, const WeightShape& down) {
    if (gate_up.n == 0) return takes();
    const Verdict first = takes_one(gate_up);
    if (!first.takes) return first;
    if (gate_up.format != down.format) return refuses(Reason::unlike);
    return takes_one(down);
  };
  if (experts.n_active > 0) {
    const Verdict routed = both(experts.gate_up, experts.down);
    if (!routed.takes) return routed;
    if (!experts.uniform) return refuses(Reason::unlike);
  }
  return experts.has_shared ? both(experts.shared_gate_up, experts.shared_down) : takes();
}

}  // namespace

WeightShape tiles_of(const LinearDesc& desc, WeightFormat format) {
  WeightShape shape;
  shape.n = static_cast<int>(desc.n);
  shape.k = static_cast<int>(desc.k);
  shape.format = format;
  shape.gate_up = desc.gate_up;
  shape.n_tiles = desc.gate_up ? divide_up(desc.n / 2, 8) : divide_up(desc.n, 16);
  shape.n_groups = divide_up(desc.k, kGroup);
  return shape;
}

Verdict refuses_many_rows(const Facts& facts) {
  return refuses(facts.exact           ? Reason::float32_mode
                 : facts.deterministic ? Reason::deterministic
                 : facts.before_hopper ? Reason::mma_asked
                                       : Reason::no_hopper);
}

// As many tiles of W in each block as are needed to have all of W on the device at once. Small blocks start sooner, beside what
// is left of the kernel ahead; with more rows they would not fit three to a multiprocessor.
HeldBlocks held_blocks(int n_sms, const WeightShape& weight, int n_tokens) {
  using namespace limits::held;
  const int slices = weight.k / kSliceK;
  for (const int warps : {4, kSmWarps}) {
    if (warps == 4 && n_tokens > kTokens) continue;
    const int most = n_sms * (kSmWarps / warps), tiles = most > 0 ? divide_up(weight.n_tiles, most) : 0;
    if (tiles > 0 && tiles <= warps / slices) return {warps, tiles};
  }
  return {};
}

bool reads_float(int n_groups, int n_tokens) {
  return n_tokens <= kFloatTokens && kBf16Bytes * n_tokens * staged_stride(n_groups) <= kMostStagedBytes;
}

KernelChoice choose_gemm(const Facts& facts, const GemmShape& gemm, bool x_is_float) {
  Candidates kernels;
  if (kernels.tries(Kernel::early_linear, early_takes(facts, gemm)) ||
      kernels.tries(Kernel::held_linear, held_takes(facts, gemm, x_is_float)) ||
      kernels.tries(Kernel::stream_gemm, stream_takes(facts, gemm, x_is_float)) ||
      kernels.tries(Kernel::gemm_few, few_takes(gemm, x_is_float)))
    return kernels.found();
  return kernels.otherwise(Kernel::gemm_wide);
}

int tensor_splits(int n_sms, const WeightShape& weight, int n_rows) {
  if (n_rows >= kBriefRows) return 1;
  return std::clamp(std::min(n_sms / divide_up(weight.n_tiles, kSplitTiles), weight.n_groups / 2), 1, kMostSplits);
}

KernelChoice ClassChoice::with(const KernelChoice& inner) const {
  Candidates both;
  if (refusal.reason != Reason::none) both.remember(meant, refusal);
  if (inner.is_fallback()) both.remember(inner.meant, inner.refusal);
  return both.otherwise(inner.kernel);
}

ClassChoice choose_linear(const Facts& facts, const WeightShape& weight, int n_rows) {
  Candidates kernels;
  if (facts.exact) {
    kernels.remember(Kernel::gemm_few, {Reason::float32_mode});
    return choice_of_class(kernels.otherwise(Kernel::exact_linear));
  }
  if (kernels.tries(Kernel::tensor_gemm, tensor_takes(facts, weight, n_rows, kManyRows)) ||
      kernels.tries(Kernel::mma_gemm, mma_takes(facts, weight, n_rows, kMmaRows)))
    return choice_of_class(kernels.found());
  return choice_of_class(kernels.otherwise(Kernel::gemm_few));
}

ClassChoice choose_experts(const Facts& facts, const ExpertShapes& experts, int n_tokens) {
  Candidates kernels;
  const Verdict tensor =
      all_take(experts, [&](const WeightShape& w) { return tensor_takes(facts, w, n_tokens, kManyExpertRows); });
  const Verdict mma = all_take(experts, [&](const WeightShape& w) { return mma_takes(facts, w, n_tokens, kMmaExpertRows); });
  if (kernels.tries(Kernel::tensor_gemm, tensor) || kernels.tries(Kernel::mma_gemm, mma))
    return choice_of_class(kernels.found());
  if (!facts.exact && (experts.n_active == 0 || experts.uniform)) return choice_of_class(kernels.otherwise(Kernel::gemm_few));
  kernels.remember(Kernel::gemm_few, {facts.exact ? Reason::float32_mode : Reason::unlike});
  return choice_of_class(kernels.otherwise(Kernel::exact_experts));
}

KernelChoice choose_many_experts(const WeightShape& gate_up, const WeightShape& down, bool routed, int n_experts,
                                 int n_tokens) {
  using limits::narrow::kMostExperts;
  Candidates kernels;
  const auto narrow = [&] {
    if (!routed || n_tokens > kMostNarrowRows) return outside();
    const Verdict wide = narrow_takes(gate_up), back = narrow_takes(down);
    if (!wide.takes || !back.takes) return wide.takes ? back : wide;
    return n_experts <= kMostExperts ? takes() : refuses(Reason::at_most, "n_experts", n_experts, kMostExperts);
  };
  if (kernels.tries(Kernel::narrow_experts, narrow())) return kernels.found();
  return kernels.otherwise(Kernel::tensor_gemm);
}

// ---- of a layer of up to four rows -----------------------------------------------------------------------------------

bool takes_decode_layer(const Facts& facts, int n_tokens) {
  constexpr int kMostRows = 4;
  return !facts.exact && facts.sm == 90 && n_tokens >= 1 && n_tokens <= kMostRows;
}

KernelChoice choose_normed_linear(const Facts& facts, const WeightShape& weight, int n_tokens, int n_pending) {
  Candidates kernels;
  const bool alone = n_tokens <= 1 && n_pending <= 0;
  if (kernels.tries(Kernel::normed_linear, alone ? early_takes(facts, weight, 1) : outside())) return kernels.found();
  return kernels.otherwise(Kernel::ops);
}

KernelChoice choose_adding_linear(const Facts& facts, const WeightShape& weight, int n_tokens) {
  Candidates kernels;
  if (kernels.tries(Kernel::adding_linear, early_takes(facts, weight, n_tokens))) return kernels.found();
  return kernels.otherwise(Kernel::ops);
}

KernelChoice choose_few_experts(const Facts& facts, const ExpertShapes& experts, bool complete, const WeightShape& gate,
                                const RouterShape& router, int n_tokens, int n_pending) {
  using namespace limits::few;
  const WeightShape &up = experts.gate_up, &down = experts.down;
  const auto exactly = [](const char* what, int found, int wanted) { return refuses(Reason::exactly, what, found, wanted); };
  // One scale for the 8 or 16 rows and 128 of k that a warp meets at once.
  const auto in_blocks = [](const WeightShape& w) { return w.row_shift >= 4 && w.k_shift >= 7; };
  const auto verdict = [&] {
    if (n_tokens != 1 || n_pending != 0 || up.format != WeightFormat::fp8) return outside();
    if (!facts.overlap || !facts.has_few_experts) return refuses(Reason::no_hopper);
    if (!complete || !experts.uniform || !experts.has_shared) return refuses(Reason::unlike);
    if (const Verdict chooses = few_router_takes(gate, router); !chooses.takes) return chooses;
    if (down.format != WeightFormat::fp8) return refuses_format(down);
    if (!in_blocks(up) || !in_blocks(down)) return refuses(Reason::scales);
    if (up != experts.shared_gate_up || down != experts.shared_down) return refuses(Reason::unlike);
    if (up.k != kWidth) return exactly("k", up.k, kWidth);
    if (up.n != 2 * kInner || down.k != kInner) return exactly("the expert's width", down.k, kInner);
    return down.n % 16 == 0 ? takes() : refuses(Reason::multiple, "n", down.n, 16);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::few_experts, verdict())) return kernels.found();
  return kernels.otherwise(Kernel::ops);
}

}  // namespace sigmoe::cuda
