// residual += sum over ranks of (sum over slots of addend); out = RMSNorm(residual) * weight, over several GPUs; comm.h says
// how. Bound: at few rows latency (one hop over NVLink and the launch), at many the links' bandwidth.
//
// The arithmetic is that of reduce_add_rms_norm_kernel of elementwise.cu: slots in order, then ranks in order, then the sum of
// squares by 32 warps of a row. A cluster of four blocks shares a row in the one-shot kernel, so that nine slots are read by
// four SMs, and its warps' sums are added as if they were one block's.
#include <cooperative_groups.h>

#include "cuda/comm.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kRowThreads = 1024;  // of a row, over all blocks of its cluster
constexpr int kCluster = 4;

__device__ float4 sum_slots(const float* addend, int n_slots, int64_t row, int n, int i) {
  const auto* slots = reinterpret_cast<const float4*>(addend) + row * n_slots * n + i;
  float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
  int s = 0;
  for (; s + 3 <= n_slots; s += 3) {  // three loads in flight
    const float4 a = slots[static_cast<int64_t>(s) * n], b = slots[static_cast<int64_t>(s + 1) * n],
                 c = slots[static_cast<int64_t>(s + 2) * n];
    sum = add(add(add(sum, a), b), c);
  }
  for (; s < n_slots; ++s) sum = add(sum, slots[static_cast<int64_t>(s) * n]);
  return sum;
}

__device__ inline void write_normed(const ReduceArgs& args, int64_t at, float4 value, float inverse, float4 scale) {
  const float4 normed = {value.x * inverse * scale.x, value.y * inverse * scale.y, value.z * inverse * scale.z,
                         value.w * inverse * scale.w};
  reinterpret_cast<float4*>(args.out)[at] = normed;
  if (args.twin) static_cast<uint2*>(args.twin)[at] = {pack_bf16(normed.x, normed.y), pack_bf16(normed.z, normed.w)};
}

// The sum over the 1024 threads of a row, which are those of a cluster of kBlocks; the same on all of them.
template <int kBlocks>
__device__ float row_sum(float value, float* warp_sums) {
  value = warp_sum(value);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (kBlocks == 1) {
    if (lane == 0) warp_sums[warp] = value;
    __syncthreads();
  } else {
#if __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
    const int own = static_cast<int>(cluster.block_rank()) * (kRowThreads / kBlocks / 32) + warp;
    if (lane < kBlocks) cluster.map_shared_rank(warp_sums, lane)[own] = value;
    cluster.sync();
#endif
  }
  const float sum = warp_sum(warp_sums[lane]);
  if constexpr (kBlocks == 1) __syncthreads();  // the next row writes warp_sums again
  return sum;
}

