// The router, float32 throughout: logits, sigmoid, group-limited choice, and the lists of slots by expert.
//
// Bound: latency, 2 MB of gate at few tokens. logits_kernel spreads the gate over the device, each block a tile of 16 experts
// and a slice of k; then the slices are added in order, a warp chooses for each token, and one block sorts the slots: a single
// kernel while tokens are few.
#include <algorithm>
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda {
namespace {

constexpr int kLogitWarps = 4;
constexpr int kTokenBlock = 4;  // tokens a thread works on at a time
constexpr int kHeldChunks = 8;  // of the gate, per warp, kept in registers over all tokens
constexpr int kMaxExperts = 1024;
constexpr int kMaxGroups = 32;
constexpr int kMaxActive = 32;
constexpr int kOneBlockTokens = 16;  // up to this many, one block chooses and sorts
constexpr int kSortedAtOnce = 2048;  // slots in shared memory

// ---- logits ----------------------------------------------------------------------------------------------------------

// The lane's elements of one chunk: rows g and g + 8, kLane k each.
template <WeightFormat F>
struct LaneWeights {
  static constexpr int kLane = chunk_k(F) / 4;
  float rows[2][kLane];

  __device__ explicit LaneWeights(const uint4& w) {
    const uint32_t words[2][2] = {{w.x, w.y}, {w.z, w.w}};
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (F == WeightFormat::f32) {
          rows[h][i] = __uint_as_float(words[h][i]);
        } else {
          rows[h][2 * i] = bf16_low(words[h][i]);
          rows[h][2 * i + 1] = bf16_high(words[h][i]);
        }
      }
  }
};

// partial (kRouterSlices, T, E): block (tile, slice, token block).
template <WeightFormat F, int TokenBlock>
__global__ void __launch_bounds__(kLogitWarps * 32)
    logits_kernel(const float* x, WeightView gate, int n_tokens, int tokens_per_block, float* partial) {
  constexpr int kChunks = kGroup / chunk_k(F), kLane = LaneWeights<F>::kLane;
  __shared__ float sums[kLogitWarps][TokenBlock][16];
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int tile = blockIdx.x, slice = blockIdx.y;
  const int n_chunks = gate.n_groups * kChunks;
  const int begin = n_chunks * slice / kRouterSlices + warp, end = n_chunks * (slice + 1) / kRouterSlices;
  const uint4* tiles = gate.tiles + static_cast<size_t>(tile) * n_chunks * 32 + lane;
  uint4 held[kHeldChunks];
  const auto hold = [&](int from) {
#pragma unroll
    for (int c = 0; c < kHeldChunks; ++c) {
      const int chunk = from + c * kLogitWarps;
      held[c] = chunk < end ? load_once(tiles + static_cast<size_t>(chunk) * 32) : uint4{0, 0, 0, 0};
    }
  };
  hold(begin);
  wait_for_previous();

  const bool one_hold = begin + kHeldChunks * kLogitWarps >= end, aligned = gate.k % 4 == 0;
  const int token_begin = blockIdx.z * tokens_per_block, token_end = min(n_tokens, token_begin + tokens_per_block);
  for (int first = token_begin; first < token_end; first += TokenBlock) {
    float sum[TokenBlock][2] = {};
    for (int from = begin; from < end; from += kHeldChunks * kLogitWarps) {
      if (!one_hold) hold(from);
#pragma unroll
      for (int c = 0; c < kHeldChunks; ++c) {
        const LaneWeights<F> w(held[c]);
        const int k = (from + c * kLogitWarps) * chunk_k(F) + q * kLane;
#pragma unroll
        for (int j = 0; j < TokenBlock; ++j) {
          // past the last token it is read again: a branch here would hold back the loads behind it
          const float* row = x + static_cast<int64_t>(min(first + j, token_end - 1)) * gate.k + k;
          float value[kLane];
          if (aligned && kLane == 4 && k < gate.k) {
            const float4 v = *reinterpret_cast<const float4*>(row);
            value[0] = v.x, value[1] = v.y, value[kLane - 2] = v.z, value[kLane - 1] = v.w;
          } else {
#pragma unroll
            for (int i = 0; i < kLane; ++i) value[i] = k + i < gate.k ? row[i] : 0.0f;
          }
#pragma unroll
          for (int i = 0; i < kLane; ++i) {
            sum[j][0] += value[i] * w.rows[0][i];
            sum[j][1] += value[i] * w.rows[1][i];
          }
        }
      }
    }
    __syncthreads();  // the last round's sums have been read
#pragma unroll
    for (int j = 0; j < TokenBlock; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float value = sum[j][h];
        value += __shfl_xor_sync(kAllLanes, value, 1);
        value += __shfl_xor_sync(kAllLanes, value, 2);
        if (q == 0) sums[warp][j][g + 8 * h] = value;
      }
    __syncthreads();
    for (int i = threadIdx.x; i < TokenBlock * 16; i += blockDim.x) {
      const int j = i / 16, e = tile * 16 + i % 16;
      if (first + j >= token_end || e >= gate.n) continue;
      float value = 0.0f;
      for (int w = 0; w < kLogitWarps; ++w) value += sums[w][j][i % 16];
      partial[(static_cast<int64_t>(slice) * n_tokens + first + j) * gate.n + e] = value;
    }
  }
}

// ---- choice ----------------------------------------------------------------------------------------------------------

// Larger floats have larger keys; -0 and +0 share one.
__device__ inline uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct ChooseArgs {
  const float* partial;
  const float* bias;
  RouterShape shape;
  int n_tokens;
  const int32_t* forced_ids;
  float* logits;
  Routing out;
};

// scores and choice (E) of token t, by threads first, first + step, ...
__device__ void score_token(const ChooseArgs& args, int t, float* scores, float* choice, int first, int step) {
  const int n_experts = args.shape.n_experts;
  for (int e = first; e < n_experts; e += step) {
    float parts[kRouterSlices], logit = 0.0f;
#pragma unroll
    for (int s = 0; s < kRouterSlices; ++s)
      parts[s] = args.partial[(static_cast<int64_t>(s) * args.n_tokens + t) * n_experts + e];
#pragma unroll
    for (int s = 0; s < kRouterSlices; ++s) logit += parts[s];
    args.logits[static_cast<int64_t>(t) * n_experts + e] = logit;
    scores[e] = 1.0f / (1.0f + expf(-logit));
    choice[e] = scores[e] + args.bias[e];
  }
}

// One warp chooses for token t from its scores and choice (E) in shared memory, and leaves the choice in chosen_ids (A) too
// when given. kPerLane * 32 experts at most.
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
    args.out.expert_ids[t * n_active + lane] = chosen;
    if (chosen_ids) chosen_ids[lane] = chosen;
    args.out.weights[t * n_active + lane] = score / divisor * shape.scaling;
  }
  __syncwarp();
}

