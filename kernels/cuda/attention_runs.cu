// The second kernel of decode attention (attention_decode.cu): adds up the runs that a row's keys were cut into, and packs the
// row for the product behind it where a block has it whole.
//
// Bound: latency; its bytes are in L2.
#include <type_traits>

#include "cuda/attention_runs.cuh"
#include "cuda/hopper.cuh"
#include "cuda/packed.cuh"

namespace sigmoe::cuda {
namespace {

using hopper::exp2_fast;

constexpr int kAddWarps = 8, kPackWarps = 32;

__device__ inline int runs_of(const RunsArgs& args, int t) { return args.cut.runs(args.positions[t] + 1); }

// By a warp, of which lane l gets dims l * HD / 32 and the following.
template <int HD>
__device__ inline void add_runs(const RunsArgs& args, int row, int head, int n_runs, float (&result)[HD / 32]) {
  const int lane = threadIdx.x % 32;
  const float* partial = args.partial + (static_cast<int64_t>(row) * args.n_heads + head) * args.n_runs_max * partial_width(HD);
  float2 state[2];  // maximum and total of runs lane and lane + 32
  float best = -INFINITY, total = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int run = lane + 32 * i;
    state[i] =
        run < n_runs ? *reinterpret_cast<const float2*>(partial + run * partial_width(HD) + HD) : float2{-INFINITY, 0.0f};
    best = fmaxf(best, state[i].x);
  }
  for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    state[i].x = exp2_fast(state[i].x - best);
    total += state[i].y * state[i].x;
  }
  total = warp_sum(total);
  constexpr int kLaneDims = HD / 32;
  using Dims = std::conditional_t<kLaneDims == 4, float4, float2>;
  float sum[kLaneDims] = {};
#pragma unroll 8
  for (int run = 0; run < n_runs; ++run) {
    const float weight = __shfl_sync(kAllLanes, run < 32 ? state[0].x : state[1].x, run % 32);
    const Dims dims = *reinterpret_cast<const Dims*>(partial + run * partial_width(HD) + kLaneDims * lane);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) sum[i] += reinterpret_cast<const float*>(&dims)[i] * weight;
  }
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) result[i] = sum[i] * (1.0f / total);
}

// A warp to a row and head.
template <int HD>
__global__ void __launch_bounds__(kAddWarps * 32) add_runs_kernel(const __grid_constant__ RunsArgs args) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x, lane = threadIdx.x % 32, head = blockIdx.y * kAddWarps + threadIdx.x / 32;
  const int t = args.row_ids[row];
  if (t < 0 || head >= args.n_heads) return;
  const int n_runs = runs_of(args, t);
  if (n_runs == 1) return;
  float result[HD / 32];
  add_runs<HD>(args, row, head, n_runs, result);
  float* to = args.out + (static_cast<int64_t>(t) * args.n_heads + head) * HD + HD / 32 * lane;
#pragma unroll
  for (int i = 0; i < HD / 32; ++i) to[i] = result[i];
}

// A block to a row of heads of 128, each of which is a group of k of the product behind.
__global__ void __launch_bounds__(kPackWarps * 32)
    pack_runs_kernel(const __grid_constant__ RunsArgs args, const __grid_constant__ PackedRows packed, WeightFormat format) {
  __shared__ float of_heads[kPackWarps];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x, lane = threadIdx.x % 32, head = threadIdx.x / 32;
  const int t = args.row_ids[row];
  if (t < 0) return;
  const int n_runs = runs_of(args, t);
  float4& out = reinterpret_cast<float4*>(args.out + (static_cast<int64_t>(t) * args.n_heads + head) * kGroup)[lane];
  float4 value;
  if (n_runs == 1) {
    value = out;
  } else {
    float result[4];
    add_runs<kGroup>(args, row, head, n_runs, result);
    out = value = {result[0], result[1], result[2], result[3]};
  }
  if (format == WeightFormat::bf16) return pack_group_bf16(packed, t, head, value);
  const float largest = warp_largest(largest_of(value));
  if (lane == 0) of_heads[head] = largest;
  __syncthreads();
  const float2 scale = fp8_scale(warp_largest(lane < args.n_heads ? of_heads[lane] : 0.0f));
  if (threadIdx.x == 0) packed.scales[t] = scale.x;
  pack_group_fp8(packed, t, head, value, scale.y);
}

template <int HD>
void launch_heads(const Queue& queue, const RunsArgs& args) {
  launch(queue, add_runs_kernel<HD>, dim3(args.n_rows_max, divide_up(args.n_heads, kAddWarps)), kAddWarps * 32, 0, args);
}

}  // namespace

bool packs_runs(const AttentionShape& shape) { return shape.head_dim == kGroup && shape.n_heads <= kPackWarps; }

void launch_add_runs(const Queue& queue, const RunsArgs& args, int head_dim, const PackedRows* packed, WeightFormat format) {
  if (packed) return launch(queue, pack_runs_kernel, args.n_rows_max, args.n_heads * 32, 0, args, *packed, format);
  head_dim == 128 ? launch_heads<128>(queue, args) : launch_heads<64>(queue, args);
}

}  // namespace sigmoe::cuda
