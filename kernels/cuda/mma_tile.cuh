// The main loop of the many-row products by mma.sync: 256 rows of W, 32 to each of eight warps, times up to 128 rows of x.
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

constexpr int kWarps = 8;
constexpr int kWarpTiles = 2;                      // of 16 rows of W
constexpr int kWeightTiles = kWarps * kWarpTiles;  // of a block
constexpr int kStages = 6;                         // of x: two are multiplied between barriers, four are on their way
constexpr int kStageK = 64;
constexpr int kTileRows = kMmaTileRows;  // of x, at most

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

constexpr int kCopied = kWarps * 4;  // rows of x that the block copies at a time, eight threads to a row

// Where the rows of x that this thread copies begin, one of every kCopied from threadIdx.x / 8 on.
template <bool Gathered, int N>
struct CopiedRows {
  const uint4* first;  // of the run they lie in, or of all rows when they are gathered
  int stride;          // 16-byte pieces to the row kCopied rows on
  int n_real;          // rows that there are, when they lie in a run: those past them are zeros
  uint32_t pieces[Gathered ? N / kCopied : 1];

  __device__ const uint4* row(int i) const {
    if constexpr (Gathered)
      return first + pieces[i];
    else
      return first + i * stride;
  }
};

// Starts the copy of rows kCopied i and on, k [64 step, 64 step + 64).
template <WeightFormat F, typename Rows>
__device__ inline void copy_rows(Shared& s, const Rows& rows, int i, int k, int step) {
  const int piece = threadIdx.x % 8, r = threadIdx.x / 8 + kCopied * i, k_piece = step * 8 + piece;
  copy_16_bytes_or_zero(s.x[step % kStages] + place<F>(r, piece), rows.row(i) + k_piece, k_piece * 8 < k && r < rows.n_real);
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
    a[0][0] = fp8_pair_times<false>(w.x, low), a[0][1] = fp8_pair_times<false>(w.y, high);
    a[0][2] = fp8_pair_times<true>(w.x, low), a[0][3] = fp8_pair_times<true>(w.y, high);
    a[1][0] = fp8_pair_times<false>(w.z, low), a[1][1] = fp8_pair_times<false>(w.w, high);
    a[1][2] = fp8_pair_times<true>(w.z, low), a[1][3] = fp8_pair_times<true>(w.w, high);
  } else {
    unpack<F>(w, a);
    if constexpr (F == WeightFormat::int4)
#pragma unroll
      for (int p = 0; p < 4; ++p)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[p][i] = times(a[p][i], i % 2 == 0 ? low : high);
  }
}

// The scales of the lane's rows of W, a block of k at a time: of rows g and g + 8 of each of its tiles, or, where a block of W
// has one scale (FP8), of all its tiles at once.
template <WeightFormat F>
struct Scales {
  static constexpr int kTiles = F == WeightFormat::int4 ? kWarpTiles : 1;
  const float* base = nullptr;
  int at[kTiles][2];
  float next[kTiles][2];
  Unit unit[kTiles][2];

  __device__ void start(const WeightView& w, int first_tile) {
    base = w.scales;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = max(row_in_tile(w, min(first_tile + m, w.n_tiles - 1), threadIdx.x % 32 / 4 + 8 * h), 0);
        at[m][h] = (row >> w.row_shift) * w.scale_columns;
        next[m][h] = w.k_shift < 30 ? __ldg(base + at[m][h]) : 1.0f;
        unit[m][h] = unit_of<F>(1.0f, {});
      }
  }
  // Takes the scales of k [64 step, ...): what sums change by. Those of `next_step` are on their way.
  __device__ void advance(const WeightView& w, int next_step, float (&change)[kTiles][2]) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Unit fresh = unit_of<F>(next[m][h], unit[m][h]);
        change[m][h] = __fdividef(unit[m][h].rest, fresh.rest);
        unit[m][h] = fresh;
        if (w.k_shift < 30) next[m][h] = __ldg(base + at[m][h] + (next_step * kStageK >> w.k_shift));
      }
  }
};

