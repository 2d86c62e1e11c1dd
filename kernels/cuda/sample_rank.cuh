// Numbers of the sampler. Weights of tokens are integers (kernels/cpu/sample.h defines them), so sums do not depend on their
// order and the token is the very one that sorting the vocabulary would pick; penalties and the draw are the CPU's, bit for
// bit. Tokens are ranked by (logit, then lower id first): one 64-bit rank each, all distinct.
#pragma once

#include <cmath>

#include "backend/backend.h"
#include "cuda/device.cuh"

namespace sigmoe::cuda::sampling {

constexpr int kThreads = 1024;  // of a block that samples
constexpr int kWarps = kThreads / 32;
constexpr double kWeightOne = 0x1p40;

// ---- definitions shared with the CPU, bit for bit: no fused multiply-add ---------------------------------------------

__device__ inline uint64_t sample_weight(float x) {
  x = x > -40.0f ? x : -40.0f;
  constexpr float kRound = 12582912.0f;
  const float shifted = __fadd_rn(__fmul_rn(x, 1.44269504f), kRound);
  const float n = __fsub_rn(shifted, kRound);
  const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
  const float power = __uint_as_float((__float_as_uint(shifted) - 0x4b400000u + 127u) << 23);
  const double fixed = __dadd_rn(__dmul_rn(static_cast<double>(__fmul_rn(p, power)), kWeightOne), 0x1p52);
  return static_cast<uint64_t>(__double_as_longlong(fixed)) - 0x4330000000000000ull;
}

__device__ inline float finite_logit(float x) {
  constexpr float kLargest = 3.402823466e38f;
  return x == x ? fminf(x, kLargest) : -INFINITY;
}

__device__ inline float penalise(float x, uint32_t count, const SampleRow& row) {
  const float repeated = x > 0.0f ? __fdiv_rn(x, row.repetition_penalty) : __fmul_rn(x, row.repetition_penalty);
  const int generated = static_cast<int>(count & 0x7fffffffu);
  const float once = generated > 0 ? row.presence_penalty : 0.0f;
  return finite_logit(
      __fsub_rn(count != 0 ? repeated : x, __fadd_rn(once, __fmul_rn(row.frequency_penalty, static_cast<float>(generated)))));
}

// floor(u * total) for the row's uniform u in [0, 1): Philox4x32-10 keyed by seed, counted by position.
__device__ inline uint64_t draw_below(uint64_t total, uint64_t seed, int32_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), 0, 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = __umulhi(0xD2511F53u, c[0]), b = __umulhi(0xCD9E8D57u, c[2]);
    const uint32_t a_low = 0xD2511F53u * c[0], b_low = 0xCD9E8D57u * c[2];
    c[0] = b ^ c[1] ^ key[0], c[1] = b_low, c[2] = a ^ c[3] ^ key[1], c[3] = a_low;
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return __umul64hi(static_cast<uint64_t>(c[1]) << 32 | c[0], total);
}

// ---- ranks -----------------------------------------------------------------------------------------------------------

__device__ inline uint64_t rank_of(float x, int id) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id);
}
__device__ inline int id_of(uint64_t rank) { return static_cast<int>(~static_cast<uint32_t>(rank)); }
__device__ inline float logit_of(uint64_t rank) {
  const uint32_t key = static_cast<uint32_t>(rank >> 32);
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ inline uint64_t warp_max(uint64_t value) {
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
__device__ inline uint64_t warp_sum(uint64_t value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Over the block, the same on every thread.
template <typename Combine>
__device__ inline uint64_t block_combine(uint64_t value, uint64_t* scratch, Combine combine) {
  value = combine(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  return combine(scratch[threadIdx.x % 32]);
}
__device__ inline uint64_t block_max(uint64_t value, uint64_t* scratch) {
  return block_combine(value, scratch, [](uint64_t v) { return warp_max(v); });
}
__device__ inline uint64_t block_total(uint64_t value, uint64_t* scratch) {
  return block_combine(value, scratch, [](uint64_t v) { return warp_sum(v); });
}
}  // namespace sigmoe::cuda::sampling
