// What gemm_few.cu and gemm_wide.cu share: a warp's walk along k of its tiles of W, what a block works on, and how its slices
// of k meet.
//
// `slices` warps split k over the same tile of 16 rows of W; weights go from memory to registers with Depth groups of loads in
// flight per lane, partial sums meet in shared memory and are added in slice order. Slices depend on k alone and a token's
// column on nothing else: a row's bits depend neither on its neighbours nor on how many there are.
#pragma once

#include <algorithm>

#include "cuda/gemm_tile.cuh"

namespace sigmoe::cuda {

constexpr int kWarps = 4;  // of a block: several blocks to an SM, so that one's start and end hide under the others' streams

// One warp's share of one tile: groups [begin, end) of k.
template <WeightFormat F, int Depth>
struct TileWalk {
  using S = Stream<F>;
  uint4 weights[Depth][S::kChunks];
  float scales[Depth][S::kFlushes][2];
  const uint4* source;
  const float* scale_rows[2];
  int begin, end, k_shift;

  __device__ void start(const WeightView& w, int tile, int first, int last) {
    begin = first, end = last, k_shift = w.k_shift;
    const int lane = threadIdx.x % 32;
    source = w.tiles + (static_cast<size_t>(tile) * w.n_groups * S::kChunks) * 32 + vector_of<F>(lane);
    if constexpr (S::kScaled)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = max(row_in_tile(w, tile, lane / 4 + 8 * h), 0);
        scale_rows[h] = w.scales + static_cast<size_t>(row >> w.row_shift) * w.scale_columns;
      }
  }

  __device__ void fetch(int slot, int group) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
      weights[slot][c] = load_once(source + (static_cast<size_t>(group) * S::kChunks + c) * 32);
    if constexpr (S::kScaled)
#pragma unroll
      for (int f = 0; f < S::kFlushes; ++f) {
        const int column = (group * kGroup + f * (kGroup / S::kFlushes)) >> k_shift;
        scales[slot][f][0] = scale_rows[0][column];
        scales[slot][f][1] = scale_rows[1][column];
      }
  }

  // Starts the first loads; touches nothing but the weight.
  __device__ void prefetch() {
#pragma unroll
    for (int d = 0; d < Depth; ++d)
      if (begin + d < end) fetch(d, begin + d);
  }
};

// sum[m][j] (16 rows, 8 tokens) += tile m times token block j, over the walks' groups, for the first n_used blocks.
// before(group) runs ahead of each group; load(j, group, chunk, x) fetches the lane's activations of a chunk.
template <WeightFormat F, int Depth, int Tiles, int NT, typename Load, typename Before>
__device__ void walk_groups(TileWalk<F, Depth>* walks, int n_used, const Load& load, const Before& before,
                            float (*sum)[NT][4]) {
  using S = Stream<F>;
  constexpr int kPerFlush = S::kChunks / S::kFlushes;
  const int end = walks[0].end;
  for (int group0 = walks[0].begin; group0 < end; group0 += Depth) {
#pragma unroll
    for (int d = 0; d < Depth; ++d) {
      const int group = group0 + d;
      if (group >= end) break;
      before(group);
#pragma unroll
      for (int f = 0; f < S::kFlushes; ++f) {
        float unscaled[Tiles][NT][4] = {};
#pragma unroll
        for (int i = 0; i < kPerFlush; ++i) {
          const int c = f * kPerFlush + i;
          uint32_t a[Tiles][S::kProducts][4];
#pragma unroll
          for (int m = 0; m < Tiles; ++m) unpack<F>(chunk_of<F>(walks[m].weights[d], c), a[m]);
#pragma unroll
          for (int j = 0; j < NT; ++j)
            if (j < n_used) {
              uint32_t x[S::kLaneK / 2];
              load(j, group, c, x);
#pragma unroll
              for (int m = 0; m < Tiles; ++m) multiply<F>(S::kScaled ? unscaled[m][j] : sum[m][j], a[m], x);
            }
        }
        if constexpr (S::kScaled)
#pragma unroll
          for (int m = 0; m < Tiles; ++m)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
              for (int i = 0; i < 4; ++i) sum[m][j][i] += unscaled[m][j][i] * walks[m].scales[d][f][i / 2];
      }
      if (group + Depth < end)
#pragma unroll
        for (int m = 0; m < Tiles; ++m) walks[m].fetch(d, group + Depth);
    }
  }
}

