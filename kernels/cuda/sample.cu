// The sampler: one block per chain of rows, after many blocks have penalised the logits; no sorting. Weights of tokens are
// integers (kernels/cpu/sample.h defines them), so sums do not depend on their order and the token is the very one that sorting
// the vocabulary would pick.
//
// Tokens are ranked by (logit, then lower id first): one 64-bit rank each, all distinct. top-k, top-p and the draw each ask
// for the largest rank at which a sum from the top reaches a target. cut_at() narrows the vocabulary to the bin of a histogram
// over logits that holds it, sorts that bin's few candidates in shared memory and scans them; a bin of too many equal logits
// is cut digit by digit instead. Bound: a greedy row reads its logits once.
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 4;        // vectors of logits in flight per thread
constexpr int kMaxListed = 2048;  // candidates in shared memory
constexpr int kGroups = 8192;     // of a row's vectors: those that share their number modulo this
constexpr int kGroupsEach = kGroups / kThreads;
constexpr int kPenaliseThreads = 256;
constexpr double kWeightOne = 0x1p40;

// ---- definitions shared with the CPU, bit for bit: no fused multiply-add ---------------------------------------------

__device__ uint64_t sample_weight(float x) {
  x = x > -40.0f ? x : -40.0f;
  constexpr float kRound = 12582912.0f;
  const float shifted = __fadd_rn(__fmul_rn(x, 1.44269504f), kRound);
  const float n = __fsub_rn(shifted, kRound);
  const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
  const float power = __uint_as_float((__float_as_uint(shifted) - 0x4b400000u + 127u) << 23);
  const double fixed = __dadd_rn(__dmul_rn(static_cast<double>(__fmul_rn(p, power)), kWeightOne), 0x1p52);
  return static_cast<uint64_t>(__double_as_longlong(fixed)) - 0x4330000000000000ull;
}

__device__ float finite_logit(float x) {
  constexpr float kLargest = 3.402823466e38f;
  return x == x ? fminf(x, kLargest) : -INFINITY;
}

__device__ float penalise(float x, uint32_t count, const SampleRow& row) {
  const float repeated = x > 0.0f ? __fdiv_rn(x, row.repetition_penalty) : __fmul_rn(x, row.repetition_penalty);
  const int generated = static_cast<int>(count & 0x7fffffffu);
  const float once = generated > 0 ? row.presence_penalty : 0.0f;
  return finite_logit(
      __fsub_rn(count != 0 ? repeated : x, __fadd_rn(once, __fmul_rn(row.frequency_penalty, static_cast<float>(generated)))));
}

// floor(u * total) for the row's uniform u in [0, 1): Philox4x32-10 keyed by seed, counted by position.
__device__ uint64_t draw_below(uint64_t total, uint64_t seed, int32_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), 0, 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = __umulhi(0xD2511F53u, c[0]), b = __umulhi(0xCD9E8D57u, c[2]);
    const uint32_t a_low = 0xD2511F53u * c[0], b_low = 0xCD9E8D57u * c[2];
    c[0] = b ^ c[1] ^ key[0], c[1] = b_low, c[2] = a ^ c[3] ^ key[1], c[3] = a_low;
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return __umul64hi(static_cast<uint64_t>(c[1]) << 32 | c[0], total);
}

// ---- ranks -----------------------------------------------------------------------------------------------------------

