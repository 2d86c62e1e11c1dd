// The sampler: one block per chain of rows, after many blocks have penalised the logits; no sorting. sample_rank.cuh says how
// tokens are ranked and weighed, sample_cut.cuh finds the rank at which top-k, top-p and the draw cut. Bound: a greedy row
// reads its logits once.
#include "cuda/ops.h"
#include "cuda/sample_cut.cuh"

namespace sigmoe::cuda {
namespace {

using namespace sampling;

constexpr int kUnroll = 4;  // vectors of logits in flight per thread
constexpr int kPenaliseThreads = 256;

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
