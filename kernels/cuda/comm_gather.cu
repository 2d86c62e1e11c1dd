// Rows whose columns lie on several GPUs, brought together on each: every rank reads the others' parts over the links. Bound:
// the bytes of the others' parts over a link's bandwidth; at one row, two hops of latency.
#include "cuda/comm.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kDeep = 4;  // loads that a thread has on their way

// Columns of rows: T is float4 or float, n and stride count them.
template <typename T>
__device__ inline void copy_rows(const T* from, uint32_t n, uint32_t n_rows, T* to, int64_t stride, uint32_t me,
                                 uint32_t threads) {
  const uint32_t total = n * n_rows;
  for (uint32_t first = me; first < total; first += kDeep * threads) {
    T value[kDeep];
#pragma unroll
    for (int d = 0; d < kDeep; ++d)
      if (first + d * threads < total) value[d] = load_shared(from + first + d * threads);
#pragma unroll
    for (int d = 0; d < kDeep; ++d) {
      const uint32_t i = first + d * threads;
      if (i < total) to[i / n * stride + i % n] = value[d];
    }
  }
}

// The parts are complete when the kernel starts; the flags say so to the others, and in the end that nobody reads them any
// more. The second half of the blocks copies the rank's own part meanwhile.
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const __grid_constant__ PeerView peers, const __grid_constant__ ExchangeLayout at,
                  const __grid_constant__ GatherArgs args) {
  let_next_start();
  wait_for_previous();
  const int tid = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x) % kGatherBlocks;
  const auto copy = [&](int r) {
    const uint32_t me = static_cast<uint32_t>(block * kThreads + tid), threads = kGatherBlocks * kThreads;
    int column = 0;
    for (int before = 0; before < r; ++before) column += args.widths[before];
    const int width = args.widths[r];
    if (width % 4 == 0 && column % 4 == 0 && args.total % 4 == 0)
      copy_rows(reinterpret_cast<const float4*>(args.parts[r]), width / 4, args.n_rows,
                reinterpret_cast<float4*>(args.out + column), args.total / 4, me, threads);
    else
      copy_rows(args.parts[r], width, args.n_rows, args.out + column, args.total, me, threads);
  };
  if (static_cast<int>(blockIdx.x) >= kGatherBlocks) return copy(peers.rank);

  auto* counter = reinterpret_cast<uint32_t*>(peers.memory[peers.rank] + at.gather_counters) + block;
  const uint32_t number = next_number(counter);
  const auto flag = [&](int rank, int which, int source) {
    return reinterpret_cast<uint32_t*>(peers.memory[rank] + at.gather_flags) + (which * kGatherBlocks + block) * kMaxRanks +
           source;
  };
  const auto meet = [&](int which) {
    __syncthreads();
    if (tid < peers.world) {
      raise_flag(flag(tid, which, peers.rank), number);
      wait_for_flag(peers, flag(peers.rank, which, tid), number);
    }
    __syncthreads();
  };
  meet(0);
  for (int step = 1; step < peers.world; ++step) copy((peers.rank + step) % peers.world);
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
  SIGMOE_CHECK(int64_t{args.n_rows} * args.total < int64_t{1} << 31, "rows of logits that 32 bits count");
  launch(queue, gather_kernel, 2 * kGatherBlocks, kThreads, 0, peers, at, args);
}

}  // namespace sigmoe::cuda
