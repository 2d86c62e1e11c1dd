// A 16 experts by slice of k part of the router's logits of one row, by eight warps: the norm of the row, which each part makes
// for itself, and the product. Sums go in the order of route_logits.cu and reduce_add_rms_norm: the bits are the same.
#pragma once

#include "cuda/device.cuh"
#include "cuda/few_choice.cuh"
#include "cuda/few_rows.h"

namespace sigmoe::cuda::few {

constexpr int kRouteThreads = 256, kRouteWarps = kRouteThreads / 32;
constexpr int kRouteWidth = 4096, kRouteSliceK = kRouteWidth / kRouterSlices;
constexpr int kRouteChunks = kRouteSliceK / chunk_k(WeightFormat::bf16), kRouteLaneK = chunk_k(WeightFormat::bf16) / 4;
constexpr int kRouteVectors =
    kRouteWidth / 4 / kRouteThreads;  // float4 of the row that a thread has: of 128 floats i the i-th, i + 8-th, ...
constexpr int kRoutePieces = kRouteSliceK / 128;  // of a slice, one to a warp
constexpr int kRouteTiles = kExperts / 16, kRouteParts = kRouteTiles * kRouterSlices;
static_assert(kRouteVectors * kRouteWarps == 32);

struct RouteShared {
  alignas(16) uint4 gate[kRouteChunks * 32];
  alignas(16) float x[kRouteSliceK];
  float scratch[32];
};

struct RouteArgs {
  const float *residual, *norm_weight;
  float eps;
  WeightView gate;
  float* partial;
  __nv_bfloat16* normed;
};

// Of kRouteThreads threads, the block's first.
struct RoutePart {
  int tile, slice;
  float4 weight = {};

  __device__ int piece() const {
    return static_cast<int>(threadIdx.x) / 32 - slice * kRoutePieces % kRouteWarps;
  }  // of the slice
  __device__ bool norms() const { return piece() >= 0 && piece() < kRoutePieces; }
  __device__ int piece_at() const { return slice * (kRouteSliceK / 4) + piece() * 32 + threadIdx.x % 32; }

  // What is known before the residual is.
  __device__ void start(const RouteArgs& args, RouteShared& shared) {
    const uint4* tiles = args.gate.tiles + (static_cast<size_t>(tile) * kRouterSlices + slice) * kRouteChunks * 32;
#pragma unroll
    for (int i = 0; i < kRouteChunks * 32 / kRouteThreads; ++i)
      copy_16_bytes(shared.gate + threadIdx.x + i * kRouteThreads, tiles + threadIdx.x + i * kRouteThreads);
    if (norms()) weight = reinterpret_cast<const float4*>(args.norm_weight)[piece_at()];
  }

  static __device__ void sync() { asm volatile("bar.sync 1, %0;" ::"n"(kRouteThreads) : "memory"); }

  __device__ void finish(const RouteArgs& args, RouteShared& shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float4 v[kRouteVectors], own = {};
    if (norms()) own = reinterpret_cast<const float4*>(args.residual)[piece_at()];
#pragma unroll
    for (int i = 0; i < kRouteVectors; ++i)
      v[i] = reinterpret_cast<const float4*>(args.residual)[threadIdx.x + i * kRouteThreads];
#pragma unroll
    for (int i = 0; i < kRouteVectors; ++i) {
      const float sum = warp_sum(v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w);
      if (lane == 0) shared.scratch[warp + kRouteWarps * i] = sum;
    }
    sync();
    const float inverse = 1.0f / sqrtf(warp_sum(shared.scratch[lane]) / kRouteWidth + args.eps);
    if (norms()) {
      const float4 normed = {own.x * inverse * weight.x, own.y * inverse * weight.y, own.z * inverse * weight.z,
                             own.w * inverse * weight.w};
      reinterpret_cast<float4*>(shared.x)[piece() * 32 + lane] = normed;
      if (tile == 0)
        reinterpret_cast<uint2*>(args.normed)[piece_at()] = {pack_bf16(normed.x, normed.y), pack_bf16(normed.z, normed.w)};
    }
    wait_for_copies();
    sync();
    if (warp > 0) return;
    const int g = lane / 4, q = lane % 4;
    float low = 0.0f, high = 0.0f;
#pragma unroll 8
    for (int c = 0; c < kRouteChunks; ++c) {
      const uint4 w = shared.gate[c * 32 + lane];
      const float4 value = *reinterpret_cast<const float4*>(shared.x + c * 4 * kRouteLaneK + q * kRouteLaneK);
      low += value.x * bf16_low(w.x), high += value.x * bf16_low(w.z);
      low += value.y * bf16_high(w.x), high += value.y * bf16_high(w.z);
      low += value.z * bf16_low(w.y), high += value.z * bf16_low(w.w);
      low += value.w * bf16_high(w.y), high += value.w * bf16_high(w.w);
    }
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
      low += __shfl_xor_sync(kAllLanes, low, step);
      high += __shfl_xor_sync(kAllLanes, high, step);
    }
    float* to = args.partial + slice * args.gate.n + tile * 16 + g;
    if (q == 0) to[0] = low, to[8] = high;
  }
};

// Arrives for this block at `meeting` and waits until n blocks have; all threads of the block. What blocks wrote before is
// visible after. A wait of about two seconds traps.
__device__ inline void meet_blocks(unsigned long long* meeting, unsigned n, bool arrives) {
  __syncthreads();
  if (threadIdx.x == 0) {
    if (arrives) {
      __threadfence();
      atomicAdd(meeting, 1ull);
    }
    const volatile unsigned long long* count = meeting;
    const long long start = clock64();
    while (*count < n)
      if (clock64() - start > 4'000'000'000ll) __trap();
    __threadfence();
  }
  __syncthreads();
}

}  // namespace sigmoe::cuda::few
