// The router's choice for one row of 256 experts in 8 groups of 32, by every block that needs it: from the partial logits to
// experts and weights without a kernel of its own. Bound: latency; a warp does each step for two groups, and one warp takes
// the best, a maximum over lanes that each hold four candidates in order. The bits and the ties are those of route.cu.
#pragma once

#include "cuda/device.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda::few {

using limits::few::kActive, limits::few::kExperts, limits::few::kGroups, limits::few::kGroupsKept;
constexpr int kGroupExperts = kExperts / kGroups;
constexpr int kScoringThreads = 128;
static_assert(kGroupExperts == 32, "a warp has one expert of a group in each lane");

struct Choice {
  float scores[kExperts];
  alignas(16) uint32_t keys[kExperts];  // larger is better
  alignas(16) float group_scores[kGroups];
  int32_t ids[kActive];
};

// Larger floats have larger keys; -0 and +0 share one.
__device__ inline uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float of_order_key(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// The experts of thread t < kScoringThreads: t and t + 128.
__device__ inline void load_bias(const float* bias, float (&own)[2]) {
  own[0] = bias[threadIdx.x];
  own[1] = bias[threadIdx.x + kScoringThreads];
}

// Scores, keys and what the groups are worth, by the first kScoringThreads threads, from partial (kRouterSlices, 1, E); for all
// after the block's next barrier.
__device__ inline void score_experts(const float* partial, const float (&bias)[2], Choice& choice) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float parts[2][kRouterSlices];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int s = 0; s < kRouterSlices; ++s) parts[m][s] = __ldcg(partial + s * kExperts + m * kScoringThreads + threadIdx.x);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int e = m * kScoringThreads + threadIdx.x;
    float logit = 0.0f;
#pragma unroll
    for (int s = 0; s < kRouterSlices; ++s) logit += parts[m][s];
    const float score = 1.0f / (1.0f + expf(-logit));
    const uint32_t key = order_key(score + bias[m]);
    choice.scores[e] = score;
    choice.keys[e] = key;
    const uint32_t best = __reduce_max_sync(kAllLanes, key);
    const unsigned holders = __ballot_sync(kAllLanes, key == best);
    const uint32_t other = __reduce_max_sync(kAllLanes, key == best ? 0 : key);
    const uint32_t second = __popc(holders) > 1 ? best : other;
    if (lane == 0) choice.group_scores[warp + 4 * m] = of_order_key(best) + of_order_key(second);
  }
}

// The best n experts of the kept groups, best first, by one warp: lane a < n gets the a-th.
__device__ inline int choose_experts(const Choice& choice, int n) {
  const int lane = threadIdx.x % 32;
  int rank = 0;  // groups ahead of group lane % 8
  const float own = choice.group_scores[lane % kGroups];
#pragma unroll
  for (int other = 0; other < kGroups; ++other) {
    const float theirs = choice.group_scores[other];
    if (theirs > own || (theirs == own && other < lane % kGroups)) ++rank;
  }
  unsigned kept = __ballot_sync(kAllLanes, rank < kGroupsKept) & 0xff;
  // Lane l has four neighbours of the (l / 8)-th group kept: equal ones meet in the order of their numbers.
#pragma unroll
  for (int i = 0; i < kGroupsKept - 1; ++i)
    if (i < lane / 8) kept &= kept - 1;
  const int first = (__ffs(kept) - 1) * kGroupExperts + lane % 8 * 4;
  const uint4 four = *reinterpret_cast<const uint4*>(choice.keys + first);
  uint32_t key[4] = {four.x, four.y, four.z, four.w};
  int id[4] = {first, first + 1, first + 2, first + 3};
#pragma unroll
  for (int end = 3; end > 0; --end)
#pragma unroll
    for (int i = 0; i < end; ++i)
      if (key[i + 1] > key[i]) {
        const uint32_t k = key[i];
        const int d = id[i];
        key[i] = key[i + 1], id[i] = id[i + 1], key[i + 1] = k, id[i + 1] = d;
      }
  int chosen = 0;
  for (int a = 0; a < n; ++a) {
    const uint32_t top = __reduce_max_sync(kAllLanes, key[0]);
    const int winner = __ffs(__ballot_sync(kAllLanes, key[0] == top)) - 1;
    const int best = __shfl_sync(kAllLanes, id[0], winner);
    if (lane == a) chosen = best;
    if (lane == winner) {
#pragma unroll
      for (int i = 0; i < 3; ++i) key[i] = key[i + 1], id[i] = id[i + 1];
      key[3] = 0;
    }
  }
  return chosen;
}

// What the chosen experts' outputs weigh, by one warp: lane a < kActive has `chosen` and gets its weight.
__device__ inline float weigh_expert(const Choice& choice, int chosen, bool normalise, float scaling) {
  const float score = threadIdx.x % 32 < kActive ? choice.scores[chosen] : 0.0f;
  float sum = 0.0f;
#pragma unroll
  for (int a = 0; a < kActive; ++a) sum += __shfl_sync(kAllLanes, score, a);
  return score / (normalise ? sum + 1e-20f : 1.0f) * scaling;
}

}  // namespace sigmoe::cuda::few
