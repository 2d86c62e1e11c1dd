// The router, float32 throughout: logits, sigmoid, group-limited choice, and the lists of slots by expert.
//
// Bound: latency, 2 MB of gate at few tokens. logits_kernel spreads the gate over the device, each block a tile of 16 experts
// and a slice of k; choose_kernel adds the slices in order, gives a warp to each token, and sorts the slots, all in one block
// while tokens are few.
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda {
namespace {

constexpr int kLogitWarps = 4;
constexpr int kTokenBlock = 4;       // tokens a thread works on at a time
constexpr int kMaxExperts = 1024;
constexpr int kMaxGroups = 32;
constexpr int kMaxActive = 32;
constexpr int kChooseThreads = 1024;
constexpr int kOneBlockTokens = 128;  // up to this many, one block chooses and sorts

// ---- logits ----------------------------------------------------------------------------------------------------------

// The lane's elements of one 16-byte piece pair: rows g and g + 8, kLane k each.
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
template <WeightFormat F>
__global__ void __launch_bounds__(kLogitWarps * 32)
    logits_kernel(const float* x, WeightView gate, int n_tokens, int tokens_per_block, float* partial) {
  constexpr int kChunks = kGroup / chunk_k(F), kLane = LaneWeights<F>::kLane;
  __shared__ float sums[kLogitWarps][kTokenBlock][16];
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int tile = blockIdx.x, slice = blockIdx.y;
  const int n_chunks = gate.n_groups * kChunks;
  const int begin = n_chunks * slice / kRouterSlices, end = n_chunks * (slice + 1) / kRouterSlices;
  const uint4* tiles = gate.tiles + static_cast<size_t>(tile) * n_chunks * 32 + lane;
  wait_for_previous();

  const int token_begin = blockIdx.z * tokens_per_block, token_end = min(n_tokens, token_begin + tokens_per_block);
  for (int first = token_begin; first < token_end; first += kTokenBlock) {
    float sum[kTokenBlock][2] = {};
    for (int chunk = begin + warp; chunk < end; chunk += kLogitWarps) {
      const LaneWeights<F> w(tiles[static_cast<size_t>(chunk) * 32]);
      const int k = chunk * chunk_k(F) + q * kLane;
#pragma unroll
      for (int j = 0; j < kTokenBlock; ++j) {
        const float* row = x + static_cast<int64_t>(min(first + j, n_tokens - 1)) * gate.k;
#pragma unroll
        for (int i = 0; i < kLane; ++i) {
          const float value = k + i < gate.k ? row[k + i] : 0.0f;
          sum[j][0] += value * w.rows[0][i];
          sum[j][1] += value * w.rows[1][i];
        }
      }
    }
    __syncthreads();  // the last round's sums have been read
#pragma unroll
    for (int j = 0; j < kTokenBlock; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float value = sum[j][h];
        value += __shfl_xor_sync(kAllLanes, value, 1);
        value += __shfl_xor_sync(kAllLanes, value, 2);
        if (q == 0) sums[warp][j][g + 8 * h] = value;
      }
    __syncthreads();
    for (int i = threadIdx.x; i < kTokenBlock * 16; i += blockDim.x) {
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

// One warp chooses for token t. scores and choice (E) are the warp's shared memory.
__device__ void choose_token(const ChooseArgs& args, int t, float* scores, float* choice) {
  const RouterShape& shape = args.shape;
  const int lane = threadIdx.x % 32, n_experts = shape.n_experts, n_active = shape.n_active, n_groups = shape.n_groups;
  for (int e = lane; e < n_experts; e += 32) {
    float logit = 0.0f;
#pragma unroll
    for (int s = 0; s < kRouterSlices; ++s) logit += args.partial[(static_cast<int64_t>(s) * args.n_tokens + t) * n_experts + e];
    args.logits[static_cast<int64_t>(t) * n_experts + e] = logit;
    scores[e] = 1.0f / (1.0f + expf(-logit));
    choice[e] = scores[e] + args.bias[e];
  }
  __syncwarp();

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
    uint32_t keys[kMaxExperts / 32];
#pragma unroll
    for (int m = 0; m < kMaxExperts / 32; ++m) {
      const int e = lane + 32 * m;
      keys[m] = e < n_experts && (kept >> (e / group_size * lanes) & 1) ? order_key(choice[e]) : 0;
    }
    for (int a = 0; a < n_active; ++a) {
      uint32_t top = 0;
#pragma unroll
      for (int m = 0; m < kMaxExperts / 32; ++m) top = max(top, keys[m]);
      top = __reduce_max_sync(kAllLanes, top);
      int first = kMaxExperts;
#pragma unroll
      for (int m = kMaxExperts / 32 - 1; m >= 0; --m)
        if (keys[m] == top) first = lane + 32 * m;
      first = __reduce_min_sync(kAllLanes, first);
#pragma unroll
      for (int m = 0; m < kMaxExperts / 32; ++m)
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
    args.out.weights[t * n_active + lane] = score / divisor * shape.scaling;
  }
  __syncwarp();
}

// Slots by expert, in token order within one. A thread per expert reads all choices: no atomics, one order.
__device__ void sort_slots(const ChooseArgs& args, int32_t* warp_totals) {
  const int n_experts = args.shape.n_experts, n_slots = args.n_tokens * args.shape.n_active;
  const int e = threadIdx.x, lane = e % 32, warp = e / 32;
  const int32_t* ids = args.out.expert_ids;
  int count = 0;
  if (e < n_experts)
    for (int i = 0; i < n_slots; ++i) count += ids[i] == e;
  int before = count;  // inclusive scan over experts
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) warp_totals[warp] = before;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += warp_totals[w];
  if (e >= n_experts) return;
  if (e == 0) args.out.expert_offsets[0] = 0;
  args.out.expert_offsets[e + 1] = before;
  int at = before - count;
  for (int i = 0; i < n_slots && at < before; ++i)
    if (ids[i] == e) args.out.slot_order[at++] = i;
}

__global__ void __launch_bounds__(kChooseThreads) choose_and_sort_kernel(const __grid_constant__ ChooseArgs args, int n_warps) {
  extern __shared__ float shared[];  // n_warps x (scores, choice)
  __shared__ int32_t warp_totals[32];
  let_next_start();
  wait_for_previous();
  const int warp = threadIdx.x / 32, n_experts = args.shape.n_experts;
  float* own = shared + static_cast<size_t>(warp) * 2 * n_experts;
  if (warp < n_warps)
    for (int t = warp; t < args.n_tokens; t += n_warps) choose_token(args, t, own, own + n_experts);
  __syncthreads();
  sort_slots(args, warp_totals);
}

__global__ void choose_kernel(const __grid_constant__ ChooseArgs args) {
  extern __shared__ float shared[];
  let_next_start();
  wait_for_previous();
  const int warp = threadIdx.x / 32, t = blockIdx.x * (blockDim.x / 32) + warp, n_experts = args.shape.n_experts;
  float* own = shared + static_cast<size_t>(warp) * 2 * n_experts;
  if (t < args.n_tokens) choose_token(args, t, own, own + n_experts);
}

__global__ void __launch_bounds__(kChooseThreads) sort_kernel(const __grid_constant__ ChooseArgs args) {
  __shared__ int32_t warp_totals[32];
  let_next_start();
  wait_for_previous();
  sort_slots(args, warp_totals);
}

}  // namespace

bool can_route(const RouterShape& shape) {
  return shape.n_experts <= kMaxExperts && shape.n_groups <= kMaxGroups && shape.n_active <= kMaxActive;
}

void launch_route(const Queue& queue, const float* x, const WeightView& gate, const float* bias, const RouterShape& shape, int n_tokens,
                  const int32_t* forced_ids, float* partial, float* logits, const Routing& out) {
  // Few tokens: one block column reads its part of the gate once. Many: more columns, so that the device is full.
  const int token_blocks = std::min(divide_up(n_tokens, kTokenBlock), 8);
  const int tokens_per_block = divide_up(divide_up(n_tokens, token_blocks), kTokenBlock) * kTokenBlock;
  const dim3 grid(gate.n_tiles, kRouterSlices, divide_up(n_tokens, tokens_per_block));
  if (gate.format == WeightFormat::f32)
    launch(queue, logits_kernel<WeightFormat::f32>, grid, kLogitWarps * 32, 0, x, gate, n_tokens, tokens_per_block, partial);
  else
    launch(queue, logits_kernel<WeightFormat::bf16>, grid, kLogitWarps * 32, 0, x, gate, n_tokens, tokens_per_block, partial);

  const ChooseArgs args{partial, bias, shape, n_tokens, forced_ids, logits, out};
  const size_t warp_bytes = sizeof(float) * 2 * shape.n_experts;
  const int warps_that_fit = static_cast<int>(std::min<size_t>(32, (size_t{47} << 10) / warp_bytes));
  const int sort_threads = divide_up(shape.n_experts, 32) * 32;
  if (n_tokens <= kOneBlockTokens) {
    const int n_warps = std::min(n_tokens, warps_that_fit);
    launch(queue, choose_and_sort_kernel, 1, std::max(sort_threads, n_warps * 32), n_warps * warp_bytes, args, n_warps);
  } else {
    const int warps = std::min(4, warps_that_fit);
    launch(queue, choose_kernel, divide_up(n_tokens, warps), warps * 32, warps * warp_bytes, args);
    launch(queue, sort_kernel, 1, sort_threads, 0, args);
  }
}

}  // namespace sigmoe::cuda