template <int N>
using Sums = float[kWarpTiles][N / 8][4];  // of a warp: 32 rows of W, N rows of x

// Scales that cover all of k wait for the end.
template <int N>
__device__ void scale_rows(const WeightView& w, int first_tile, Sums<N>& sum) {
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = max(row_in_tile(w, min(first_tile + m, w.n_tiles - 1), threadIdx.x % 32 / 4 + 8 * h), 0);
      const float scale = w.scales[static_cast<size_t>(row >> w.row_shift) * w.scale_columns];
#pragma unroll
      for (int j = 0; j < N / 8; ++j) sum[m][j][2 * h] *= scale, sum[m][j][2 * h + 1] *= scale;
    }
}

// Steps that W is on its way ahead of its use: fewer registers are left where there are more sums.
constexpr int steps_ahead(WeightFormat format, int n) {
  if (format == WeightFormat::bf16) return n == 128 ? 1 : 2;
  if (format == WeightFormat::fp8) return n == 128 ? 1 : n == 96 ? 2 : 4;
  return n == 128 ? 2 : 4;
}

// A warp on its way along k.
template <WeightFormat F, int N, bool Gathered>
struct Walk {
  static constexpr int kChunks = kStageK / chunk_k(F), kProducts = Stream<F>::kProducts, kRing = steps_ahead(F, N);
  static constexpr int kScaleTiles = Scales<F>::kTiles;
  const uint4* source[kWarpTiles];
  uint4 raw[kRing][kChunks][kWarpTiles];
  Scales<F> scales;
  int n_steps;

  // The lane's share of chunk c of block j of eight rows of x.
  static __device__ void load(const uint8_t* stage, int c, int j, uint32_t (&b)[2 * kProducts]) {
    const int lane = threadIdx.x % 32, q = lane % 4, r = 8 * j + lane / 4;
    if constexpr (F == WeightFormat::bf16) {
      const uint2 v = *reinterpret_cast<const uint2*>(stage + place<F>(r, 2 * c + q / 2) + q % 2 * 8);
      b[0] = v.x, b[1] = v.y;
    } else {
#pragma unroll
      for (int v = 0; v < kProducts / 2; ++v) {
        const uint4 four = *reinterpret_cast<const uint4*>(stage + place<F>(r, F == WeightFormat::fp8 ? 4 * c + q : 2 * q + v));
        b[4 * v] = four.x, b[4 * v + 1] = four.y, b[4 * v + 2] = four.z, b[4 * v + 3] = four.w;
      }
    }
  }

  // Where stored chunk c of a step lies in a tile's run. FP8: a step is one of the halves of a group, its rows 0-7 and 8-15.
  static __device__ int stored_at(int step, int c) {
    return 32 * (F == WeightFormat::fp8 ? step / 2 * 4 + step % 2 + 2 * c : step * kChunks + c);
  }

