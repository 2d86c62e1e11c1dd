// Which kernel sums rows over ranks, and which kernels a layer of one row takes between them.
#include <algorithm>

#include "cuda/verdict.h"

namespace sigmoe::cuda {
namespace {

Verdict exactly(const char* what, int found, int wanted) { return refuses(Reason::exactly, what, found, wanted); }

// One scale for the 8 or 16 rows and 128 of k that a warp meets at once.
bool in_blocks(const WeightShape& w) { return w.format == WeightFormat::bf16 || (w.row_shift >= 4 && w.k_shift >= 7); }

bool has_format(const WeightShape& w) { return w.format == WeightFormat::fp8 || w.format == WeightFormat::bf16; }

}  // namespace

KernelChoice choose_sum(const Facts& facts, const RankFacts& ranks, int n_tokens, int width) {
  if (ranks.way == RankFacts::Way::host) return {Kernel::host_sum, Kernel::none, {}};
  if (ranks.way == RankFacts::Way::nccl) return {Kernel::nccl, Kernel::none, {}};
  const auto many = [&] {
    if (ranks.world != 2 || n_tokens < kManyRows) return outside();
    if (!facts.many_rows()) return refuses_many_rows(facts);
    if (!ranks.all_hopper) return refuses(Reason::no_hopper);
    if (width % kGroup != 0) return refuses(Reason::multiple, "width", width, kGroup);
    return width <= kMostNormGroups * kGroup ? takes() : refuses(Reason::at_most, "width", width, kMostNormGroups * kGroup);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::many_reduce, many())) return kernels.found();
  return kernels.otherwise(n_tokens <= best_one_shot_rows(ranks.world) ? Kernel::one_shot_reduce : Kernel::two_shot_reduce);
}

Verdict few_router_takes(const WeightShape& gate, const RouterShape& router) {
  using namespace limits::few;
  if (router.n_experts != kExperts) return exactly("n_experts", router.n_experts, kExperts);
  if (router.n_groups != kGroups) return exactly("n_groups", router.n_groups, kGroups);
  if (router.n_groups_kept != kGroupsKept) return exactly("n_groups_kept", router.n_groups_kept, kGroupsKept);
  if (router.n_active != kActive) return exactly("n_active", router.n_active, kActive);
  if (gate.format != WeightFormat::bf16) return refuses_format(gate);
  if (gate.k != kWidth) return exactly("k", gate.k, kWidth);
  return gate.n == kExperts ? takes() : exactly("n", gate.n, kExperts);
}

KernelChoice choose_rank_linear(const Facts& facts, const WeightShape& weight, bool behind_sum) {
  using namespace limits::rank;
  const auto verdict = [&] {
    if (!facts.overlap || !facts.has_rank_rows) return refuses(Reason::no_hopper);
    if (!has_format(weight)) return refuses_format(weight);
    if (!in_blocks(weight)) return refuses(Reason::scales);
    if (weight.n % 16 != 0) return refuses(Reason::multiple, "n", weight.n, 16);
    if (behind_sum) {
      if (weight.k != kWidth) return exactly("k", weight.k, kWidth);
      // the blocks of the first tiles write the residual stream
      return weight.n_tiles >= kSliceK / kGroup ? takes() : outside();
    }
    if (weight.n != kWidth) return exactly("n", weight.n, kWidth);
    return weight.k == kSliceK || weight.k == 2 * kSliceK ? takes() : exactly("k", weight.k, 2 * kSliceK);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::rank_linear, verdict())) return kernels.found();
  return kernels.otherwise(Kernel::ops);
}

KernelChoice choose_rank_experts(const Facts& facts, const ExpertShapes& experts, const WeightShape& gate,
                                 const RouterShape& router) {
  using namespace limits::rank;
  const WeightShape &up = experts.gate_up, &down = experts.down;
  const WeightShape &shared_up = experts.shared_gate_up, &shared_down = experts.shared_down;
  const auto verdict = [&] {
    if (!facts.overlap || !facts.has_rank_rows) return refuses(Reason::no_hopper);
    if (!experts.uniform || !experts.has_shared || up.n == 0) return refuses(Reason::unlike);
    if (const Verdict chooses = few_router_takes(gate, router); !chooses.takes) return chooses;
    for (const WeightShape* w : {&up, &down, &shared_up, &shared_down}) {
      if (!has_format(*w)) return refuses_format(*w);
      if (!in_blocks(*w)) return refuses(Reason::scales);
      if (w->format != up.format) return refuses(Reason::unlike);
    }
    if (up.k != kWidth) return exactly("k", up.k, kWidth);
    if (down.n != kWidth) return exactly("n", down.n, kWidth);
    const bool known = std::ranges::any_of(kParts, [&](const Part& part) {
      return part.format == up.format && part.routed == down.k && part.shared == shared_down.k;
    });
    return known && up.n == 2 * down.k && shared_up.n == 2 * shared_down.k
               ? takes()
               : exactly("the expert's width", down.k, kParts[0].routed);
  };
  Candidates kernels;
  if (kernels.tries(Kernel::rank_experts, verdict())) return kernels.found();
  return kernels.otherwise(Kernel::ops);
}

}  // namespace sigmoe::cuda
