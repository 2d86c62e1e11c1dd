// The router's logits of one row by blocks that each have a tile of 16 experts and a slice of k, in few_router.cu and
// rank_router.cu: the gate's way to shared memory and its product with the normed row. How a block comes by that is theirs.
#pragma once

#include "cuda/device.cuh"
#include "cuda/ops.h"
#include "cuda/weight.h"

namespace sigmoe::cuda::few {

constexpr int kRouterThreads = 256;
constexpr int kSliceK = limits::few::kWidth / kRouterSlices;
constexpr int kGateChunks = kSliceK / chunk_k(WeightFormat::bf16), kGateVectors = kGateChunks * 32;  // of a block

// Asks for the block's part of the gate, by all its threads: there after wait_for_copies() and a barrier.
__device__ inline void load_gate(const WeightView& from, int tile, int slice, uint4 (&gate)[kGateVectors]) {
  const uint4* tiles = from.tiles + (static_cast<size_t>(tile) * kRouterSlices + slice) * kGateVectors;
#pragma unroll
  for (int i = 0; i < kGateVectors / kRouterThreads; ++i)
    copy_16_bytes(gate + threadIdx.x + i * kRouterThreads, tiles + threadIdx.x + i * kRouterThreads);
}

// What the slice x of the normed row adds to the logits of experts lane / 4 and lane / 4 + 8 of the tile, by one warp.
__device__ inline float2 logits_of_slice(const uint4 (&gate)[kGateVectors], const float (&x)[kSliceK]) {
  constexpr int kLaneK = chunk_k(WeightFormat::bf16) / 4;
  const int lane = threadIdx.x % 32, q = lane % 4;
  float low = 0.0f, high = 0.0f;
#pragma unroll 8
  for (int c = 0; c < kGateChunks; ++c) {
    const uint4 w = gate[c * 32 + lane];
    const float4 value = *reinterpret_cast<const float4*>(x + c * 4 * kLaneK + q * kLaneK);
    low += value.x * bf16_low(w.x), high += value.x * bf16_low(w.y);
    low += value.y * bf16_high(w.x), high += value.y * bf16_high(w.y);
    low += value.z * bf16_low(w.z), high += value.z * bf16_low(w.w);
    low += value.w * bf16_high(w.z), high += value.w * bf16_high(w.w);
  }
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    low += __shfl_xor_sync(kAllLanes, low, step);
    high += __shfl_xor_sync(kAllLanes, high, step);
  }
  return {low, high};
}

}  // namespace sigmoe::cuda::few