  // A step of k. First: of a pair between barriers. Rescale: new scales begin here, or may.
  template <bool First, bool Rescale>
  __device__ __forceinline__ void run(const WeightView& w, const CopiedRows<Gathered, N>& rows, Shared& s, int step,
                                      uint4 (&own)[kChunks][kWarpTiles], Sums<N>& sum) {
    if constexpr (First) {
      wait_for_copies_but<kStages - 4>();
      __syncthreads();
    }
    float change[kScaleTiles][2];
    if constexpr (Rescale) scales.advance(w, min(step + (w.k_shift == 6 ? 1 : 2), n_steps - 1), change);
    const uint8_t* stage = s.x[step % kStages];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      uint32_t a[kWarpTiles][kProducts][4];
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        const uint4 chunk = F == WeightFormat::fp8 ? interleaved(own[0][m], own[kChunks - 1][m], c) : own[c][m];
        expand<F>(chunk, scales.unit[m % kScaleTiles][0].factor, scales.unit[m % kScaleTiles][1].factor, a[m]);
        if (step + kRing < n_steps) {
          if constexpr (F != WeightFormat::fp8)
            own[c][m] = load_once(source[m] + stored_at(step + kRing, c));
          else if (c + 1 == kChunks)
#pragma unroll
            for (int s = 0; s < kChunks; ++s) own[s][m] = load_once(source[m] + stored_at(step + kRing, s));
        }
      }
      constexpr int kAtOnce = 2;  // blocks of eight rows of x: products that do not wait for each other
#pragma unroll
      for (int j = 0; j < N / 8; j += kAtOnce) {
        uint32_t b[kAtOnce][2 * kProducts];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          load(stage, c, j + i, b[i]);
          if constexpr (Rescale)
            if (c == 0)
#pragma unroll
              for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[m][j + i][e] *= change[m % kScaleTiles][e / 2];
        }
        if (c == 0 && j % (kCopied / 8) == 0) copy_rows<F>(s, rows, j / (kCopied / 8), w.k, step + kStages - 2);
#pragma unroll
        for (int p = 0; p < kProducts; ++p)
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
            for (int m = 0; m < kWarpTiles; ++m)
              mma_bf16(sum[m][j + i], a[m][p][0], a[m][p][1], a[m][p][2], a[m][p][3], b[i][2 * p], b[i][2 * p + 1]);
      }
    }
    commit_copies();
  }
};

// sum = products of the warp's rows of W and N rows of x.
template <WeightFormat F, int N, bool Gathered>
__device__ void multiply(const WeightView& w, int first_tile, const CopiedRows<Gathered, N>& rows, Shared& s, Sums<N>& sum) {
  using Path = Walk<F, N, Gathered>;
  constexpr bool kScaled = Stream<F>::kScaled;
  Path walk;
  walk.n_steps = (w.k + kStageK - 1) / kStageK;
#pragma unroll
  for (int step = 0; step < kStages - 2; ++step) {
#pragma unroll
    for (int i = 0; i < N / kCopied; ++i) copy_rows<F>(s, rows, i, w.k, step);
    commit_copies();
  }
  const size_t tile_run = static_cast<size_t>(w.n_groups) * (kGroup / chunk_k(F)) * 32;
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m) {
    walk.source[m] = w.tiles + min(first_tile + m, w.n_tiles - 1) * tile_run + vector_of<F>(threadIdx.x % 32);
#pragma unroll
    for (int u = 0; u < Path::kRing; ++u)
#pragma unroll
      for (int c = 0; c < Path::kChunks; ++c)
        if (u < walk.n_steps) walk.raw[u][c][m] = load_once(walk.source[m] + Path::stored_at(u, c));
  }
  if constexpr (kScaled) walk.scales.start(w, first_tile);
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][j][i] = 0.0f;

  constexpr int kUnroll = Path::kRing == 1 ? 2 : Path::kRing;
  for (int first = 0; first < walk.n_steps; first += kUnroll)
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u >= walk.n_steps) break;
      // Scales hold for two steps, but those of groups of 64.
      uint4(&own)[Path::kChunks][kWarpTiles] = walk.raw[u % Path::kRing];
      if (u % 2 == 0)
        walk.template run<true, kScaled>(w, rows, s, first + u, own, sum);
      else if (F == WeightFormat::int4 && w.k_shift == 6)
        walk.template run<false, kScaled>(w, rows, s, first + u, own, sum);
      else
        walk.template run<false, false>(w, rows, s, first + u, own, sum);
    }
  if constexpr (kScaled)
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][j][i] *= walk.scales.unit[m % Path::kScaleTiles][i / 2].rest;
  if constexpr (kScaled)
    if (w.k_shift >= 30) scale_rows<N>(w, first_tile, sum);
  wait_for_copies();
  __syncthreads();  // nobody reads or writes the stages any more
}

}  // namespace sigmoe::cuda::mma
