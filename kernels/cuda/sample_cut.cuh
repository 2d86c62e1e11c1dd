// Where to cut a row's candidates, without sorting the vocabulary. top-k, top-p and the draw each ask for the largest rank at
// which a sum from the top reaches a target. cut_at() narrows the vocabulary to the bin of a histogram over logits that holds
// it, sorts that bin's few candidates in shared memory and scans them; a bin of too many equal logits is cut digit by digit
// instead.
#pragma once

#include "cuda/sample_rank.cuh"

namespace sigmoe::cuda::sampling {

constexpr int kMaxListed = 2048;  // candidates in shared memory
constexpr int kGroups = 8192;     // of a row's vectors: those that share their number modulo this
constexpr int kGroupsEach = kGroups / kThreads;
constexpr int kBins = 2048;
constexpr float kBinsPerNat = 64.0f;  // bins cover 32 nats below the best token: weights reach zero before that

struct Shared {
  uint64_t scratch[kWarps];
  unsigned long long histogram[kBins];
  uint32_t members[kBins];
  uint64_t answer, above;
  uint32_t n_bin, n_gathered;
  uint64_t candidates[kMaxListed], narrowed[kMaxListed];  // ranks, sorted downwards
};

// One row's candidates: the tokens of logits x (V) after penalties with rank >= least, or a sorted list of their ranks.
struct Row {
  const float* x;
  int n;
  uint64_t least;
  float highest, temperature;
  const uint64_t* list = nullptr;

  __device__ float exponent(uint64_t rank) const { return __fdiv_rn(__fsub_rn(logit_of(rank), highest), temperature); }
  __device__ uint64_t weight(uint64_t rank) const { return sample_weight(exponent(rank)); }
  // Grows as ranks fall.
  __device__ int bin(uint64_t rank) const { return static_cast<int>(fminf(-exponent(rank) * kBinsPerNat, kBins - 1.0f)); }

  // The rank at place i of n, or 0 when it is no candidate.
  __device__ uint64_t at(int i) const {
    if (i >= n) return 0;
    const uint64_t rank = list ? list[i] : rank_of(x[i], i);
    return rank >= least ? rank : 0;
  }
};

// Sorts the first n of at most kMaxListed ranks downwards; bitonic, padded with zeros.
__device__ inline void sort_ranks(uint64_t* ranks, int n) {
  int padded = 2;
  while (padded < n) padded *= 2;
  for (int i = n + static_cast<int>(threadIdx.x); i < padded; i += kThreads) ranks[i] = 0;
  for (int run = 2; run <= padded; run *= 2)
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < padded / 2; i += kThreads) {
        const int low = 2 * (i & -step) + (i & (step - 1)), high = low + step;  // step is a power of two
        const bool down = (low & run) == 0;
        const uint64_t a = ranks[low], b = ranks[high];
        if ((a < b) == down) ranks[low] = b, ranks[high] = a;
      }
    }
  __syncthreads();
}

// The candidates that pass `wanted`, listed in `to`; at most kMaxListed of them.
template <typename Wanted>
__device__ inline Row gather(const Row& from, const Wanted& wanted, uint64_t* to, Shared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared.n_gathered = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < from.n; i += kThreads) {
    const uint64_t rank = from.at(i);
    if (rank > 0 && wanted(rank)) to[atomicAdd(&shared.n_gathered, 1u)] = rank;
  }
  __syncthreads();
  Row row = from;
  row.list = to;
  row.n = static_cast<int>(shared.n_gathered);
  sort_ranks(to, row.n);
  return row;
}

// Narrows the row to its `top_k` best: the top_k-th best of the threads' best ranks bounds them from below, so few others pass.
// Where groups of a row are known by their best, only those that reach the bound are read. False, and the row as it was, where
// a list has no room for all that pass.
__device__ inline bool keep_best(Row& row, int top_k, uint64_t own_best, const uint64_t* group_bests, Shared& shared) {
  if (top_k > kThreads) return false;
  __syncthreads();
  shared.narrowed[threadIdx.x] = own_best;
  if (threadIdx.x == 0) shared.n_gathered = 0;
  sort_ranks(shared.narrowed, kThreads);
  const uint64_t bound = max(shared.narrowed[top_k - 1], row.least);
  const auto consider = [&](int i) {
    const uint64_t rank = row.at(i);
    if (rank == 0 || rank < bound) return;
    const uint32_t place = atomicAdd(&shared.n_gathered, 1u);
    if (place < kMaxListed) shared.candidates[place] = rank;
  };
  if (group_bests) {
    uint64_t bests[kGroupsEach];
#pragma unroll
    for (int i = 0; i < kGroupsEach; ++i) bests[i] = group_bests[i * kThreads + threadIdx.x];
#pragma unroll
    for (int i = 0; i < kGroupsEach; ++i) {
      if (bests[i] < bound) continue;
#pragma unroll 4
      for (int id = (i * kThreads + threadIdx.x) * 4; id < row.n; id += kGroups * 4)
        for (int e = 0; e < 4; ++e) consider(id + e);
    }
  } else {
#pragma unroll 4
    for (int i = threadIdx.x; i < row.n; i += kThreads) consider(i);
  }
  __syncthreads();
  const int n = static_cast<int>(shared.n_gathered);
  if (n > kMaxListed) return false;
  sort_ranks(shared.candidates, n);
  row.list = shared.candidates;
  row.n = min(n, top_k);
  return true;
}

