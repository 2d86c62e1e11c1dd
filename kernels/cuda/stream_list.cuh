// The work list of stream_gemm.cu: the tiles of every touched expert, once per block of its tokens, made by each block of the
// launch for itself from the router's lists. Every place in it has a number; blocks take equal runs of numbers.
#pragma once

#include "cuda/device.cuh"
#include "cuda/gemm.h"

namespace sigmoe::cuda::stream {

constexpr int kThreads = 384;   // 168 registers each
constexpr int kTokens = 8;      // of a block of them
constexpr int kRunTiles = 128;  // after so many tiles the next block of tokens meets them, while they are in L2

// A place in the work list, found from its number.
struct Cursor {
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
      tiles = item == 0 ? gemm.dense.n_tiles : gemm.routed.n_tiles;
      blocks = (item_end - item_start) / tiles;
    }
    const int local = place - item_start;
    if (blocks == 1) {
      block = 0, tile = local, segment_end = item_end;
      return;
    }
    const int run = local / (kRunTiles * blocks), rest = local - run * kRunTiles * blocks;
    const int length = min(kRunTiles, tiles - run * kRunTiles);
    block = rest / length;
    tile = run * kRunTiles + rest % length;
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
__device__ inline void list_items(const GemmArgs& gemm, int n_items, const Lists& lists) {
  __shared__ int warp_totals[kThreads / 32];
  const int per_thread = (n_items + kThreads - 1) / kThreads, begin = threadIdx.x * per_thread;
  const int end = min(begin + per_thread, n_items), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto blocks_of = [&](int n) { return (n + kTokens - 1) / kTokens; };
  int total = 0;
  for (int i = begin; i < end; ++i) {
    lists.starts[i] = total;
    if (i == 0) {
      lists.weights[0] = {gemm.dense.tiles, gemm.dense.scales};
      if (gemm.dense.tiles) total += blocks_of(gemm.n_tokens) * gemm.dense.n_tiles;
    } else {
      const int first = gemm.expert_offsets[i - 1], count = gemm.expert_offsets[i] - first;
      lists.first_slots[i] = first;
      lists.weights[i] = gemm.experts[i - 1];
      if (lists.weights[i].tiles) total += blocks_of(count) * gemm.routed.n_tiles;  // else this rank has no share of it
    }
  }
  int before = total;  // inclusive scan over threads
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) warp_totals[warp] = before;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += warp_totals[w];
  for (int i = begin; i < end; ++i) lists.starts[i] += before - total;
  if (threadIdx.x == kThreads - 1) lists.starts[n_items] = before;
  __syncthreads();
}

}  // namespace sigmoe::cuda::stream
