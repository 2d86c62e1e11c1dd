// What gate-up leaves of an expert's rows, BF16, packed in FP8 for the down product with one scale per row: only whoever sees
// the whole row knows its largest value, which then is exact, and down scales its sums once instead of once per 128 of k.
//
// Bound: memory, two bytes of a value in and one out. A warp has a row and loads all of it at once, up to kHeld groups of 128
// columns; those of wider rows are read twice, the second time from the cache.
#include "cuda/packed.cuh"
#include "cuda/quantise.h"

namespace sigmoe::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kHeld = 8;

__global__ void __launch_bounds__(kWarps * 32) pack_inner_kernel(const __nv_bfloat16* rows, int n_groups, PackedRows out) {
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32, r = blockIdx.x * kWarps + threadIdx.x / 32;  // out.stride is a multiple of kWarps
  const uint2* row = reinterpret_cast<const uint2*>(rows + static_cast<int64_t>(r) * n_groups * kGroup);
  const auto load = [&](int group) { return row[group * 32 + lane]; };
  const auto values_of = [](const uint2& v) { return float4{bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)}; };
  uint2 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) held[i] = i < n_groups ? load(i) : uint2{0, 0};
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) largest = fmaxf(largest, largest_of(values_of(held[i])));
  for (int group = kHeld; group < n_groups; ++group) largest = fmaxf(largest, largest_of(values_of(load(group))));
  const float2 scale = fp8_scale(warp_largest(largest));
  if (lane == 0) out.scales[r] = scale.x;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (i < n_groups) pack_group_fp8(out, r, i, values_of(held[i]), scale.y);
  for (int group = kHeld; group < n_groups; ++group) pack_group_fp8(out, r, group, values_of(load(group)), scale.y);
}

}  // namespace

void launch_pack_inner(const Queue& queue, const __nv_bfloat16* rows, int n_groups, const PackedRows& out) {
  launch(queue, pack_inner_kernel, out.stride / kWarps, kWarps * 32, 0, rows, n_groups, out);
}

}  // namespace sigmoe::cuda
