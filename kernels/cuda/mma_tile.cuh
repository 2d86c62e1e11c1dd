// The main loop of the many-row products by mma.sync: 128 rows of W, 32 to each of four warps, times up to 128 rows of x.
//
// W goes from memory to registers in the order it lies in (weight.h) and is expanded there by the one warp that multiplies it;
// x comes through shared memory by asynchronous copies, 64 of k a stage, and a lane reads its share of it as one run of bytes,
// because that is how W has cut k among lanes. Scales: codes are expanded times the power of two below the scale, exact in
// BF16, and what remains of the scale, between 1 and 2, is the unit the sums are kept in: sums change units where a new block
// of k begins, so that no second set of them is needed.
#pragma once

#include "cuda/gemm_tile.cuh"
#include "cuda/mma_gemm.h"

namespace sigmoe::cuda::mma {

constexpr int kWarps = 4;
constexpr int kWarpTiles = 2;                      // of 16 rows of W
constexpr int kWeightTiles = kWarps * kWarpTiles;  // of a block
constexpr int kStages = 4;
constexpr int kStageK = 64;
constexpr int kTileRows = 128;  // of x, at most
static_assert(kMostTileRows == kTileRows, "the list of row tiles is made for tiles of this size");

struct Shared {
  uint8_t x[kStages][kTileRows * kStageK * 2];  // after the main loop: the block's results
  uint32_t pieces[kTileRows];                   // where row r of x begins, in 16-byte pieces
  int32_t out_rows[kTileRows];
  float row_weights[kTileRows];
};

// Byte offset of 16-byte piece `piece` of row r in a stage: rows that a quarter of a warp reads at once lie in different banks.
template <WeightFormat F>
__device__ inline int place(int r, int piece) {
  const int flip = F == WeightFormat::fp8 ? (r & 1) * 4 : F == WeightFormat::int4 ? r & 1 : (r & 3) * 2;
  return r * 128 + (piece ^ flip) * 16;
}

// 16 bytes to shared memory, or zeros.
__device__ inline void copy_16_bytes_or_zero(void* shared, const void* global, bool real) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(real ? 16 : 0) : "memory");
}
template <int N>
__device__ inline void wait_for_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Starts the copies of k [64 step, 64 step + 64) of N rows.
template <WeightFormat F, int N>
__device__ inline void copy_stage(Shared& s, const uint4* x, int k, int step) {
  const int piece = threadIdx.x % 8, k_piece = step * 8 + piece;
  uint8_t* stage = s.x[step % kStages];
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    const int r = threadIdx.x / 8 + 16 * i;
    copy_16_bytes_or_zero(stage + place<F>(r, piece), x + s.pieces[r] + k_piece, k_piece * 8 < k);
  }
}

// 2^120 times a power of two, in both halves: what turns a shifted FP8 code into BF16 (gemm_tile.cuh), scaled.
struct Unit {
  float rest = 1.0f;  // the scale is rest * 2^exponent
  uint32_t factor = 0;
};

// The unit of a scale. Zero keeps `before`, with codes expanded to zeros.
template <WeightFormat F>
__device__ inline Unit unit_of(float scale, const Unit& before) {
  if (scale == 0.0f) return {before.rest, 0};
  const int exponent = min(max(static_cast<int>(__float_as_uint(scale) >> 23 & 255) - 127, -100), 7);
  const uint32_t bits = static_cast<uint32_t>(exponent + 127 + (F == WeightFormat::fp8 ? 120 : 0)) << 7;
  return {scale * __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23), bits | bits << 16};
}

__device__ inline uint32_t times(uint32_t pair, uint32_t factor) {
  const __nv_bfloat162 product =
      __hmul2(reinterpret_cast<const __nv_bfloat162&>(pair), reinterpret_cast<const __nv_bfloat162&>(factor));
  return reinterpret_cast<const uint32_t&>(product);
}

template <bool high>
__device__ inline uint32_t fp8_pair_times(uint32_t word, uint32_t factor) {
  const uint32_t shifted = high ? word : word << 8;
  return times((shifted & 0x80008000u) | (shifted >> 4 & 0x07f007f0u), factor);
}

// One chunk of weights as tensor-core operands; low and high: the factors of rows g and g + 8.
template <WeightFormat F>
__device__ inline void expand(const uint4& w, uint32_t low, uint32_t high, uint32_t (&a)[Stream<F>::kProducts][4]) {
  if constexpr (F == WeightFormat::fp8) {
    a[0][0] = fp8_pair_times<false>(w.x, low), a[0][1] = fp8_pair_times<false>(w.z, high);
    a[0][2] = fp8_pair_times<true>(w.x, low), a[0][3] = fp8_pair_times<true>(w.z, high);
    a[1][0] = fp8_pair_times<false>(w.y, low), a[1][1] = fp8_pair_times<false>(w.w, high);
    a[1][2] = fp8_pair_times<true>(w.y, low), a[1][3] = fp8_pair_times<true>(w.w, high);
  } else {
    unpack<F>(w, a);
    if constexpr (F == WeightFormat::int4)
#pragma unroll
      for (int p = 0; p < 4; ++p)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[p][i] = times(a[p][i], i % 2 == 0 ? low : high);
  }
}