// Slots by expert, in token order within one. A thread per expert reads all choices: no atomics, one order.
// `ids` (kSortedAtOnce) is shared memory, 16-byte aligned; `loaded`: it holds all slots already, -1 up to whole fours.
__device__ void sort_slots(const ChooseArgs& args, int32_t* ids, bool loaded) {
  __shared__ int32_t warp_totals[32];
  const int n_experts = args.shape.n_experts, n_slots = args.n_tokens * args.shape.n_active;
  const int e = threadIdx.x, lane = e % 32, warp = e / 32;
  // visit(i) for every slot i of this thread's expert, in order.
  const auto each_slot = [&](const auto& visit) {
    for (int first = 0; first < n_slots; first += kSortedAtOnce) {
      const int n = min(kSortedAtOnce, n_slots - first);
      if (!loaded) {
        __syncthreads();
        for (int i = threadIdx.x; i < (n + 3) / 4 * 4; i += blockDim.x) ids[i] = i < n ? args.out.expert_ids[first + i] : -1;
        __syncthreads();
      }
      for (int i = 0; i < n; i += 4) {
        const int4 four = *reinterpret_cast<const int4*>(ids + i);
        if (four.x == e) visit(first + i);
        if (four.y == e) visit(first + i + 1);
        if (four.z == e) visit(first + i + 2);
        if (four.w == e) visit(first + i + 3);
      }
    }
  };
  int count = 0;
  each_slot([&](int) { ++count; });
  int before = count;  // inclusive scan over experts
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) warp_totals[warp] = before;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += warp_totals[w];
  if (e < n_experts) {
    if (e == 0) args.out.expert_offsets[0] = 0;
    args.out.expert_offsets[e + 1] = before;
  }
  int at = before - count;
  each_slot([&](int i) { args.out.slot_order[at++] = i; });
}

