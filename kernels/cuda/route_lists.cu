// The slots of many tokens by expert. Bound: latency; every block reads all choices, out of L2.
//
// A block has one expert. Its warps share out the choices in order, count those of lesser experts (where the list begins) and
// their own (where a warp's part of it begins), then go over their share again and write: no order but that of the slots.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/route.h"

namespace sigmoe::cuda {
namespace {

constexpr int kMostThreads = 1024;

__global__ void __launch_bounds__(kMostThreads)
    route_lists_kernel(const int32_t* ids, int n_slots, int n_experts, Routing out) {
  __shared__ int32_t less_of[kMostThreads / 32], own_of[kMostThreads / 32];
  const int e = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
  let_next_start();
  wait_for_previous();
  constexpr int kRun = 4 * 32;  // slots of one step of a warp
  const int n_runs = (n_slots + kRun - 1) / kRun;
  const int begin = n_runs * warp / n_warps, end = n_runs * (warp + 1) / n_warps;
  const auto load = [&](int run) {  // past the last: no expert
    const int i = run * kRun + 4 * lane;
    if (i + 4 <= n_slots) return *reinterpret_cast<const int4*>(ids + i);
    return int4{i < n_slots ? ids[i] : n_experts, i + 1 < n_slots ? ids[i + 1] : n_experts,
                i + 2 < n_slots ? ids[i + 2] : n_experts, n_experts};
  };
  int less = 0, own = 0;
#pragma unroll 4
  for (int run = begin; run < end; ++run) {
    const int4 v = load(run);
    less += (v.x < e) + (v.y < e) + (v.z < e) + (v.w < e);
    own += (v.x == e) + (v.y == e) + (v.z == e) + (v.w == e);
  }
  less = __reduce_add_sync(kAllLanes, less);
  own = __reduce_add_sync(kAllLanes, own);
  if (lane == 0) less_of[warp] = less, own_of[warp] = own;
  __syncthreads();
  int at = 0;
  for (int w = 0; w < n_warps; ++w) at += less_of[w] + (w < warp ? own_of[w] : 0);
  if (threadIdx.x == 0) {
    out.expert_offsets[e] = at;
    if (e == 0) out.expert_offsets[n_experts] = n_slots;
  }
  if (own == 0) return;
  const unsigned below = (1u << lane) - 1;
#pragma unroll 4
  for (int run = begin; run < end; ++run) {
    const int4 v = load(run);
    const int here[4] = {v.x, v.y, v.z, v.w};
    int before = 0, count = 0;  // own slots of the lanes below; of all lanes
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const unsigned lanes = __ballot_sync(kAllLanes, here[c] == e);
      before += __popc(lanes & below);
      count += __popc(lanes);
    }
    int to = at + before;
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (here[c] == e) out.slot_order[to++] = run * kRun + 4 * lane + c;
    at += count;
  }
}

}  // namespace

void launch_route_lists(const Queue& queue, const int32_t* expert_ids, int n_slots, int n_experts, const Routing& out) {
  const int threads = std::clamp(divide_up(n_slots, 256) * 32, 128, kMostThreads);
  launch(queue, route_lists_kernel, n_experts, threads, 0, expert_ids, n_slots, n_experts, out);
}

}  // namespace sigmoe::cuda