// The expert with the i-th non-empty list, or -1; every warp finds it by itself.
__device__ inline int nth_touched(const int32_t* offsets, int n_experts, int i) {
  constexpr int kAtOnce = 8;
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < n_experts; base += 32 * kAtOnce) {
    bool touched[kAtOnce];
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m) {
      const int e = base + 32 * m + lane;
      touched[m] = e < n_experts && offsets[e + 1] > offsets[e];
    }
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m) {
      unsigned ballot = __ballot_sync(kAllLanes, touched[m]);
      const int count = __popc(ballot);
      if (i < count) {
        for (; i > 0; --i) ballot &= ballot - 1;
        return base + 32 * m + __ffs(ballot) - 1;
      }
      i -= count;
    }
  }
  return -1;
}

// What a block works on: rows of which weight, for which tokens.
struct Work {
  WeightView w;
  bool dense;
  int slices, row_block, token_begin, token_end;
  const int32_t* slots = nullptr;  // the routed list: flat (token, choice) indices
  int single_slot = -1;

  // False when there is nothing to do. Before anything that this reads was written, it waits: the lists, for a routed block of
  // gate_up. A block of down may read them at once, because gate_up lets it start only after waiting for them itself.
  __device__ bool find(const GemmArgs& args, int tokens_at_once) {
    dense = static_cast<int>(blockIdx.x) < args.dense_blocks;
    w = dense ? args.dense : args.routed;
    slices = dense ? args.dense_slices : args.routed_slices;
    token_begin = 0;
    token_end = args.n_tokens;
    if (dense) {  // token blocks of the same rows side by side: the weights are read from memory once
      const int n_token_blocks = args.dense_blocks / args.dense_row_blocks;
      row_block = blockIdx.x / n_token_blocks;
      token_begin = blockIdx.x % n_token_blocks * tokens_at_once;
      token_end = min(token_begin + tokens_at_once, args.n_tokens);
      return true;
    }
    if (args.mode != GemmMode::down) {
      if (const int e = threadIdx.x * 8; e < args.n_experts) prefetch_line(args.experts + e);
      wait_for_previous();
    }
    const int item = blockIdx.x - args.dense_blocks, i = item / args.routed_row_blocks;
    row_block = item % args.routed_row_blocks;
    int expert;
    if (args.n_tokens == 1) {  // its choices are distinct: no list to search
      expert = args.expert_ids[i];
      single_slot = i;
    } else {
      expert = nth_touched(args.expert_offsets, args.n_experts, i);
      if (expert < 0) return false;
      const int first = args.expert_offsets[expert];
      token_end = args.expert_offsets[expert + 1] - first;
      slots = args.slot_order + first;
    }
    w.tiles = args.experts[expert].tiles;
    w.scales = args.experts[expert].scales;
    return w.tiles != nullptr;  // null: this rank has no share of the expert, and the output was zeroed
  }

  __device__ int slot(int t) const { return slots ? slots[t] : single_slot; }

  // Row of the activations that token t of the list reads.
  __device__ int64_t input_row(const GemmArgs& args, int t) const {
    if (dense) return args.row_ids ? args.row_ids[t] : t;
    return args.mode == GemmMode::gate_up ? slot(t) / args.n_active : slot(t);
  }

