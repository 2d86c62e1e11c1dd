// The work list of stream_gemm.cu and narrow_experts.cu: the weights of every touched expert, PlaceTiles tiles at a time, once
// per block of Tokens of its tokens, made by each block of the launch for itself from the router's lists. Every place in it has
// a number; blocks take equal runs of numbers.
#pragma once

#include "cuda/device.cuh"
#include "cuda/gemm.h"

namespace sigmoe::cuda::stream {

constexpr int kRunTiles = 128;  // after so many tiles the next block of tokens meets them, while they are in L2

// A place in the work list, found from its number.
template <int Tokens, int PlaceTiles>
struct Cursor {
  static constexpr int kRun = kRunTiles / PlaceTiles;
  int item = 0, item_start = 0, item_end = 0, blocks = 0, tiles = 0;
  int tile = 0, block = 0;
  int segment_end = 0;  // where the tokens change

  // starts (n_items + 1): the first place of each item. Item 0 is the dense part, item e + 1 expert e.
  __device__ void seek(const GemmArgs& gemm, const int* starts, int n_items, int place) {
    if (place >= item_end) {
      int high = n_items;
      while (high - item > 1) {
        const int middle = (item + high) / 2;
        if (starts[middle] <= place)
          item = middle;
        else
          high = middle;
      }
      item_start = starts[item], item_end = starts[item + 1];
      tiles = (item == 0 ? gemm.dense.n_tiles : gemm.routed.n_tiles) / PlaceTiles;
      blocks = (item_end - item_start) / tiles;
    }
    const int local = place - item_start;
    if (blocks == 1) {
      block = 0, tile = local, segment_end = item_end;
      return;
    }
    const int run = local / (kRun * blocks), rest = local - run * kRun * blocks;
    const int length = min(kRun, tiles - run * kRun);
    block = rest / length;
    tile = run * kRun + rest % length;
    segment_end = place + length - rest % length;
  }
};

__device__ inline const WeightView& shape_of_item(const GemmArgs& gemm, int item) {
  return item == 0 ? gemm.dense : gemm.routed;
}

// What the block knows of each item.
struct Lists {
  int* starts;           // (n_items + 1)
  int* first_slots;      // (n_items), of an expert's list
  ExpertTiles* weights;  // (n_items)

  __device__ Lists(char* shared, int n_items)
      : starts(reinterpret_cast<int*>(shared + n_items * sizeof(ExpertTiles))),
        first_slots(starts + n_items + 1),
        weights(reinterpret_cast<ExpertTiles*>(shared)) {}
};
constexpr int lists_bytes(int n_items) { return n_items * static_cast<int>(sizeof(ExpertTiles) + 2 * sizeof(int)) + 4; }

// By the whole block.
template <int Tokens, int PlaceTiles>
__device__ inline void list_items(const GemmArgs& gemm, int n_items, const Lists& lists) {
  __shared__ int warp_totals[32];
  const int n_threads = blockDim.x, per_thread = (n_items + n_threads - 1) / n_threads;
  const int begin = threadIdx.x * per_thread, end = min(begin + per_thread, n_items);
  const auto blocks_of = [&](int n) { return (n + Tokens - 1) / Tokens; };
  int total = 0;
  for (int i = begin; i < end; ++i) {
    lists.starts[i] = total;
    if (i == 0) {
      lists.weights[0] = {gemm.dense.tiles, gemm.dense.scales};
      if (gemm.dense.tiles) total += blocks_of(gemm.n_tokens) * (gemm.dense.n_tiles / PlaceTiles);
    } else {
      const int first = gemm.expert_offsets[i - 1], count = gemm.expert_offsets[i] - first;
      lists.first_slots[i] = first;
      lists.weights[i] = gemm.experts[i - 1];
      // No tiles: this rank has no share of it.
      if (lists.weights[i].tiles) total += blocks_of(count) * (gemm.routed.n_tiles / PlaceTiles);
    }
  }
  const int before = block_sum_before(total, warp_totals);
  for (int i = begin; i < end; ++i) lists.starts[i] += before;
  if (threadIdx.x == n_threads - 1) lists.starts[n_items] = before + total;
  __syncthreads();
}

}  // namespace sigmoe::cuda::stream
