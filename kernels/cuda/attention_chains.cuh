// Attention of few rows a sequence (attention_decode.cu): the sequences of a step as chains of rows, and the units of work that
// blocks share: runs of a sequence's keys for a KV head and a tile of rows.
#pragma once

#include "cuda/attention_decode.h"
#include "cuda/attention_runs.cuh"
#include "cuda/attention_tile.cuh"
#include "cuda/step_tables.cuh"

namespace sigmoe::cuda::chains {

using namespace hopper;

constexpr int kGroups = 2;
constexpr int kThreads = 128 * (1 + kGroups);
constexpr int kMeet = 1;  // named barriers, one for each warpgroup

__host__ __device__ constexpr int tile_tokens(int group) { return kTileRows / group; }

struct ChainArgs {
  BatchView batch;
  int n_heads, n_kv_heads;
  Cut cut;
  int first_seq, n_seqs, n_rows_max, n_runs_max;
  const float* q;
  KvView kv;
  float* partial;    // (chain rows, H, n_runs_max, partial_width)
  int32_t* row_ids;  // (chain rows) which rows of the step they are; -1 behind the last
  float* out;
};

// What a sequence's chain asks for.
struct Chain {
  int first_length, n_rows;  // keys that the first row sees; each row sees one more
  int n_tiles, n_old,
      n_runs;  // n_old: of n_runs, those of rows before the one whose keys are cut more coarsely; 0: there is none

  __device__ Chain(const StepTable& table, const Cut& cut, int b, int group) {
    n_rows = table.offsets[b + 1] - table.offsets[b];
    first_length = table.first_positions[b] + 1;
    n_tiles = n_rows > kMostChainRows ? 0 : (n_rows + tile_tokens(group) - 1) / tile_tokens(group);
    const int log = cut.log_keys(first_length), last_length = first_length + n_rows - 1;
    n_old = log != cut.log_keys(last_length) ? cut.runs_at_most(log) : 0;
    n_runs = n_old + cut.runs(last_length);
  }
};

struct ChainTable : StepTable {
  int first_units[kTableSeqs + 1];  // of sequence b: units before it
  int first_rows[kTableSeqs + 1];   // rows of chains before it
};

// By one warp, once the step's rows are there.
__device__ inline void count_units(ChainTable& table, const Cut& cut, int n_seqs, int n_kv_heads, int group) {
  const int lane = threadIdx.x % 32;
  int units_before = 0, rows_before = 0;
  for (int base = 0; base < n_seqs; base += 32) {
    int units = 0, rows = 0;
    if (base + lane < n_seqs) {
      const Chain chain(table, cut, base + lane, group);
      units = chain.n_tiles * n_kv_heads * chain.n_runs;
      rows = chain.n_tiles > 0 ? chain.n_rows : 0;
    }
    for (int step = 1; step < 32; step *= 2) {
      const int more_units = __shfl_up_sync(kAllLanes, units, step), more_rows = __shfl_up_sync(kAllLanes, rows, step);
      if (lane >= step) units += more_units, rows += more_rows;
    }
    if (base + lane < n_seqs) {
      table.first_units[base + lane + 1] = units_before + units;
      table.first_rows[base + lane + 1] = rows_before + rows;
    }
    units_before += __shfl_sync(kAllLanes, units, 31);
    rows_before += __shfl_sync(kAllLanes, rows, 31);
  }
  if (lane == 0) table.first_units[0] = table.first_rows[0] = 0;
}

// What the second kernel looks up: the step's rows that are chains', in order.
__device__ inline void write_row_ids(const ChainArgs& args, const ChainTable& table) {
  for (int b = threadIdx.x; b < args.n_seqs; b += kThreads)
    for (int row = table.first_rows[b]; row < table.first_rows[b + 1]; ++row)
      args.row_ids[row] = table.offsets[b] + row - table.first_rows[b];
  for (int row = table.first_rows[args.n_seqs] + threadIdx.x; row < args.n_rows_max; row += kThreads) args.row_ids[row] = -1;
}

// Keys [first_key, end_key) of a sequence and KV head, for rows [row, row + n_rows) of the chain.
struct Unit {
  int seq, kv_head, tile, run, log_keys, first_key, end_key, n_tiles;
  int first_length, row, n_rows;  // of the tile: keys its first row sees, its first row in the chain, how many it has
};

__device__ inline Unit find_unit(const ChainArgs& args, const ChainTable& table, int group, int tile_keys, int index) {
  Unit unit;
  const int b = last_at_most(args.n_seqs, index, [&](int i) { return table.first_units[i]; });
  const Chain chain(table, args.cut, b, group);
  const int local = index - table.first_units[b], run = local % chain.n_runs,
            last_length = chain.first_length + chain.n_rows - 1;
  unit.seq = b;
  unit.kv_head = local / chain.n_runs % args.n_kv_heads;
  unit.tile = local / chain.n_runs / args.n_kv_heads;
  const bool old = run < chain.n_old;
  unit.run = old ? run : run - chain.n_old;
  unit.log_keys = args.cut.log_keys(old ? chain.first_length : last_length);
  unit.first_key = unit.run << unit.log_keys;
  unit.end_key =
      min(unit.first_key + (1 << unit.log_keys), old ? args.cut.runs_at_most(unit.log_keys) << unit.log_keys : last_length);
  unit.n_tiles = (unit.end_key - unit.first_key + tile_keys - 1) / tile_keys;
  unit.row = unit.tile * tile_tokens(group);
  unit.n_rows = min(tile_tokens(group), chain.n_rows - unit.row);
  unit.first_length = chain.first_length + unit.row;
  return unit;
}

}  // namespace sigmoe::cuda::chains
