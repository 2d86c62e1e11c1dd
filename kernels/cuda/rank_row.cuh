// One row of 4096 floats that ranks sum between kernels: each rank's part is pushed as it is made, tile by tile, and taken by
// whoever wants the sum. A float travels with the number of its call in the word beside it, so no flag is waited for.
#pragma once

#include "cuda/comm.cuh"
#include "cuda/rank_rows.h"

namespace sigmoe::cuda {

constexpr int kRankVectors = kRankWidth / 4;  // float4 of the row

__device__ inline std::byte* row_words(const RowExchange& at, int rank, int source) {
  return at.peers.memory[rank] + at.words + static_cast<size_t>(source) * 2 * kRankVectors * 16;
}
// How often the tile's block has pushed to this area: the same for all tiles once a kernel has ended.
__device__ inline uint32_t* row_counter(const RowExchange& at, int tile) {
  return reinterpret_cast<uint32_t*>(at.peers.memory[at.peers.rank] + at.counters) + tile;
}

// Float `column` of this rank's part, to all others; the words of float4 i are number i (x, y) and i + kRankVectors (z, w).
__device__ inline void push_float(const RowExchange& at, int column, float value, uint32_t number) {
  const uint64_t word = static_cast<uint64_t>(number) << 32 | __float_as_uint(value);
  const int offset = (column / 2 % 2 * kRankVectors + column / 4) * 16 + column % 2 * 8;
  for (int step = 1; step < at.peers.world; ++step) {
    const int rank = (at.peers.rank + step) % at.peers.world;
    asm volatile("st.relaxed.sys.global.b64 [%0], %1;" ::"l"(row_words(at, rank, at.peers.rank) + offset), "l"(word)
                 : "memory");
  }
}

// The end of a kernel that makes 16 floats of the row per block, by its first 16 threads: `number` is next_number() of the
// tile's counter, read when the kernel began.
__device__ inline void hand_out(const RowExchange& at, int tile, float* partial, float value, uint32_t number) {
  const int column = tile * 16 + static_cast<int>(threadIdx.x);
  partial[column] = value;
  if (at.peers.world <= 1) return;
  push_float(at, column, value, number);
  if (threadIdx.x == 0) store_relaxed(row_counter(at, tile), number);
}

// float4 first + i * stride of what `source` pushed.
template <int kVectors>
__device__ inline void poll_row(const RowExchange& at, int source, int first, int stride, uint32_t number,
                                float4 (&part)[kVectors]) {
  const std::byte* from = row_words(at, at.peers.rank, source) + static_cast<size_t>(first) * 16;
  NumberedPair low[kVectors], high[kVectors];
  Patience patience;
  for (bool complete = false; !complete;) {
    complete = true;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      low[i] = load_numbered(from + i * stride * 16);
      high[i] = load_numbered(from + (kRankVectors + i * stride) * 16);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) complete = complete && low[i].is(number) && high[i].is(number);
    if (!complete && patience.give_up(at.peers)) break;
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    part[i] = {__uint_as_float(static_cast<uint32_t>(low[i].a)), __uint_as_float(static_cast<uint32_t>(low[i].b)),
               __uint_as_float(static_cast<uint32_t>(high[i].a)), __uint_as_float(static_cast<uint32_t>(high[i].b))};
}

// value[i] = float4 first + i * stride of residual + (part of rank 0 + part of rank 1 + ...), once the kernel ahead is done.
// kTwoRanks: there are two, whose sum has no order to keep.
template <bool kTwoRanks, int kVectors>
__device__ inline void take_row(const RankRow& row, int first, int stride, float4 (&value)[kVectors]) {
  const PeerView& peers = row.exchange.peers;
  const uint32_t number = load_relaxed(row_counter(row.exchange, 0));
  float4 mine[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    value[i] = __ldcg(reinterpret_cast<const float4*>(row.residual) + first + i * stride);
    mine[i] = __ldcg(reinterpret_cast<const float4*>(row.own) + first + i * stride);
  }
  float4 part[kVectors];
  if constexpr (kTwoRanks) {
    poll_row(row.exchange, 1 - peers.rank, first, stride, number, part);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) value[i] = add(value[i], add(mine[i], part[i]));
  } else {
    float4 total[kVectors];
    for (int r = 0; r < peers.world; ++r) {
      if (r == peers.rank) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) part[i] = mine[i];
      } else {
        poll_row(row.exchange, r, first, stride, number, part);
      }
#pragma unroll
      for (int i = 0; i < kVectors; ++i) total[i] = r == 0 ? part[i] : add(total[i], part[i]);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) value[i] = add(value[i], total[i]);
  }
}

}  // namespace sigmoe::cuda
