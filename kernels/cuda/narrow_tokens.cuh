// Experts of some tens to hundreds of tokens (narrow_experts.cu), sixteen tokens at a time: how they come to shared memory
// before a place of W meets them, and how its results leave.
#pragma once

#include "cuda/narrow_experts.h"
#include "cuda/packed.cuh"
#include "cuda/stream_list.cuh"
#include "cuda/wgmma.cuh"

namespace sigmoe::cuda::narrow {

constexpr int kGroups = 2, kBlocks = 2;  // warpgroups, and 64-row operands of each
constexpr int kWarps = kGroups * 4, kThreads = kWarps * 32 + 128;
constexpr int kTokens = 16;
constexpr int kPlaceTiles = kGroups * kBlocks * 4, kInnerColumns = kPlaceTiles * 8;
static_assert(kTokens * kInnerColumns / 8 == kWarps * 32);
static_assert(kPlaceTiles * 16 == limits::narrow::kPlaceRows);
using limits::narrow::kDepth;
constexpr int kChunks = 4;              // of 32 bytes of k in a group
constexpr int kXBytes = kTokens * 128;  // of a group of k
enum Meeting { kMultipliers = 1 };

using Cursor = stream::Cursor<kTokens, kPlaceTiles>;

// Sixteen tokens, as their writers need them.
struct TokenBlock {
  int count, packed_row;
  int out_rows[kTokens];
  float factors[kTokens];  // of the sums: x's scale, for down times the slot's weight
};

struct Shared {
  alignas(16) __nv_bfloat16 inner[kTokens][kInnerColumns + 8];  // gate_up: the result on its way out
  TokenBlock token_blocks[2];
  uint64_t full[2], empty[2];
};

// Bytes of a buffer of tokens, by group.
__host__ __device__ constexpr int buffer_bytes(int n_groups) { return n_groups * kXBytes; }

// One warp brings each block of tokens of [begin, end) when its buffer is free.
template <bool GateUp>
__device__ void copy_tokens(const NarrowArgs& args, const stream::Lists& lists, int n_items, int begin, int end,
                            uint8_t* buffers, Shared& s) {
  const GemmArgs& gemm = args.gemm;
  const int lane = threadIdx.x % 32, n_groups = gemm.routed.n_groups;
  Cursor at;
  int index = 0;
  for (int place = begin; place < end; place = at.segment_end, ++index) {
    at.seek(gemm, lists.starts, n_items, place);
    const bool dense = at.item == 0;
    const int first = at.block * kTokens + (dense ? 0 : lists.first_slots[at.item]);
    const int n = dense ? gemm.n_tokens : gemm.expert_offsets[at.item] - lists.first_slots[at.item];
    const int count = min(kTokens, n - at.block * kTokens);
    // Rows past the last repeat it; nobody reads their results.
    int token = first + min(lane % kTokens, count - 1), out_row = token * gemm.n_slots + gemm.n_active;
    float factor = 1.0f;
    if (!dense) {
      const int slot = gemm.slot_order[token];
      token = slot / gemm.n_active;
      out_row = token * gemm.n_slots + slot % gemm.n_active;
      if (!GateUp) factor = gemm.slot_weights[slot];
    }
    // Blocks of tokens before this one, each with rows of its own between the two products.
    const int packed_row = (at.item_start / at.tiles + at.block) * kTokens;
    factor *= args.x.scales[GateUp ? token : packed_row + lane % kTokens];
    if (index >= 2) barrier_wait(&s.empty[index % 2], (index / 2 - 1) % 2);
    TokenBlock& tokens = s.token_blocks[index % 2];
    if (lane < kTokens) tokens.out_rows[lane] = out_row, tokens.factors[lane] = factor;
    if (lane == 0) tokens.count = count, tokens.packed_row = packed_row;
    uint8_t* to = buffers + index % 2 * buffer_bytes(n_groups);
    if constexpr (GateUp) {
      int rows[kTokens / 4];
#pragma unroll
      for (int m = 0; m < kTokens / 4; ++m) rows[m] = __shfl_sync(kAllLanes, token, 4 * m + lane / 8);
      for (int group = 0; group < n_groups; ++group) {
        const uint8_t* from = args.x.data + static_cast<size_t>(group) * args.x.stride * 128;
#pragma unroll
        for (int m = 0; m < kTokens / 4; ++m)
          copy_16_bytes(to + group * kXBytes + swizzled(4 * m + lane / 8, lane % 8), from + swizzled(rows[m], lane % 8));
      }
      wait_for_copies();
      publish_to_async();
      __syncwarp();
      if (lane == 0) barrier_arrive(&s.full[index % 2]);
    } else {
      uint64_t* full = &s.full[index % 2];
      __syncwarp();
      if (lane == 0) barrier_expect(full, n_groups * kXBytes);
      __syncwarp();
      if (lane < n_groups)
        bulk_load(to + lane * kXBytes, args.x.data + (static_cast<size_t>(lane) * args.x.stride + packed_row) * 128, kXBytes,
                  full);
    }
  }
}

using Sums = float[kBlocks][kTokens / 2];

// SwiGLU, in BF16: the place's 128 columns of 16 rows.
__device__ inline void write_inner(const NarrowArgs& args, Shared& s, const TokenBlock& tokens, int place_tile, Sums& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128, q = lane % 4;
  uint32_t pairs[kBlocks][kTokens / 8];
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const float factor = tokens.factors[8 * j + 2 * q + odd];
      float gate[kBlocks], one[kBlocks];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        gate[block] = sum[block][4 * j + odd] * factor;
        one[block] = 1.0f + __expf(fminf(-gate[block], 40.0f));  // beyond, the result is 0 to all digits that count
      }
      const float inverse = __fdividef(1.0f, one[0] * one[1]);  // one division for both
      const float silu[kBlocks] = {gate[0] * inverse * one[1], gate[1] * inverse * one[0]};
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        sum[block][4 * j + odd] = silu[block] * (sum[block][4 * j + odd + 2] * factor);
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) pairs[block][j] = pack_bf16(sum[block][4 * j], sum[block][4 * j + 1]);
  }
  const int to_block = lane / 16;     // this lane's address is of a row of that block's columns
  meet<kMultipliers, kWarps * 32>();  // what lay here has been read
  store_transposed(s.inner[lane % 16] + (group * kBlocks + to_block) * 32 + warp * 8, pairs[0][0], pairs[0][1], pairs[1][0],
                   pairs[1][1]);
  meet<kMultipliers, kWarps * 32>();
  const int row = threadIdx.x / (kInnerColumns / 8), piece = threadIdx.x % (kInnerColumns / 8);
  const int64_t columns = static_cast<int64_t>((args.gemm.routed.n_tiles + kPlaceTiles - 1) / kPlaceTiles) * kInnerColumns;
  reinterpret_cast<uint4*>(args.inner_rows + (tokens.packed_row + row) * columns + place_tile * kInnerColumns)[piece] =
      reinterpret_cast<const uint4*>(s.inner[row])[piece];
}

__device__ inline void write_rows(const NarrowArgs& args, const TokenBlock& tokens, int n, int place_tile, const Sums& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128, g = lane / 4, q = lane % 4;
  const int first = (place_tile * kPlaceTiles + group * kBlocks * 4 + warp) * 16 + g;
#pragma unroll
  for (int i = 0; i < kTokens / 4; ++i) {
    const int column = i / 2 * 8 + 2 * q + i % 2;
    if (column >= tokens.count) continue;
    __nv_bfloat16* out = args.slots + static_cast<int64_t>(tokens.out_rows[column]) * n + first;
    const float factor = tokens.factors[column];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      out[block * 64] = __float2bfloat16_rn(sum[block][i / 2 * 4 + i % 2] * factor);
      out[block * 64 + 8] = __float2bfloat16_rn(sum[block][i / 2 * 4 + i % 2 + 2] * factor);
    }
  }
}

}  // namespace sigmoe::cuda::narrow