// The lane's scales of its four rows of W: rows g and g + 8 of two tiles.
struct Scales {
  const float* base = nullptr;
  int at[kWarpTiles][2];
  float next[kWarpTiles][2];
  Unit unit[kWarpTiles][2];

  __device__ void start(const WeightView& w, int first_tile) {
    base = w.scales;
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = max(row_in_tile(w, min(first_tile + m, w.n_tiles - 1), threadIdx.x % 32 / 4 + 8 * h), 0);
        at[m][h] = (row >> w.row_shift) * w.scale_columns;
        next[m][h] = base[at[m][h]];
      }
  }
};

// sum (32 rows of W of this warp, N rows of x) = their products. All warps must have seen s.pieces.
template <WeightFormat F, int N>
__device__ void multiply(const WeightView& w, int first_tile, const uint4* x, Shared& s, float (&sum)[kWarpTiles][N / 8][4]) {
  constexpr int kChunks = kStageK / chunk_k(F), kProducts = Stream<F>::kProducts;
  constexpr bool kScaled = Stream<F>::kScaled;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, n_steps = (w.k + kStageK - 1) / kStageK;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < n_steps) copy_stage<F, N>(s, x, w.k, i);
    commit_copies();
  }
  const size_t tile_run = static_cast<size_t>(w.n_groups) * (kGroup / chunk_k(F)) * 32;
  const uint4* source[kWarpTiles];
  uint4 raw[kChunks][kWarpTiles];
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m) {
    source[m] = w.tiles + min(first_tile + m, w.n_tiles - 1) * tile_run + lane;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) raw[c][m] = load_once(source[m] + 32 * c);
  }
  Scales scales;
  if constexpr (kScaled) scales.start(w, first_tile);
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][j][i] = 0.0f;

  const int block_steps = kScaled ? w.k_shift >= 30 ? 1 << 30 : 1 << (w.k_shift - 6) : 0;  // that share a scale
  for (int step = 0; step < n_steps; ++step) {
    wait_for_copies_but<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < n_steps) copy_stage<F, N>(s, x, w.k, step + kStages - 1);
    commit_copies();
    if constexpr (kScaled)
      if ((step & (block_steps - 1)) == 0) {
        const int next_step = min(step + block_steps, n_steps - 1), column = next_step * kStageK >> w.k_shift;
#pragma unroll
        for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const Unit unit = unit_of<F>(scales.next[m][h], scales.unit[m][h]);
            const float change = __fdividef(scales.unit[m][h].rest, unit.rest);
            scales.unit[m][h] = unit;
            scales.next[m][h] = scales.base[scales.at[m][h] + column];
#pragma unroll
            for (int j = 0; j < N / 8; ++j) sum[m][j][2 * h] *= change, sum[m][j][2 * h + 1] *= change;
          }
      }
    const uint8_t* stage = s.x[step % kStages];
    const bool more = step + 1 < n_steps;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      uint32_t a[kWarpTiles][kProducts][4];
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        expand<F>(raw[c][m], scales.unit[m][0].factor, scales.unit[m][1].factor, a[m]);
        if (more) raw[c][m] = load_once(source[m] + (static_cast<size_t>(step + 1) * kChunks + c) * 32);
      }
      constexpr int kAtOnce = 2;  // blocks of eight rows of x: products that do not wait for each other
#pragma unroll
      for (int j = 0; j < N / 8; j += kAtOnce) {
        uint32_t b[kAtOnce][2 * kProducts];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int r = 8 * (j + i) + g;
          if constexpr (F == WeightFormat::bf16) {
            const uint2 v = *reinterpret_cast<const uint2*>(stage + place<F>(r, 2 * c + q / 2) + q % 2 * 8);
            b[i][0] = v.x, b[i][1] = v.y;
          } else {
#pragma unroll
            for (int v = 0; v < kProducts / 2; ++v) {
              const uint4 four =
                  *reinterpret_cast<const uint4*>(stage + place<F>(r, F == WeightFormat::fp8 ? 4 * c + q : 2 * q + v));
              b[i][4 * v] = four.x, b[i][4 * v + 1] = four.y, b[i][4 * v + 2] = four.z, b[i][4 * v + 3] = four.w;
            }
          }
        }
#pragma unroll
        for (int p = 0; p < kProducts; ++p)
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
            for (int m = 0; m < kWarpTiles; ++m)
              mma_bf16(sum[m][j + i], a[m][p][0], a[m][p][1], a[m][p][2], a[m][p][3], b[i][2 * p], b[i][2 * p + 1]);
      }
    }
  }
  if constexpr (kScaled)
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][j][i] *= scales.unit[m][i / 2].rest;
  __syncthreads();  // nobody reads the stages any more
}

}  // namespace sigmoe::cuda::mma
