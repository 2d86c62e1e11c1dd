// The router's choice, float32 throughout: sigmoid, group-limited choice, and the lists of slots by expert.
//
// Bound: latency. A warp adds up a token's slices of logits and chooses. Of few tokens the block that is last to be done sorts
// the slots (of many, route_lists.cu): what a chunk of tokens chose is a bitmap per expert, so a slot's place in its expert's
// list is a count of bits: one order, no matter which thread set which bit when.
#include <algorithm>
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/route.h"

namespace sigmoe::cuda {
namespace {

constexpr int kMaxExperts = 1024;
constexpr int kMaxGroups = 32;
constexpr int kMaxActive = 32;
constexpr int kChooseThreads = 256;
constexpr int kBitmapWords = 8192;  // over all experts: tokens of a chunk / 32 each

// Larger floats have larger keys; -0 and +0 share one.
__device__ inline uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct ChooseArgs {
  const float* partial;  // (kSlices, T, E); of one slice, the logits
  const float* bias;
  RouterShape shape;
  int n_tokens;
  const int32_t* forced_ids;
  float* logits;
  Routing out;
  int32_t* arrivals;  // (1), zero between launches
};

// scores and choice (E) of token t, by a warp. Lane l has experts l, l + 32, ...: the loads of many are in flight at once.
template <int kPerLane, int kSlices>
__device__ void score_token(const ChooseArgs& args, int t, const float (&bias)[kPerLane], float* scores, float* choice) {
  constexpr int kAtOnce = 8;
  const int n_experts = args.shape.n_experts, lane = threadIdx.x % 32;
#pragma unroll
  for (int first = 0; first < kPerLane; first += kAtOnce) {
    float parts[kAtOnce][kSlices];
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m)
#pragma unroll
      for (int s = 0; s < kSlices; ++s)
        if (const int e = lane + 32 * (first + m); e < n_experts)
          parts[m][s] = args.partial[(static_cast<int64_t>(s) * args.n_tokens + t) * n_experts + e];
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m)
      if (const int e = lane + 32 * (first + m); e < n_experts) {
        float logit = 0.0f;
#pragma unroll
        for (int s = 0; s < kSlices; ++s) logit += parts[m][s];
        if (kSlices > 1) args.logits[static_cast<int64_t>(t) * n_experts + e] = logit;
        scores[e] = 1.0f / (1.0f + expf(-logit));
        choice[e] = scores[e] + bias[first + m];
      }
  }
}

// One warp chooses for token t from its scores and choice (E) in shared memory, and leaves the choice in chosen_ids (A) too.
// kPerLane * 32 experts at most.
template <int kPerLane>
__device__ void choose_token(const ChooseArgs& args, int t, const float* scores, const float* choice, int32_t* chosen_ids) {
  const RouterShape& shape = args.shape;
  const int lane = threadIdx.x % 32, n_experts = shape.n_experts, n_active = shape.n_active, n_groups = shape.n_groups;
  int chosen = 0;  // lane a holds the a-th choice
  if (args.forced_ids) {
    if (lane < n_active) chosen = args.forced_ids[t * n_active + lane];
  } else {
    // A group counts with its two best experts. Lanes share the groups evenly: `lanes` of them per group.
    const int group_size = n_experts / n_groups;
    int lanes = 32;
    while (lanes * n_groups > 32) lanes /= 2;
    const int group = lane / lanes;
    float best = -INFINITY, second = -INFINITY;
    if (group < n_groups)
      for (int i = lane % lanes; i < group_size; i += lanes) {
        const float value = choice[group * group_size + i];
        second = fmaxf(second, fminf(best, value));
        best = fmaxf(best, value);
      }
    for (int step = lanes / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, step), other_second = __shfl_xor_sync(kAllLanes, second, step);
      second = fmaxf(fmaxf(second, other_second), fminf(best, other));
      best = fmaxf(best, other);
    }
    const float score = group_size > 1 ? best + second : best;
    int rank = 0;  // groups ahead of this lane's
    for (int other = 0; other < n_groups; ++other) {
      const float theirs = __shfl_sync(kAllLanes, score, other * lanes);
      if (group < n_groups && (theirs > score || (theirs == score && other < group))) ++rank;
    }
    const unsigned kept = __ballot_sync(kAllLanes, group < n_groups && rank < shape.n_groups_kept && lane % lanes == 0);

    // Then the best experts of the kept groups, one after the other; equal ones by number.
    uint32_t keys[kPerLane];
#pragma unroll
    for (int m = 0; m < kPerLane; ++m) {
      const int e = lane + 32 * m;
      keys[m] = e < n_experts && (kept >> (e / group_size * lanes) & 1) ? order_key(choice[e]) : 0;
    }
    for (int a = 0; a < n_active; ++a) {
      uint32_t top = 0;
#pragma unroll
      for (int m = 0; m < kPerLane; ++m) top = max(top, keys[m]);
      top = __reduce_max_sync(kAllLanes, top);
      int first = kMaxExperts;
#pragma unroll
      for (int m = kPerLane - 1; m >= 0; --m)
        if (keys[m] == top) first = lane + 32 * m;
      first = __reduce_min_sync(kAllLanes, first);
#pragma unroll
      for (int m = 0; m < kPerLane; ++m)
        if (lane + 32 * m == first) keys[m] = 0;
      if (lane == a) chosen = first;
    }
  }

  const float score = lane < n_active ? scores[chosen] : 0.0f;
  float sum = 0.0f;
  for (int a = 0; a < n_active; ++a) sum += __shfl_sync(kAllLanes, score, a);
  const float divisor = shape.normalise ? sum + 1e-20f : 1.0f;
  if (lane < n_active) {
    args.out.expert_ids[t * n_active + lane] = chosen_ids[lane] = chosen;
    args.out.weights[t * n_active + lane] = score / divisor * shape.scaling;
  }
  __syncwarp();
}

