// What gate-up and down of a rank's experts share: the widths that a rank can have of them.
#pragma once

#include <iterator>
#include <type_traits>
#include <utility>

#include "cuda/few_choice.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/rank_rows.h"

namespace sigmoe::cuda {

constexpr int kRankSlots = few::kActive + 1;  // the shared expert is the last

template <WeightFormat F>
constexpr int kBytesOfGroup = 16 * kGroup*(F == WeightFormat::bf16 ? 2 : 1);

// F, the routed experts' width here, and that of the shared one.
template <WeightFormat Format, int Routed, int Shared>
struct Part {
  static constexpr WeightFormat kFormat = Format;
  static constexpr int kRouted = Routed, kShared = Shared;
};

// Calls `then` with the Part of a format and widths that choose_rank_experts() takes.
template <typename Then>
void with_part(WeightFormat format, int routed, int shared, const Then& then) {
  using limits::rank::kParts;
  const auto if_part = [&]<size_t I>(std::integral_constant<size_t, I>) {
    if (kParts[I].format == format && kParts[I].routed == routed && kParts[I].shared == shared)
      then(Part<kParts[I].format, kParts[I].routed, kParts[I].shared>());
  };
  [&]<size_t... I>(std::index_sequence<I...>) { (if_part(std::integral_constant<size_t, I>()), ...); }
  (std::make_index_sequence<std::size(kParts)>());
}

}  // namespace sigmoe::cuda