// cut_at within a sorted list: the first place at which base + the sum so far reaches target.
template <typename Mass>
__device__ inline uint64_t cut_list(const Row& row, uint64_t base, uint64_t target, const Mass& mass, uint64_t& above,
                                    Shared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int first = 0; first < row.n; first += kThreads) {
    const uint64_t rank = row.at(first + static_cast<int>(threadIdx.x));
    const uint64_t own = rank > 0 ? mass(rank) : 0;
    uint64_t sum = own;  // inclusive, over the warp, then over the block
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == 31) shared.scratch[warp] = sum;
    __syncthreads();
    uint64_t before = base;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += shared.scratch[w];
      base += shared.scratch[w];
    }
    sum += before;
    if (rank > 0 && sum >= target && sum - own < target) shared.answer = rank, shared.above = sum - own;
    if (base >= target) break;
  }
  __syncthreads();
  above = shared.above;
  return shared.answer;
}

// The bin at which base + the sum over bins from the first reaches target; `above` gets the sum before it.
__device__ inline int cut_bins(int n_bins, uint64_t base, uint64_t target, uint64_t& above, Shared& shared) {
  __syncthreads();
  if (threadIdx.x < 32) {
    const int each = n_bins / 32, lane = threadIdx.x;
    uint64_t own = 0;
    for (int i = 0; i < each; ++i) own += shared.histogram[lane * each + i];
    uint64_t sum = own;
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    sum += base - own;
    if (sum < target && sum + own >= target) {
      int bin = lane * each;
      while (sum + shared.histogram[bin] < target) sum += shared.histogram[bin++];
      shared.answer = bin;
      shared.above = sum;
      shared.n_bin = shared.members[bin];
    }
  }
  __syncthreads();
  above = shared.above;
  return static_cast<int>(shared.answer);
}

__device__ inline void clear_bins(int n_bins, Shared& shared) {
  __syncthreads();
  for (int i = threadIdx.x; i < n_bins; i += kThreads) shared.histogram[i] = shared.members[i] = 0;
  __syncthreads();
}

// For more candidates in one bin than a list holds: digits of 8 bits, the leading ones first.
template <typename Mass>
__device__ inline uint64_t cut_digits(const Row& row, uint64_t target, const Mass& mass, uint64_t& above, Shared& shared) {
  uint64_t prefix = 0;
  above = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    clear_bins(256, shared);
    for (int i = threadIdx.x; i < row.n; i += kThreads) {
      const uint64_t rank = row.at(i);
      if (rank > 0 && (shift == 56 || rank >> (shift + 8) == prefix >> (shift + 8)))
        atomicAdd(&shared.histogram[255 - (rank >> shift & 255)], mass(rank));
    }
    prefix |= static_cast<uint64_t>(255 - cut_bins(256, above, target, above, shared)) << shift;
  }
  return prefix;
}

// The largest rank c with sum of mass over ranks >= c reaching `target` (1 <= target <= the sum over all candidates); `above`
// gets the sum over ranks > c. mass(rank) is 1 for counting, else the token's weight.
template <typename Mass>
__device__ inline uint64_t cut_at(const Row& row, uint64_t target, const Mass& mass, uint64_t& above, Shared& shared) {
  if (row.list) return cut_list(row, 0, target, mass, above, shared);
  clear_bins(kBins, shared);
#pragma unroll 4
  for (int i = threadIdx.x; i < row.n; i += kThreads) {
    const uint64_t rank = row.at(i);
    if (rank == 0) continue;
    const int bin = row.bin(rank);
    atomicAdd(&shared.histogram[bin], mass(rank));
    atomicAdd(&shared.members[bin], 1u);
  }
  const int bin = cut_bins(kBins, 0, target, above, shared);
  if (shared.n_bin > kMaxListed) return cut_digits(row, target, mass, above, shared);
  const Row few = gather(
      row, [&](uint64_t rank) { return row.bin(rank) == bin; }, shared.narrowed, shared);
  return cut_list(few, above, target, mass, above, shared);
}
}  // namespace sigmoe::cuda::sampling