// Slots by expert, in token order within one; by the whole block. bits (kBitmapWords) and counts (E) are shared memory, and so
// is what this block chose, chosen_ids (T, A), when it did so for all tokens.
__device__ void sort_slots(const ChooseArgs& args, const int32_t* chosen_ids, uint32_t* bits, int32_t* counts) {
  __shared__ int32_t warp_totals[kChooseThreads / 32];
  const int n_experts = args.shape.n_experts, n_active = args.shape.n_active, n_slots = args.n_tokens * n_active;
  const int words = min(kBitmapWords / n_experts, (args.n_tokens + 31) / 32);
  int32_t* ids = reinterpret_cast<int32_t*>(bits) + words * n_experts;  // kept there by short steps
  const bool kept = words * n_experts + n_slots <= kBitmapWords;
  const auto id = [&](int i) { return kept ? ids[i] : __ldcg(&args.out.expert_ids[i]); };
  for (int e = threadIdx.x; e < n_experts; e += kChooseThreads) counts[e] = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < n_slots; i += kChooseThreads) {
    const int e = chosen_ids ? chosen_ids[i] : __ldcg(&args.out.expert_ids[i]);
    if (kept) ids[i] = e;
    atomicAdd(&counts[e], 1);
  }
  __syncthreads();

  // counts become the first slot of each list
  const int per_thread = (n_experts + kChooseThreads - 1) / kChooseThreads, begin = threadIdx.x * per_thread;
  const int end = min(begin + per_thread, n_experts);
  int total = 0;
  for (int e = begin; e < end; ++e) total += counts[e];
  int before = block_sum_before(total, warp_totals);
  if (threadIdx.x == 0) args.out.expert_offsets[0] = 0;
  for (int e = begin; e < end; ++e) {
    const int count = counts[e];
    counts[e] = before;
    before += count;
    args.out.expert_offsets[e + 1] = before;
  }

  for (int first = 0; first < args.n_tokens; first += words * 32) {
    const int first_slot = first * n_active, last_slot = min(first + words * 32, args.n_tokens) * n_active;
    for (int i = threadIdx.x; i < words * n_experts; i += kChooseThreads) bits[i] = 0;
    __syncthreads();
    for (int i = first_slot + threadIdx.x; i < last_slot; i += kChooseThreads) {
      const int t = i / n_active - first;
      atomicOr(&bits[id(i) * words + t / 32], 1u << t % 32);
    }
    __syncthreads();
    for (int i = first_slot + threadIdx.x; i < last_slot; i += kChooseThreads) {
      const int t = i / n_active - first, e = id(i);
      int at = counts[e] + __popc(bits[e * words + t / 32] & ((1u << t % 32) - 1));
      for (int w = 0; w < t / 32; ++w) at += __popc(bits[e * words + w]);
      args.out.slot_order[at] = i;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < n_experts; e += kChooseThreads)
      for (int w = 0; w < words; ++w) counts[e] += __popc(bits[e * words + w]);
  }
}