// Few tokens: the whole block adds up logits, a warp per token chooses, the block sorts.
template <int kPerLane>
__global__ void __launch_bounds__(1024) choose_and_sort_kernel(const __grid_constant__ ChooseArgs args) {
  extern __shared__ float shared[];  // (T, 2, E): scores, choice
  __shared__ __align__(16) int32_t ids[kOneBlockTokens * kMaxActive + 4];
  let_next_start();
  wait_for_previous();
  const int n_slots = args.n_tokens * args.shape.n_active;
  if (threadIdx.x < 4) ids[n_slots / 4 * 4 + threadIdx.x] = -1;  // what is past the last slot stays so
  const int warp = threadIdx.x / 32, n_experts = args.shape.n_experts;
  for (int t = 0; t < args.n_tokens; ++t) {
    float* own = shared + static_cast<size_t>(t) * 2 * n_experts;
    score_token(args, t, own, own + n_experts, threadIdx.x, blockDim.x);
  }
  __syncthreads();
  for (int t = warp; t < args.n_tokens; t += blockDim.x / 32) {
    const float* own = shared + static_cast<size_t>(t) * 2 * n_experts;
    choose_token<kPerLane>(args, t, own, own + n_experts, ids + t * args.shape.n_active);
  }
  __syncthreads();
  sort_slots(args, ids, true);
}

// A warp per token, one to a block.
template <int kPerLane>
__global__ void choose_kernel(const __grid_constant__ ChooseArgs args) {
  extern __shared__ float shared[];  // (2, E)
  let_next_start();
  wait_for_previous();
  score_token(args, blockIdx.x, shared, shared + args.shape.n_experts, threadIdx.x, 32);
  __syncwarp();
  choose_token<kPerLane>(args, blockIdx.x, shared, shared + args.shape.n_experts, nullptr);
}

__global__ void __launch_bounds__(kMaxExperts) sort_kernel(const __grid_constant__ ChooseArgs args) {
  __shared__ __align__(16) int32_t ids[kSortedAtOnce];
  let_next_start();
  wait_for_previous();
  sort_slots(args, ids, false);
}

template <int kPerLane>
void launch_choose(const Queue& queue, const ChooseArgs& args) {
  const size_t token_bytes = sizeof(float) * 2 * args.shape.n_experts;
  const int sort_threads = divide_up(args.shape.n_experts, 32) * 32;
  if (args.n_tokens <= kOneBlockTokens && args.n_tokens * token_bytes <= (size_t{36} << 10)) {
    const int threads = std::max(sort_threads, args.n_tokens * 32);
    launch(queue, choose_and_sort_kernel<kPerLane>, 1, threads, args.n_tokens * token_bytes, args);
  } else {
    launch(queue, choose_kernel<kPerLane>, args.n_tokens, 32, token_bytes, args);
    launch(queue, sort_kernel, 1, sort_threads, 0, args);
  }
}

}  // namespace

bool can_route(const RouterShape& shape) {
  return shape.n_experts <= kMaxExperts && shape.n_groups <= kMaxGroups && shape.n_active <= kMaxActive;
}

void launch_route(const Queue& queue, const float* x, const WeightView& gate, const float* bias, const RouterShape& shape,
                  int n_tokens, const int32_t* forced_ids, float* partial, float* logits, const Routing& out) {
  // Few tokens: one block column reads its part of the gate once. Many: more columns, so that the device is full.
  const int token_blocks = std::min(divide_up(n_tokens, kTokenBlock), 8);
  const int tokens_per_block = divide_up(divide_up(n_tokens, token_blocks), kTokenBlock) * kTokenBlock;
  const dim3 grid(gate.n_tiles, kRouterSlices, divide_up(n_tokens, tokens_per_block));
  const auto kernel =
      gate.format == WeightFormat::f32
          ? (n_tokens == 1 ? logits_kernel<WeightFormat::f32, 1> : logits_kernel<WeightFormat::f32, kTokenBlock>)
          : (n_tokens == 1 ? logits_kernel<WeightFormat::bf16, 1> : logits_kernel<WeightFormat::bf16, kTokenBlock>);
  launch(queue, kernel, grid, kLogitWarps * 32, 0, x, gate, n_tokens, tokens_per_block, partial);

  const ChooseArgs args{partial, bias, shape, n_tokens, forced_ids, logits, out};
  if (shape.n_experts <= 256)
    launch_choose<8>(queue, args);
  else
    launch_choose<kMaxExperts / 32>(queue, args);
}

}  // namespace sigmoe::cuda