__device__ uint64_t rank_of(float x, int id) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id);
}
__device__ int id_of(uint64_t rank) { return static_cast<int>(~static_cast<uint32_t>(rank)); }
__device__ float logit_of(uint64_t rank) {
  const uint32_t key = static_cast<uint32_t>(rank >> 32);
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ uint64_t warp_max(uint64_t value) {
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
__device__ uint64_t warp_sum(uint64_t value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Over the block, the same on every thread.
template <typename Combine>
__device__ uint64_t block_combine(uint64_t value, uint64_t* scratch, Combine combine) {
  value = combine(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  return combine(scratch[threadIdx.x % 32]);
}
__device__ uint64_t block_max(uint64_t value, uint64_t* scratch) {
  return block_combine(value, scratch, [](uint64_t v) { return warp_max(v); });
}
__device__ uint64_t block_total(uint64_t value, uint64_t* scratch) {
  return block_combine(value, scratch, [](uint64_t v) { return warp_sum(v); });
}

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
__device__ void sort_ranks(uint64_t* ranks, int n) {
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
__device__ Row gather(const Row& from, const Wanted& wanted, uint64_t* to, Shared& shared) {
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
__device__ bool keep_best(Row& row, int top_k, uint64_t own_best, const uint64_t* group_bests, Shared& shared) {
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
__device__ uint64_t cut_list(const Row& row, uint64_t base, uint64_t target, const Mass& mass, uint64_t& above,
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
__device__ int cut_bins(int n_bins, uint64_t base, uint64_t target, uint64_t& above, Shared& shared) {
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

__device__ void clear_bins(int n_bins, Shared& shared) {
  __syncthreads();
  for (int i = threadIdx.x; i < n_bins; i += kThreads) shared.histogram[i] = shared.members[i] = 0;
  __syncthreads();
}

// For more candidates in one bin than a list holds: digits of 8 bits, the leading ones first.
template <typename Mass>
__device__ uint64_t cut_digits(const Row& row, uint64_t target, const Mass& mass, uint64_t& above, Shared& shared) {
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
__device__ uint64_t cut_at(const Row& row, uint64_t target, const Mass& mass, uint64_t& above, Shared& shared) {
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

// ---- a row -----------------------------------------------------------------------------------------------------------

struct RowOptions {
  bool biased, bans, penalties, greedy;
  const uint32_t* mask;

  __device__ RowOptions(const SampleArgs& args, const SampleRow& sample) {
    biased = sample.bias_end > sample.bias_begin;
    mask = sample.mask_row < 0 ? nullptr : args.masks + static_cast<int64_t>(sample.mask_row) * mask_words(args.vocab_size);
    bans = sample.ban_end > sample.ban_begin || mask;
    penalties = sample.slot >= 0 &&
                (sample.repetition_penalty != 1.0f || sample.presence_penalty != 0.0f || sample.frequency_penalty != 0.0f);
    greedy = !(sample.temperature > 0.0f) && !biased && !bans;  // then x is not needed
  }
};

// Vectors of four logits first, first + step, ... of a row, penalised and finite, to x unless greedy; the best rank of them.
__device__ uint64_t penalise_vectors(const RowOptions& options, const SampleRow& sample, const float* logits,
                                     const uint32_t* counts, int n, int first, int step, float* x) {
  float best_value = -INFINITY;
  int best_id = -1;
  for (int base = first * 4; base < n; base += step * 4 * kUnroll) {
    float4 values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int id = base + u * step * 4;
      if (id + 4 <= n && n % 4 == 0)
        values[u] = *reinterpret_cast<const float4*>(logits + id);
      else
        values[u] = {id < n ? logits[id] : 0.0f, id + 1 < n ? logits[id + 1] : 0.0f, id + 2 < n ? logits[id + 2] : 0.0f,
                     id + 3 < n ? logits[id + 3] : 0.0f};
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int id = base + u * step * 4;
      float four[4] = {values[u].x, values[u].y, values[u].z, values[u].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (id + i >= n) continue;
        four[i] = finite_logit(four[i]);
        if (options.penalties && !options.biased) four[i] = penalise(four[i], counts[id + i], sample);
        if (four[i] > best_value || best_id < 0) best_value = four[i], best_id = id + i;  // ids rise: the first of equals stays
      }
      if (options.greedy) continue;
      if (id + 4 <= n && n % 4 == 0)
        *reinterpret_cast<float4*>(x + id) = {four[0], four[1], four[2], four[3]};
      else
        for (int i = 0; i < 4 && id + i < n; ++i) x[id + i] = four[i];
    }
  }
  return best_id < 0 ? 0 : rank_of(best_value, best_id);
}

// group_bests: what penalise_kernel left for the row, or null.
__device__ int choose(const SampleArgs& args, const SampleRow& sample, const float* logits, const uint32_t* counts, float* x,
                      const uint64_t* group_bests, Shared& shared) {
  const int n = args.vocab_size;
  const RowOptions options(args, sample);
  const auto [biased, bans, penalties, greedy, mask] = options;
  const auto masked = [mask = options.mask](int id) { return mask && !(mask[id / 32] >> (id % 32) & 1); };
  uint64_t best = 0;
  if (group_bests) {
#pragma unroll
    for (int i = 0; i < kGroupsEach; ++i) best = max(best, group_bests[i * kThreads + threadIdx.x]);
  } else {
    best = penalise_vectors(options, sample, logits, counts, n, threadIdx.x, kThreads, x);
  }
  if (biased) {
    __syncthreads();
    if (threadIdx.x == 0)  // entries may name a token twice: one thread, in order
      for (int i = sample.bias_begin; i < sample.bias_end; ++i) {
        float& value = x[args.bias_ids[i]];
        value = finite_logit(__fadd_rn(value, args.bias_values[i]));
      }
    __syncthreads();
    if (penalties)
      for (int id = threadIdx.x; id < n; id += kThreads) x[id] = penalise(x[id], counts[id], sample);
  }
  if (bans) {
    __syncthreads();
    if (mask)
      for (int id = threadIdx.x; id < n; id += kThreads)
        if (masked(id)) x[id] = -INFINITY;
    __syncthreads();
    for (int i = sample.ban_begin + threadIdx.x; i < sample.ban_end; i += kThreads) x[args.ban_ids[i]] = -INFINITY;
  }
  if (biased || bans) {
    group_bests = nullptr;
    __syncthreads();
    best = 0;
    for (int id = threadIdx.x; id < n; id += kThreads) best = max(best, rank_of(x[id], id));
  }
  const uint64_t own_best = best;
  best = block_max(best, shared.scratch);
  Row row{x, n, 1, logit_of(best), sample.temperature};
  if (isinf(row.highest)) {  // nothing can be sampled: the lowest id that is not banned, else 0
    uint64_t free = 0;
    for (int id = threadIdx.x; id < n; id += kThreads) {
      bool banned = masked(id);
      for (int i = sample.ban_begin; i < sample.ban_end; ++i) banned |= args.ban_ids[i] == id;
      if (!banned) free = max(free, static_cast<uint64_t>(~static_cast<uint32_t>(id)));
    }
    free = block_max(free, shared.scratch);
    return free ? id_of(free) : 0;
  }
  if (!(sample.temperature > 0.0f)) return id_of(best);

  __syncthreads();  // x is whole
  const auto one = [](uint64_t) { return uint64_t{1}; };
  const auto weight = [&](uint64_t rank) { return row.weight(rank); };
  uint64_t above;
  if (sample.min_p > 0.0f) {
    const float least = fminf(row.highest, __fadd_rn(row.highest, __fmul_rn(sample.temperature, logf(sample.min_p))));
    row.least = max(rank_of(least, 0) >> 32 << 32, uint64_t{1});  // every id at that logit
  }
  if (sample.top_k > 0 && sample.top_k < n && !keep_best(row, sample.top_k, own_best, group_bests, shared)) {
    uint64_t count = n;
    if (sample.min_p > 0.0f) {
      count = 0;
      for (int i = threadIdx.x; i < n; i += kThreads) count += row.at(i) > 0;
      count = block_total(count, shared.scratch);
    }
    if (static_cast<uint64_t>(sample.top_k) < count) {
      row.least = cut_at(row, sample.top_k, one, above, shared);
      count = sample.top_k;
    }
    if (count <= kMaxListed)
      row = gather(
          row, [](uint64_t) { return true; }, shared.candidates, shared);
  }
  uint64_t total = 0;
  for (int i = threadIdx.x; i < row.n; i += kThreads)
    if (const uint64_t rank = row.at(i)) total += row.weight(rank);
  total = block_total(total, shared.scratch);
  if (sample.top_p < 1.0f) {
    const auto needed = static_cast<uint64_t>(ceil(__dmul_rn(fmaxf(sample.top_p, 0.0f), static_cast<double>(total))));
    row.least = cut_at(row, min(max(needed, uint64_t{1}), total), weight, above, shared);
    total = above + row.weight(row.least);
  }
  return id_of(cut_at(row, draw_below(total, sample.seed, sample.position) + 1, weight, above, shared));
}

// One row, by the whole block; returns its token, the same on every thread.
__device__ int sample_one(const SampleArgs& args, int64_t r, const SampleRow& sample, float* penalised,
                          const uint64_t* group_bests, Shared& shared) {
  const int n = args.vocab_size;
  const float* logits = args.logits + r * n;
  uint32_t* counts = sample.slot < 0 ? nullptr : args.counts + static_cast<int64_t>(sample.slot) * n;
  float* x = penalised + r * n;
  const int token =
      sample.forced_token >= 0 ? sample.forced_token : choose(args, sample, logits, counts, x, group_bests, shared);
  __syncthreads();
  if (threadIdx.x == 0) {
    args.tokens[r] = token;
    if (counts) ++counts[token];
    args.logprobs[r] = 0.0f;
  }
  for (int i = threadIdx.x; i < kMaxLogprobs; i += kThreads) {
    args.top_ids[r * kMaxLogprobs + i] = -1;
    args.top_logprobs[r * kMaxLogprobs + i] = 0.0f;
  }
  if (sample.n_logprobs < 0) return token;

  uint64_t below = ~uint64_t{0}, best = 0;
  for (int id = threadIdx.x; id < n; id += kThreads) best = max(best, rank_of(finite_logit(logits[id]), id));
  best = block_max(best, shared.scratch);
  const float highest = finite_logit(logits[id_of(best)]);
  uint64_t total = 0;
  for (int id = threadIdx.x; id < n; id += kThreads) total += sample_weight(__fsub_rn(finite_logit(logits[id]), highest));
  total = block_total(total, shared.scratch);
  const float log_total = static_cast<float>(log(static_cast<double>(total) / kWeightOne));
  const auto logprob = [&](float value) {
    return isinf(highest) ? -logf(static_cast<float>(n)) : (value - highest) - log_total;
  };
  if (threadIdx.x == 0) args.logprobs[r] = logprob(finite_logit(logits[token]));
  for (int i = 0; i < min(min(sample.n_logprobs, kMaxLogprobs), n); ++i) {  // the best below the last one found
    if (threadIdx.x == 0) {
      args.top_ids[r * kMaxLogprobs + i] = id_of(best);
      args.top_logprobs[r * kMaxLogprobs + i] = logprob(finite_logit(logits[id_of(best)]));
    }
    below = best;
    best = 0;
    for (int id = threadIdx.x; id < n; id += kThreads) {
      const uint64_t rank = rank_of(finite_logit(logits[id]), id);
      if (rank < below) best = max(best, rank);
    }
    best = block_max(best, shared.scratch);
  }
  return token;
}

// A row that is not sampled because its chain ended before it.
__device__ void leave_out(const SampleArgs& args, int64_t r) {
  if (threadIdx.x == 0) {
    args.tokens[r] = -1;
    args.logprobs[r] = 0.0f;
  }
  for (int i = threadIdx.x; i < kMaxLogprobs; i += kThreads) {
    args.top_ids[r * kMaxLogprobs + i] = -1;
    args.top_logprobs[r * kMaxLogprobs + i] = 0.0f;
  }
}

// The first row of every chain, which depends on no other row: its logits penalised, and the best rank of each group.
__global__ void __launch_bounds__(kPenaliseThreads) penalise_kernel(SampleArgs args, float* penalised, uint64_t* group_bests) {
  let_next_start();
  wait_for_previous();
  const int64_t r = blockIdx.y;
  const SampleRow sample = args.rows[r];
  if (sample.if_previous >= 0 || sample.forced_token >= 0) return;
  const int n = args.vocab_size, group = blockIdx.x * kPenaliseThreads + threadIdx.x;
  const uint32_t* counts = sample.slot < 0 ? nullptr : args.counts + static_cast<int64_t>(sample.slot) * n;
  group_bests[r * kGroups + group] =
      penalise_vectors(RowOptions(args, sample), sample, args.logits + r * n, counts, n, group, kGroups, penalised + r * n);
}

// One block per chain, which starts at the block's row; blocks of rows inside a chain have nothing to do.
__global__ void __launch_bounds__(kThreads) sample_kernel(SampleArgs args, float* penalised, const uint64_t* group_bests) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  let_next_start();
  wait_for_previous();
  if (args.rows[blockIdx.x].if_previous >= 0) return;
  int before = -1;  // the token of the row before
  for (int64_t r = blockIdx.x; r < args.n_rows; ++r) {
    const SampleRow sample = args.rows[r];
    if (r > blockIdx.x && sample.if_previous < 0) return;  // the next chain
    if (r > blockIdx.x && before != sample.if_previous) {
      before = -1;
      leave_out(args, r);
      continue;
    }
    before = sample_one(args, r, sample, penalised, r > blockIdx.x ? nullptr : group_bests + r * kGroups, shared);
    __syncthreads();  // the counts are those the next row sees, and shared memory is free again
  }
}

__global__ void count_tokens_kernel(uint32_t* counts, const int32_t* tokens, int n, bool prompt) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  if (prompt)
    atomicOr(&counts[tokens[i]], 0x80000000u);
  else
    atomicAdd(&counts[tokens[i]], 1u);
}

}  // namespace

size_t group_bests_bytes(int n_rows) { return sizeof(uint64_t) * kGroups * n_rows; }

void launch_sample(const Queue& queue, const SampleArgs& args, float* penalised, uint64_t* group_bests) {
  launch(queue, penalise_kernel, dim3(kGroups / kPenaliseThreads, args.n_rows), kPenaliseThreads, 0, args, penalised,
         group_bests);
  CUDA_CHECK(
      cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared))));
  launch(queue, sample_kernel, args.n_rows, kThreads, sizeof(Shared), args, penalised, group_bests);
}

void launch_count_tokens(const Queue& queue, uint32_t* counts_row, const int32_t* prompt, int n_prompt,
                         const int32_t* generated, int n_generated) {
  const Queue plain{queue.stream, false};
  if (n_prompt > 0) launch(plain, count_tokens_kernel, divide_up(n_prompt, 256), 256, 0, counts_row, prompt, n_prompt, true);
  if (n_generated > 0)
    launch(plain, count_tokens_kernel, divide_up(n_generated, 256), 256, 0, counts_row, generated, n_generated, false);
}

}  // namespace sigmoe::cuda