  // Writes rows `row` and `row` + 8 of `tile` for token t of the list.
  __device__ void write(const GemmArgs& args, int tile, int row, int t, float low, float high) const {
    if (args.mode == GemmMode::gate_up) {
      const int width = w.n / 2, inner = tile * 8 + row;
      if (inner >= width) return;
      auto* out = static_cast<__nv_bfloat16*>(dense ? args.dense_out : args.routed_out);
      out[static_cast<int64_t>(dense ? t : slot(t)) * width + inner] = __float2bfloat16_rn(low / (1.0f + __expf(-low)) * high);
      return;
    }
    float* out = static_cast<float*>(dense ? args.dense_out : args.routed_out);
    int64_t out_row = t;
    float weight = 1.0f;
    if (args.mode == GemmMode::down) {
      const int s = dense ? 0 : slot(t);
      out_row = dense ? static_cast<int64_t>(t) * args.n_slots + args.n_active
                      : static_cast<int64_t>(s / args.n_active) * args.n_slots + s % args.n_active;
      if (!dense) weight = args.slot_weights[s];
    }
    const int n = tile * 16 + row;
    if (n < w.n) out[out_row * w.n + n] = low * weight;
    if (n + 8 < w.n) out[out_row * w.n + n + 8] = high * weight;
  }

  // Adds the slices of token blocks [0, n_used) in order and writes. One thread per pair of sums, rows g and g + 8 of a token.
  // The block's tiles in `partial` begin at `first_tile`.
  template <int NT>
  __device__ void reduce(const GemmArgs& args, const float (&partial)[kWarps][NT * 4][32], int first_tile, int first,
                         int n_used) const {
    const int tiles = kWarps / slices;
    for (int index = threadIdx.x; index < tiles * n_used * 64; index += kWarps * 32) {
      const int owner = index % 32, column = index / 32 % 2, j = index / 64 % n_used, local = index / (64 * n_used);
      const int tile = first_tile + local, t = first + 8 * j + owner % 4 * 2 + column;
      if (tile >= w.n_tiles || t >= token_end) continue;
      float low = 0.0f, high = 0.0f;
      for (int s = 0; s < slices; ++s) {
        low += partial[local * slices + s][4 * j + column][owner];
        high += partial[local * slices + s][4 * j + column + 2][owner];
      }
      write(args, tile, owner / 4, t, low, high);
    }
  }
};

template <int NT>
__device__ void keep(float (&partial)[kWarps][NT * 4][32], const float (&sum)[NT][4], int n_used) {
#pragma unroll
  for (int j = 0; j < NT; ++j)
    if (j < n_used)
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[threadIdx.x / 32][4 * j + i][threadIdx.x % 32] = sum[j][i];
}

// ---- the host's side ---------------------------------------------------------------------------------------------------

// Grid for blocks whose warps take n_tiles each and tokens_at_once.
inline int plan_blocks(GemmArgs& args, int n_tiles, int tokens_at_once) {
  int n_blocks = 0;
  if (args.dense.tiles) {
    args.dense_slices = slices_for(args.dense.n_groups);
    args.dense_row_blocks = divide_up(args.dense.n_tiles, n_tiles * kWarps / args.dense_slices);
    args.dense_blocks = args.dense_row_blocks * divide_up(args.n_tokens, tokens_at_once);
    n_blocks += args.dense_blocks;
  }
  if (args.routed.n > 0) {
    args.routed_slices = slices_for(args.routed.n_groups);
    args.routed_row_blocks = divide_up(args.routed.n_tiles, n_tiles * kWarps / args.routed_slices);
    n_blocks +=
        args.routed_row_blocks * static_cast<int>(std::min<int64_t>(args.n_experts, int64_t{args.n_tokens} * args.n_active));
  }
  return n_blocks;
}

// gemm_few.cu: up to 8 tokens at a time, x as floats or BF16, where their activations fit shared memory whole.
void launch_few(const Queue& queue, GemmArgs& args, bool x_is_float);
// gemm_wide.cu: 32 tokens at a time, BF16.
void launch_wide(const Queue& queue, GemmArgs& args);

}  // namespace sigmoe::cuda