// kAtOnce: ranks whose words a thread reads at once. kVectors: float4 of a row per thread.
template <int kAtOnce, int kBlocks, int kVectors>
__global__ void __launch_bounds__(kRowThreads / kBlocks)
    one_shot_reduce_kernel(const __grid_constant__ PeerView peers, const __grid_constant__ ExchangeLayout at,
                           const __grid_constant__ ReduceArgs args) {
  __shared__ float warp_sums[32];
  const int row = blockIdx.x / kBlocks, n = args.width / 4;
  const int first = (blockIdx.x % kBlocks) * (kRowThreads / kBlocks) + threadIdx.x;
  let_next_start();
  float4 scale[kVectors], value[kVectors], own[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kRowThreads;
    if (args.out && i < n) scale[v] = reinterpret_cast<const float4*>(args.weight)[i];
  }
#if __CUDA_ARCH__ >= 900
  if constexpr (kBlocks > 1) cooperative_groups::this_cluster().sync();  // all have started: their shared memory is there
#endif
  wait_for_previous();
  auto* counter = reinterpret_cast<uint32_t*>(peers.memory[peers.rank] + at.one_shot_counters) + blockIdx.x;
  const uint32_t number = next_number(counter);
  // One source's words for this row in this call's half of the area.
  const auto words = [&](int rank, int source) {
    const size_t slot = (static_cast<size_t>(number % 2) * kOneShotRows + row) * peers.world + source;
    return reinterpret_cast<float4*>(peers.memory[rank] + at.one_shot) + slot * 2 * n;
  };
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kRowThreads;
    if (i >= n) break;
    own[v] = sum_slots(args.addend, args.n_slots, row, n, i);
    value[v] = reinterpret_cast<const float4*>(args.residual)[static_cast<int64_t>(row) * n + i];
    for (int step = 1; step < peers.world; ++step) {  // each rank begins with another one, so that no link waits
      const int rank = (peers.rank + step) % peers.world;
      float4* to = words(rank, peers.rank) + i;
      store_numbered(to, own[v].x, own[v].y, number);
      store_numbered(to + n, own[v].z, own[v].w, number);
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kRowThreads;
    if (i >= n) break;
    float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int begin = 0; begin < peers.world; begin += kAtOnce) {
      NumberedPair low[kAtOnce], high[kAtOnce];
      Patience patience;
      for (bool complete = false; !complete;) {
        complete = true;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (begin + k >= peers.world || begin + k == peers.rank) continue;
          const float4* from = words(peers.rank, begin + k) + i;
          low[k] = load_numbered(from);
          high[k] = load_numbered(from + n);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k)
          if (begin + k < peers.world && begin + k != peers.rank)
            complete = complete && low[k].is(number) && high[k].is(number);
        if (!complete && patience.give_up(peers)) break;
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int r = begin + k;
        if (r >= peers.world) break;
        const float4 part =
            r == peers.rank
                ? own[v]
                : float4{__uint_as_float(static_cast<uint32_t>(low[k].a)), __uint_as_float(static_cast<uint32_t>(low[k].b)),
                         __uint_as_float(static_cast<uint32_t>(high[k].a)), __uint_as_float(static_cast<uint32_t>(high[k].b))};
        total = r == 0 ? part : add(total, part);
      }
    }
    value[v] = add(value[v], total);
    reinterpret_cast<float4*>(args.residual)[static_cast<int64_t>(row) * n + i] = value[v];
    sum += squares(value[v]);
  }
  const float inverse = 1.0f / sqrtf(row_sum<kBlocks>(sum, warp_sums) / args.width + args.eps);
  if (threadIdx.x == 0) store_relaxed(counter, number);  // row_sum has met all threads: each has read it
  if (!args.out) return;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kRowThreads;
    if (i >= n) break;
    write_normed(args, static_cast<int64_t>(row) * n + i, value[v], inverse, scale[v]);
  }
}

