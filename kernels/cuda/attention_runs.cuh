// What the two kernels of attention_decode.h agree on: how keys are cut into runs, and what a run leaves.
#pragma once

#include <algorithm>

#include "backend/backend.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {

struct PackedRows;

constexpr int kMostRuns = 64;  // of one row

// How a row's keys are cut into runs, by how many it sees: finely while they are few, coarsely where fine runs would leave many
// partial results. Two classes of steps: few sequences need many runs to keep all SMs busy, many need long ones.
struct Cut {
  bool many;
  int least;  // the shortest run has 2^least keys

  explicit Cut(const BatchView& batch) : many(batch.n_seqs >= 32), least(many ? 9 : 8) {}
  // Of rows whose runs have 2^log keys.
  __host__ __device__ int runs_at_most(int log) const {
    const int runs = 8 << (many ? 2 * (log - least) : log - least);
    return runs < kMostRuns ? runs : kMostRuns;
  }
  __host__ __device__ int log_keys(int length) const {
    int log = least;
    while (runs_at_most(log) << log < length) ++log;
    return log;
  }
  __host__ __device__ int runs(int length) const {
    const int log = log_keys(length);
    return (length + (1 << log) - 1) >> log;
  }
  int most_runs(int max_pages) const {
    const int length = std::max(1, max_pages) * kPageTokens, last = log_keys(length);
    return std::max(runs(length), last > least ? runs_at_most(last - 1) : 1);
  }
};

// Floats of a row's partial result of a run: sums of a head, then its maximum (base 2) and total, padded to whole vectors.
__host__ __device__ constexpr int partial_width(int head_dim) { return head_dim + 4; }

// Every row and head that has several runs: their sum, in order.
struct RunsArgs {
  Cut cut;
  const int32_t* positions = nullptr;
  int n_heads = 0, n_rows_max = 0, n_runs_max = 0;
  const float* partial = nullptr;    // (rows, H, n_runs_max, partial_width)
  const int32_t* row_ids = nullptr;  // (rows) which rows of the step they are; -1 behind the last
  float* out = nullptr;              // (T, H, head_dim); rows with one run have theirs
};
// packed: null, or where packs_runs() `out` again for weights of `format`, rows with one run included (quantise.h).
void launch_add_runs(const Queue& queue, const RunsArgs& args, int head_dim, const PackedRows* packed, WeightFormat format);
bool packs_runs(const AttentionShape& shape);

}  // namespace sigmoe::cuda