// A warp per token, `warps` of them to a block; the rest of the block's warps wait for the sort, if there is one.
template <int kPerLane, int kSlices>
__global__ void __launch_bounds__(kChooseThreads)
    choose_kernel(const __grid_constant__ ChooseArgs args, int warps, bool sorts) {
  extern __shared__ float shared[];  // per warp (2, E): scores, choice; or the bitmap and (E) counts
  __shared__ int32_t chosen_ids[kChooseThreads / 32 * kMaxActive];
  __shared__ bool last;
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_experts = args.shape.n_experts;
  float bias[kPerLane];  // a constant of the model: no need to wait for it
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) bias[m] = lane + 32 * m < n_experts ? args.bias[lane + 32 * m] : 0.0f;
  wait_for_previous();
  if (const int t = blockIdx.x * warps + warp; warp < warps && t < args.n_tokens) {
    float* own = shared + warp * 2 * n_experts;
    score_token<kPerLane, kSlices>(args, t, bias, own, own + n_experts);
    __syncwarp();
    choose_token<kPerLane>(args, t, own, own + n_experts, chosen_ids + warp * args.shape.n_active);
  }
  if (!sorts) return;
  const bool alone = gridDim.x == 1;
  if (!alone) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(args.arrivals, 1) == static_cast<int>(gridDim.x) - 1;
      if (last) *args.arrivals = 0;
      __threadfence();
    }
  }
  __syncthreads();
  if (alone || last)
    sort_slots(args, alone ? chosen_ids : nullptr, reinterpret_cast<uint32_t*>(shared),
               reinterpret_cast<int32_t*>(shared) + kBitmapWords);
}

template <int kPerLane, int kSlices>
void launch_choose(const Queue& queue, const ChooseArgs& args, bool sorts) {
  const int n_experts = args.shape.n_experts, most = n_experts <= 512 ? kChooseThreads / 32 : 4;
  // Few tokens: one block, which need not wait for others. More: two to a block, so that many SMs read the logits.
  const int warps = args.n_tokens <= most ? most : std::clamp(divide_up(args.n_tokens, 64), 2, most);
  const size_t own = sizeof(float) * warps * 2 * n_experts, bitmap = sizeof(float) * (kBitmapWords + n_experts);
  launch(queue, choose_kernel<kPerLane, kSlices>, divide_up(args.n_tokens, warps), sorts ? kChooseThreads : 32 * warps,
         sorts ? std::max(own, bitmap) : own, args, warps, sorts);
}

template <int kSlices>
void choose(const Queue& queue, const ChooseArgs& args) {
  const bool sorts = args.n_tokens < kManyRouterRows;
  if (args.shape.n_experts <= 256)
    launch_choose<8, kSlices>(queue, args, sorts);
  else
    launch_choose<kMaxExperts / 32, kSlices>(queue, args, sorts);
  if (!sorts)
    launch_route_lists(queue, args.out.expert_ids, args.n_tokens * args.shape.n_active, args.shape.n_experts, args.out);
}

}  // namespace

bool can_route(const RouterShape& shape) {
  return shape.n_experts <= kMaxExperts && shape.n_groups <= kMaxGroups && shape.n_active <= kMaxActive;
}

void launch_route(const Queue& queue, const float* x, const WeightView& gate, const float* bias, const RouterShape& shape,
                  int n_tokens, bool by_tensor, const int32_t* forced_ids, const RouterScratch& scratch, float* logits,
                  const Routing& out) {
  const bool whole = by_tensor && adds_slices(n_tokens);
  if (by_tensor)
    launch_tensor_logits(queue, x, gate, n_tokens, whole ? logits : scratch.partial);
  else
    launch_router_logits(queue, x, gate, n_tokens, scratch.partial);
  const ChooseArgs args{whole ? logits : scratch.partial, bias, shape, n_tokens, forced_ids, logits, out, scratch.arrivals};
  if (whole)
    choose<1>(queue, args);
  else
    choose<kRouterSlices>(queue, args);
}

}  // namespace sigmoe::cuda