// Blocks take rows in turn, the same ones on every rank: hand out all partial segments, sum the own segment of each row and
// hand it on, then finish the rows.
template <int kVectors>
__global__ void __launch_bounds__(kRowThreads)
    two_shot_reduce_kernel(const __grid_constant__ PeerView peers, const __grid_constant__ ExchangeLayout at,
                           const __grid_constant__ ReduceArgs args) {
  __shared__ float warp_sums[32];
  const int n = args.width / 4, segment = (n + peers.world - 1) / peers.world;
  const int tid = static_cast<int>(threadIdx.x), stride = static_cast<int>(gridDim.x);
  let_next_start();
  wait_for_previous();
  auto* counter = reinterpret_cast<uint32_t*>(peers.memory[peers.rank] + at.two_shot_counters) + blockIdx.x;
  const uint32_t number = next_number(counter);
  const size_t half = static_cast<size_t>(number % 2) * kTwoShotRows;
  const auto partial = [&](int rank, int row, int source) {
    return reinterpret_cast<float4*>(peers.memory[rank] + at.partial) + ((half + row) * peers.world + source) * segment;
  };
  const auto reduced = [&](int rank, int row) {
    return reinterpret_cast<float4*>(peers.memory[rank] + at.reduced) + (half + row) * n;
  };
  const auto flag = [&](int rank, size_t flags, int row, int source) {
    return reinterpret_cast<uint32_t*>(peers.memory[rank] + flags) + row * kMaxRanks + source;
  };

  for (int row = blockIdx.x; row < args.n_tokens; row += stride) {
    for (int i = tid; i < n; i += kRowThreads) {
      const int owner = i / segment;
      partial(owner, row, peers.rank)[i - owner * segment] = sum_slots(args.addend, args.n_slots, row, n, i);
    }
    __syncthreads();
    if (tid < peers.world) raise_flag(flag(tid, at.partial_flags, row, peers.rank), number);
  }
  const int begin = peers.rank * segment, mine = max(0, min(segment, n - begin));
  for (int row = blockIdx.x; row < args.n_tokens; row += stride) {
    if (tid < peers.world) wait_for_flag(peers, flag(peers.rank, at.partial_flags, row, tid), number);
    __syncthreads();
    for (int j = tid; j < mine; j += kRowThreads) {
      float4 total = load_shared(partial(peers.rank, row, 0) + j);
      for (int r = 1; r < peers.world; ++r) total = add(total, load_shared(partial(peers.rank, row, r) + j));
      for (int step = 0; step < peers.world; ++step) reduced((peers.rank + step) % peers.world, row)[begin + j] = total;
    }
    __syncthreads();
    if (tid < peers.world) raise_flag(flag(tid, at.reduced_flags, row, peers.rank), number);
  }
  for (int row = blockIdx.x; row < args.n_tokens; row += stride) {
    float4* residual = reinterpret_cast<float4*>(args.residual) + static_cast<int64_t>(row) * n;
    float4 value[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      if (const int i = tid + v * kRowThreads; i < n) value[v] = residual[i];
    if (tid < peers.world) wait_for_flag(peers, flag(peers.rank, at.reduced_flags, row, tid), number);
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = tid + v * kRowThreads;
      if (i >= n) break;
      value[v] = add(value[v], load_shared(reduced(peers.rank, row) + i));
      residual[i] = value[v];
      sum += squares(value[v]);
    }
    const float inverse = 1.0f / sqrtf(row_sum<1>(sum, warp_sums) / args.width + args.eps);
    if (!args.out) continue;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = tid + v * kRowThreads;
      if (i >= n) break;
      write_normed(args, static_cast<int64_t>(row) * n + i, value[v], inverse, reinterpret_cast<const float4*>(args.weight)[i]);
    }
  }
  if (tid == 0) store_relaxed(counter, number);
}

template <int kAtOnce, int kBlocks, int kVectors>
void launch_one_shot(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ReduceArgs& args) {
  launch_clusters(queue, kBlocks, one_shot_reduce_kernel<kAtOnce, kBlocks, kVectors>, args.n_tokens * kBlocks,
                  kRowThreads / kBlocks, 0, peers, at, args);
}

template <int kAtOnce, int kBlocks>
void launch_one_shot(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ReduceArgs& args) {
  if (args.width <= 4 * kRowThreads)
    launch_one_shot<kAtOnce, kBlocks, 1>(queue, peers, at, args);
  else
    launch_one_shot<kAtOnce, kBlocks, kMaxPeerWidth / 4 / kRowThreads>(queue, peers, at, args);
}

}  // namespace

void launch_one_shot_reduce(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ReduceArgs& args,
                            bool clusters) {
  SIGMOE_CHECK(args.n_tokens <= kOneShotRows && args.width == at.width, "more rows or wider ones than the exchange holds");
  if (!clusters)
    launch_one_shot<2, 1>(queue, peers, at, args);
  else if (peers.world <= 2)
    launch_one_shot<2, kCluster>(queue, peers, at, args);
  else
    launch_one_shot<4, kCluster>(queue, peers, at, args);
}

void launch_two_shot_reduce(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ReduceArgs& args) {
  SIGMOE_CHECK(args.n_tokens <= kTwoShotRows && args.width == at.width, "more rows or wider ones than the exchange holds");
  const int blocks = args.n_tokens < peers.n_blocks ? args.n_tokens : peers.n_blocks;
  if (args.width <= 4 * kRowThreads)
    launch(queue, two_shot_reduce_kernel<1>, blocks, kRowThreads, 0, peers, at, args);
  else
    launch(queue, two_shot_reduce_kernel<kMaxPeerWidth / 4 / kRowThreads>, blocks, kRowThreads, 0, peers, at, args);
}

}  // namespace sigmoe::cuda
