// Attention of many rows of a sequence at once (prompts) by mma.sync: causal, paged, grouped heads.
//
// Bound: arithmetic, 4 * rows * keys * heads * head_dim operations in BF16. A block holds 128 query rows (tokens x the heads of
// a KV head, so that one read of K and V serves them all), 32 to each of four warps, and walks the keys 64 at a time with a
// running maximum: K and V each have one place in shared memory, filled by asynchronous copies while the other is multiplied,
// and a second block on the SM fills what gaps that leaves. Long tiles go first. Keys come in tiles counted from the first, so
// a row's bits depend neither on the chunk it is in nor on its neighbours.
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/kernel_choice.h"
#include "cuda/kv_address.cuh"
#include "cuda/mma_attention.h"
#include "cuda/ops.h"
#include "cuda/step_tables.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kWarpTiles = 2;                    // of 16 rows
constexpr int kRows = kWarps * kWarpTiles * 16;  // of a block
static_assert(kRows >= kMmaGroupHeads);
constexpr int kKeys = 64;  // of a tile; pages hold whole tiles

struct MmaAttentionArgs {
  BatchView batch;
  int n_heads, n_kv_heads, least_rows;
  const float* q;
  const __nv_bfloat16 *k, *v;
  float* out;
};

template <int HD>
struct Shared {
  uint8_t query[kRows * HD * 2];
  uint8_t keys[kKeys * HD * 2];
  uint8_t values[kKeys * HD * 2];
};

// Byte offset of 16-byte piece `piece` of a row: eight rows' pieces lie in different banks.
template <int HD>
__device__ inline int place(int row, int piece) {
  return row * (HD * 2) + (piece ^ (row & 7)) * 16;
}

__device__ inline void load_matrices(uint32_t (&to)[4], const void* shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_transposed(uint32_t (&to)[4], const void* shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// Tokens [row, row + n_rows) of the step against their sequence's keys up to the last of them.
struct Tile {
  int seq, row, n_rows, first_position;

  // False when there is nothing to do. Slots of tile_tokens tokens are dealt to sequences in order, one more to each than it
  // may need; the last come first, for they are the longest.
  __device__ bool pick(const MmaAttentionArgs& args, int tile_tokens) {
    const BatchView& batch = args.batch;
    const int slot = static_cast<int>(gridDim.y - 1 - blockIdx.y);
    const auto first_slot = [&](int b) { return batch.seq_offsets[b] / tile_tokens + b; };
    seq = last_at_most(batch.n_seqs, slot, first_slot);
    const int begin = batch.seq_offsets[seq], end = batch.seq_offsets[seq + 1];
    const int token = (slot - first_slot(seq)) * tile_tokens;
    if (end - begin < args.least_rows || begin + token >= end) return false;
    row = begin + token;
    n_rows = min(tile_tokens, end - row);
    first_position = batch.positions[row];
    return true;
  }
};

// Starts the copies of the tile of K or V at `source`: kKeys rows, those from n_real on as zeros.
template <int HD>
__device__ inline void copy_tile(uint8_t* to, const __nv_bfloat16* source, int n_real) {
  constexpr int kPieces = HD / 8;
#pragma unroll
  for (int i = 0; i < kKeys * kPieces / kThreads; ++i) {
    const int index = threadIdx.x + i * kThreads, row = index / kPieces, piece = index % kPieces;
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to + place<HD>(row, piece)));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source + row * HD + piece * 8),
                 "r"(row < n_real ? 16 : 0)
                 : "memory");
  }
  commit_copies();
}

