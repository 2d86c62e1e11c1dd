// What gate-up and down of a rank's experts share: the widths that a rank can have of them.
#pragma once

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

// Calls `then` with the Part of a format and widths; false when there are no kernels for them.
template <typename Then>
bool with_part(WeightFormat format, int routed, int shared, const Then& then) {
  constexpr WeightFormat fp8 = WeightFormat::fp8, bf16 = WeightFormat::bf16;
  if (format == fp8 && routed == 512 && shared == 512)
    then(Part<fp8, 512, 512>());
  else if (format == fp8 && routed == 256 && shared == 256)
    then(Part<fp8, 256, 256>());
  else if (format == fp8 && routed == 1024 && shared == 512)
    then(Part<fp8, 1024, 512>());
  else if (format == fp8 && routed == 1024 && shared == 256)
    then(Part<fp8, 1024, 256>());
  else if (format == bf16 && routed == 512 && shared == 512)
    then(Part<bf16, 512, 512>());
  else if (format == bf16 && routed == 256 && shared == 256)
    then(Part<bf16, 256, 256>());
  else
    return false;
  return true;
}

}  // namespace sigmoe::cuda
