// Rows whose columns lie on several GPUs, brought together on each: every rank reads the others' parts over the links. Bound:
// the bytes of the others' parts over a link's bandwidth; at one row, two hops of latency.
#include "cuda/comm.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kThreads = 512;

// The parts are complete when the kernel starts; the flags say so to the others, and in the end that nobody reads them any
// more.
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const __grid_constant__ PeerView peers, const __grid_constant__ ExchangeLayout at,
                  const __grid_constant__ GatherArgs args) {
  let_next_start();
  wait_for_previous();
  auto* counter = reinterpret_cast<uint32_t*>(peers.memory[peers.rank] + at.gather_counters) + blockIdx.x;
  const uint32_t number = next_number(counter);
  const auto flag = [&](int rank, int which, int source) {
    return reinterpret_cast<uint32_t*>(peers.memory[rank] + at.gather_flags) +
           (which * kGatherBlocks + blockIdx.x) * kMaxRanks + source;
  };
  const int tid = static_cast<int>(threadIdx.x);
  const auto meet = [&](int which) {
    __syncthreads();
    if (tid < peers.world) {
      raise_flag(flag(tid, which, peers.rank), number);
      wait_for_flag(peers, flag(peers.rank, which, tid), number);
    }
    __syncthreads();
  };
  meet(0);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads, me = static_cast<int64_t>(blockIdx.x) * kThreads + tid;
  int column = 0;
  for (int r = 0; r < peers.world; ++r) {
    const int width = args.widths[r];
    const float* from = args.parts[r];
    if (width % 4 == 0 && column % 4 == 0 && args.total % 4 == 0) {
      const int n = width / 4;
      for (int64_t i = me; i < static_cast<int64_t>(n) * args.n_rows; i += stride) {
        const int64_t row = i / n, c = i - row * n;
        reinterpret_cast<float4*>(args.out + row * args.total + column)[c] =
            load_shared(reinterpret_cast<const float4*>(from) + i);
      }
    } else {
      for (int64_t i = me; i < static_cast<int64_t>(width) * args.n_rows; i += stride) {
        const int64_t row = i / width, c = i - row * width;
        args.out[row * args.total + column + c] = load_shared(from + i);
      }
    }
    column += width;
  }
  meet(1);
  if (tid == 0) store_relaxed(counter, number);
}

__global__ void meeting_kernel(const __grid_constant__ PeerView peers, const __grid_constant__ ExchangeLayout at) {
  let_next_start();
  wait_for_previous();
  auto* counter = reinterpret_cast<uint32_t*>(peers.memory[peers.rank] + at.meeting_counter);
  const uint32_t number = next_number(counter);
  const int other = static_cast<int>(threadIdx.x);
  const auto flag = [&](int rank, int source) {
    return reinterpret_cast<uint32_t*>(peers.memory[rank] + at.meeting_flags) + source;
  };
  if (other < peers.world) {
    raise_flag(flag(other, peers.rank), number);
    wait_for_flag(peers, flag(peers.rank, other), number);
  }
  __syncthreads();
  if (other == 0) store_relaxed(counter, number);
}

}  // namespace

void launch_meeting(const Queue& queue, const PeerView& peers, const ExchangeLayout& at) {
  launch(queue, meeting_kernel, 1, 32, 0, peers, at);
}

void launch_gather(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const GatherArgs& args) {
  launch(queue, gather_kernel, kGatherBlocks, kThreads, 0, peers, at, args);
}

}  // namespace sigmoe::cuda