template <int HD>
__global__ void __launch_bounds__(kThreads, 2) mma_attention_kernel(const __grid_constant__ MmaAttentionArgs args) {
  extern __shared__ __align__(128) uint8_t raw[];
  Shared<HD>& s = *reinterpret_cast<Shared<HD>*>(raw);
  let_next_start();
  wait_for_previous();
  const int group = args.n_heads / args.n_kv_heads, tile_tokens = kRows / group, kv_head = blockIdx.x;
  Tile tile;
  if (!tile.pick(args, tile_tokens)) return;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, first_row = threadIdx.x / 32 * (kWarpTiles * 16);
  const int last_position = tile.first_position + tile.n_rows - 1, n_tiles = last_position / kKeys + 1;
  const int32_t* pages = args.batch.page_tables + static_cast<int64_t>(tile.seq) * args.batch.max_pages;
  const auto offset = [&](int page, int i) {  // of key kKeys * i
    return ((static_cast<int64_t>(page) * args.n_kv_heads + kv_head) * kPageTokens + i * kKeys % kPageTokens) * HD;
  };
  const auto page_of = [&](int i) { return pages[i * kKeys / kPageTokens]; };
  // Row r of the block is head r % group of token r / group.
  const auto row_at = [&](int r) {
    return (static_cast<int64_t>(tile.row + r / group) * args.n_heads + kv_head * group + r % group) * HD;
  };
  const int n_real = tile.n_rows * group;

  int page = page_of(0);
  copy_tile<HD>(s.keys, args.k + offset(page, 0), kKeys);
  const float scale = query_factor(HD);  // scores are exponents of two
  for (int index = threadIdx.x; index < kRows * HD / 8; index += kThreads) {
    const int r = index / (HD / 8), piece = index % (HD / 8);
    uint4 packed = {0, 0, 0, 0};
    if (r < n_real) {
      const auto* from = reinterpret_cast<const float4*>(args.q + row_at(r) + piece * 8);
      const float4 a = from[0], b = from[1];
      packed = {pack_bf16(a.x * scale, a.y * scale), pack_bf16(a.z * scale, a.w * scale), pack_bf16(b.x * scale, b.y * scale),
                pack_bf16(b.z * scale, b.w * scale)};
    }
    *reinterpret_cast<uint4*>(s.query + place<HD>(r, piece)) = packed;
  }

  float sum[kWarpTiles][HD / 8][4] = {};
  float top[kWarpTiles][2], total[kWarpTiles][2];  // total: of this lane's columns
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) top[m][h] = -INFINITY, total[m][h] = 0.0f;

  for (int i = 0; i < n_tiles; ++i) {
    wait_for_copies();
    __syncthreads();  // these keys are there, and everyone has left the values before
    copy_tile<HD>(s.values, args.v + offset(page, i), last_position + 1 - i * kKeys);
    if (i + 1 < n_tiles) page = page_of(i + 1);
    float score[kWarpTiles][kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < HD / 16; ++d) {
      uint32_t query[kWarpTiles][4];
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m)
        load_matrices(query[m], s.query + place<HD>(first_row + 16 * m + lane % 16, 2 * d + lane / 16));
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t keys[4];
        load_matrices(keys, s.keys + place<HD>(16 * j + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2));
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int m = 0; m < kWarpTiles; ++m)
            mma_bf16(score[m][2 * j + n], query[m][0], query[m][1], query[m][2], query[m][3], keys[2 * n], keys[2 * n + 1]);
      }
    }
    __syncthreads();  // everyone has left the keys
    if (i + 1 < n_tiles)
      copy_tile<HD>(s.keys, args.k + offset(page, i + 1), kKeys);
    else
      commit_copies();

    if ((i + 1) * kKeys > tile.first_position + 1)  // some row does not see all of them
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int last_key = min(tile.first_position + (first_row + 16 * m + 8 * h + g) / group, last_position) - i * kKeys;
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c)
              if (8 * j + 2 * q + c > last_key) score[m][j][2 * h + c] = -INFINITY;
        }
    float keep[kWarpTiles][2];
    bool higher = false;
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float best = top[m][h];
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) best = fmaxf(best, fmaxf(score[m][j][2 * h], score[m][j][2 * h + 1]));
        best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
        higher |= best > top[m][h];
        keep[m][h] = exp2f(top[m][h] - best);  // a row sees the first key, so best is finite
        top[m][h] = best;
        float own = 0.0f;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
          for (int c = 0; c < 2; ++c) own += score[m][j][2 * h + c] = exp2f(score[m][j][2 * h + c] - best);
        total[m][h] = total[m][h] * keep[m][h] + own;
      }
    if (__any_sync(kAllLanes, higher))  // else every factor is one
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
        for (int d = 0; d < HD / 8; ++d)
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[m][d][c] *= keep[m][c / 2];

    asm volatile("cp.async.wait_group 1;" ::: "memory");  // all but the next keys
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t weights[kWarpTiles][4];
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          weights[m][c] = pack_bf16(score[m][2 * j + c / 2][c % 2 * 2], score[m][2 * j + c / 2][c % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < HD / 16; ++d) {
        uint32_t values[4];
        load_transposed(values, s.values + place<HD>(16 * j + lane % 16, 2 * d + lane / 16));
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int m = 0; m < kWarpTiles; ++m)
            mma_bf16(sum[m][2 * d + n], weights[m][0], weights[m][1], weights[m][2], weights[m][3], values[2 * n],
                     values[2 * n + 1]);
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float all = total[m][h] + __shfl_xor_sync(kAllLanes, total[m][h], 1);
      all += __shfl_xor_sync(kAllLanes, all, 2);
      const int r = first_row + 16 * m + 8 * h + g;
      if (r >= n_real) continue;
      float* to = args.out + row_at(r) + 2 * q;
      const float inverse = 1.0f / all;
#pragma unroll
      for (int d = 0; d < HD / 8; ++d)
        *reinterpret_cast<float2*>(to + 8 * d) = {sum[m][d][2 * h] * inverse, sum[m][d][2 * h + 1] * inverse};
    }
}

template <int HD>
void launch_for(const Queue& queue, const MmaAttentionArgs& args) {
  const int tile_tokens = kRows / (args.n_heads / args.n_kv_heads),
            n_slots = args.batch.n_tokens / tile_tokens + args.batch.n_seqs;
  launch(queue, mma_attention_kernel<HD>, dim3(args.n_kv_heads, n_slots), kThreads, sizeof(Shared<HD>), args);
}

}  // namespace

void launch_mma_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int least_rows,
                          const float* q, const KvView& kv, float* out) {
  const MmaAttentionArgs args{batch,
                              shape.n_heads,
                              shape.n_kv_heads,
                              least_rows,
                              q,
                              static_cast<const __nv_bfloat16*>(kv.k),
                              static_cast<const __nv_bfloat16*>(kv.v),
                              out};
  shape.head_dim == 128 ? launch_for<128>(queue, args) : launch_for<64>(queue, args);
}

}  // namespace sigmoe::cuda
