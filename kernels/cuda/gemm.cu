// y = x W^T for 1 to some hundred rows of x. Bound: memory, the bytes of W.
//
// Weights are the 16-row operand of the tensor core and tokens the 8-wide one, so a token costs nothing until there are eight.
// `slices` warps split k over the same tile of 16 rows of W; weights go from memory to registers with kDepth groups of loads in
// flight per lane, partial sums meet in shared memory and are added in slice order. Slices depend on k alone and a token's
// column on nothing else: a row's bits depend neither on its neighbours nor on how many there are.
//
// Blocks have 4 warps, several to an SM, so that one block's start and end hide under the others' streams. few_kernel: up to 8
// tokens at a time, their activations whole in shared memory. wide_kernel: 32 tokens and two tiles per warp, each warp
// copying its own activations a group ahead.
#include <algorithm>

#include "cuda/early_linear.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/stream_gemm.h"

namespace sigmoe::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kFewTokens = 8;    // a tensor-core operand of them
constexpr int kFloatTokens = 2;  // as many are converted while they are staged; more are cheaper to convert once, before

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
    source = w.tiles + (static_cast<size_t>(tile) * w.n_groups * S::kChunks) * 32 + lane;
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
          for (int m = 0; m < Tiles; ++m) unpack<F>(walks[m].weights[d][c], a[m]);
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
__device__ int nth_touched(const int32_t* offsets, int n_experts, int i) {
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

// Elements of a token's activations in shared memory: all of k, zeros up to whole groups, and 64 bytes more, so that the eight
// tokens' rows spread over the banks.
__host__ __device__ constexpr int staged_stride(int n_groups) { return n_groups * kGroup + 32; }

// Four activations of `row` from k on, as BF16.
__device__ inline uint2 four_bf16(const float* row, int k, int k_end) {
  if (k_end % 4 == 0) {
    if (k >= k_end) return {0, 0};
    const float4 v = *reinterpret_cast<const float4*>(row + k);
    return {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
  }
  const auto at = [&](int i) { return i < k_end ? row[i] : 0.0f; };
  return {pack_bf16(at(k), at(k + 1)), pack_bf16(at(k + 2), at(k + 3))};
}
__device__ inline uint2 four_bf16(const __nv_bfloat16* row, int k, int k_end) {
  uint32_t pairs[2];
  load_x<4>(row, k, k_end, k_end % 4 == 0 && k < k_end, pairs);
  return {pairs[0], pairs[1]};
}

template <WeightFormat F, typename X, int Tiles, int Depth>
__global__ void __launch_bounds__(kWarps * 32, Tiles* Depth > 2 ? 4 : 5) few_kernel(const __grid_constant__ GemmArgs args) {
  extern __shared__ __align__(16) __nv_bfloat16 staged[];  // (tokens, staged_stride)
  __shared__ float partial[kWarps][4][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  if (args.mode != GemmMode::gate_up) let_next_start();
  Work work;
  if (!work.find(args, args.few_tokens)) return;
  const WeightView& w = work.w;
  const int side = kWarps / work.slices, first_tile = work.row_block * side * Tiles, slice = warp % work.slices;
  const int begin = w.n_groups * slice / work.slices, end = w.n_groups * (slice + 1) / work.slices;
  const auto tile_of = [&](int m) { return min(first_tile + m * side + warp / work.slices, w.n_tiles - 1); };
  TileWalk<F, Depth> walks[Tiles];
#pragma unroll
  for (int m = 0; m < Tiles; ++m) {
    walks[m].start(w, tile_of(m), begin, end);
    walks[m].prefetch();
  }
  if (work.dense || args.mode == GemmMode::down) wait_for_previous();
  if (args.mode == GemmMode::gate_up) let_next_start();

  const int stride = staged_stride(w.n_groups), n_fours = w.n_groups * kGroup / 4;
  for (int first = work.token_begin; first < work.token_end; first += args.few_tokens) {
    const int n_here = min(args.few_tokens, work.token_end - first);
    if (first > work.token_begin) {
#pragma unroll
      for (int m = 0; m < Tiles; ++m) walks[m].prefetch();
      __syncthreads();  // the last round's activations and sums have been read
    }
    for (int t = 0; t < n_here; ++t) {
      const X* row = static_cast<const X*>(work.dense ? args.dense_x : args.routed_x) + work.input_row(args, first + t) * w.k;
      if (sizeof(X) == 2 && w.k % kGroup == 0) {
        for (int i = threadIdx.x; i < w.k / 8; i += kWarps * 32) copy_16_bytes(staged + t * stride + 8 * i, row + 8 * i);
      } else {
#pragma unroll 8
        for (int i = threadIdx.x; i < n_fours; i += kWarps * 32)
          *reinterpret_cast<uint2*>(staged + t * stride + 4 * i) = four_bf16(row, 4 * i, w.k);
      }
    }
    wait_for_copies();
    __syncthreads();
    float sum[Tiles][1][4] = {};
    const __nv_bfloat16* own = staged + (g < n_here ? g : 0) * stride + q * Stream<F>::kLaneK;
    walk_groups<F, Depth, Tiles, 1>(
        walks, 1,
        [&](int, int group, int chunk, uint32_t* x) {
          if (g < n_here)
            load_x<Stream<F>::kLaneK>(own, group * kGroup + chunk * chunk_k(F), 0, true, x);
          else
#pragma unroll
            for (int i = 0; i < Stream<F>::kLaneK / 2; ++i) x[i] = 0;
        },
        [](int) {}, sum);
#pragma unroll
    for (int m = 0; m < Tiles; ++m) {
      if (m > 0) __syncthreads();
      keep(partial, sum[m], 1);
      __syncthreads();
      work.reduce<1>(args, partial, first_tile + m * side, first, 1);
    }
  }
}

constexpr int kWideTiles = 2;   // per warp
constexpr int kWideBlocks = 4;  // token blocks of 8
constexpr int kWideTokens = 8 * kWideBlocks;
constexpr int kWideStride = kGroup + 32;  // elements of a token in a warp's buffer
constexpr int kWideBuffer = kWideTokens * kWideStride;
constexpr size_t kWideBytes = sizeof(__nv_bfloat16) * kWarps * 2 * kWideBuffer;

template <WeightFormat F>
__global__ void __launch_bounds__(kWarps * 32, 2) wide_kernel(const __grid_constant__ GemmArgs args) {
  extern __shared__ __align__(16) __nv_bfloat16 buffers[];  // per warp two groups of activations, (tokens, kWideStride) each
  __shared__ float partial[kWarps][kWideBlocks * 4][32];
  __shared__ int64_t row_at[kWideTokens];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  if (args.mode != GemmMode::gate_up) let_next_start();
  Work work;
  if (!work.find(args, kWideTokens)) return;
  const WeightView& w = work.w;
  const int side = kWarps / work.slices, first_tile = work.row_block * side * kWideTiles, slice = warp % work.slices;
  const int begin = w.n_groups * slice / work.slices, end = w.n_groups * (slice + 1) / work.slices;
  const auto tile_of = [&](int m) { return min(first_tile + m * side + warp / work.slices, w.n_tiles - 1); };
  constexpr int kDepth = Stream<F>::kDepth;
  TileWalk<F, kDepth> walks[kWideTiles];
#pragma unroll
  for (int m = 0; m < kWideTiles; ++m) {
    walks[m].start(w, tile_of(m), begin, end);
    walks[m].prefetch();
  }
  if (work.dense || args.mode == GemmMode::down) wait_for_previous();
  if (args.mode == GemmMode::gate_up) let_next_start();

  __nv_bfloat16* own = buffers + warp * 2 * kWideBuffer;
  for (int first = work.token_begin; first < work.token_end; first += kWideTokens) {
    const int n_here = min(kWideTokens, work.token_end - first), n_used = (n_here + 7) / 8;
    if (first > work.token_begin)
#pragma unroll
      for (int m = 0; m < kWideTiles; ++m) walks[m].prefetch();
    __syncthreads();                                 // the last round is over
    if (static_cast<int>(threadIdx.x) < n_used * 8)  // rows past the last repeat it; nobody writes their results
      row_at[threadIdx.x] = work.input_row(args, first + min(static_cast<int>(threadIdx.x), n_here - 1)) * w.k;
    __syncthreads();
    const auto copy_group = [&](int group) {
      __nv_bfloat16* to = own + group % 2 * kWideBuffer;
      for (int piece = lane; piece < n_used * 8 * 16; piece += 32) {
        const int t = piece / 16, k = group * kGroup + piece % 16 * 8;
        const __nv_bfloat16* row = static_cast<const __nv_bfloat16*>(work.dense ? args.dense_x : args.routed_x) + row_at[t];
        __nv_bfloat16* at = to + t * kWideStride + piece % 16 * 8;
        if (w.k % 8 == 0 && k + 8 <= w.k)
          copy_16_bytes(at, row + k);
        else
          for (int i = 0; i < 8; ++i) at[i] = k + i < w.k ? row[k + i] : __ushort_as_bfloat16(0);
      }
      commit_copies();
    };
    float sum[kWideTiles][kWideBlocks][4] = {};
    if (begin < end) copy_group(begin);
    walk_groups<F, kDepth, kWideTiles, kWideBlocks>(
        walks, n_used,
        [&](int j, int group, int chunk, uint32_t* x) {
          load_x<Stream<F>::kLaneK>(own + group % 2 * kWideBuffer + (8 * j + g) * kWideStride + q * Stream<F>::kLaneK,
                                    chunk * chunk_k(F), 0, true, x);
        },
        [&](int group) {  // this group has arrived, and the next is on its way into the buffer that everyone has left
          __syncwarp();
          if (group + 1 < end)
            copy_group(group + 1);
          else
            commit_copies();
          wait_for_copies_but_last();
          __syncwarp();
        },
        sum);
#pragma unroll
    for (int m = 0; m < kWideTiles; ++m) {
      __syncthreads();
      keep(partial, sum[m], n_used);
      __syncthreads();
      work.reduce<kWideBlocks>(args, partial, first_tile + m * side, first, n_used);
    }
  }
}

// Grid for blocks whose warps take n_tiles each and tokens_at_once.
int plan_blocks(GemmArgs& args, int n_tiles, int tokens_at_once) {
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

constexpr int kPlentyOfBlocks = 800;  // more than run at once

// Shared memory of a block is about 163 KB on the least device (sm_80); longer rows go through L1.
constexpr size_t kMostStagedBytes = size_t{150} << 10;

bool fits_few(const GemmArgs& args) {
  const int n_groups = std::max(args.dense.tiles ? args.dense.n_groups : 0, args.routed.n > 0 ? args.routed.n_groups : 0);
  return sizeof(__nv_bfloat16) * std::min(args.n_tokens, kFewTokens) * staged_stride(n_groups) <= kMostStagedBytes;
}

template <WeightFormat F, typename X, int Tiles, int Depth>
void launch_few_tiles(const Queue& queue, GemmArgs& args, int n_blocks) {
  const int n_groups = std::max(args.dense.tiles ? args.dense.n_groups : 0, args.routed.n > 0 ? args.routed.n_groups : 0);
  const size_t bytes = sizeof(__nv_bfloat16) * args.few_tokens * staged_stride(n_groups);
  const auto kernel = few_kernel<F, X, Tiles, Depth>;
  if (bytes > (size_t{40} << 10))
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  launch(queue, kernel, n_blocks, kWarps * 32, bytes, args);
}

template <WeightFormat F, typename X>
void launch_few(const Queue& queue, GemmArgs& args) {
  // Expert lists of small steps are short: less shared memory per block then lets more blocks run.
  args.few_tokens =
      args.routed.n > 0 && args.n_tokens <= 32 ? std::min(args.n_tokens, kFewTokens / 2) : std::min(args.n_tokens, kFewTokens);
  const int n_blocks = plan_blocks(args, 1, args.few_tokens);
  // A block of one-byte weights is soon over: where there are plenty, each takes twice the rows. With many tokens shared memory
  // limits how many blocks run, and each keeps more loads in flight.
  if constexpr (chunk_k(F) >= 32)
    if (n_blocks > kPlentyOfBlocks) {
      const int n_fewer = plan_blocks(args, 2, args.few_tokens);
      if (args.n_tokens <= 4) return launch_few_tiles<F, X, 2, 1>(queue, args, n_fewer);
      return launch_few_tiles<F, X, 2, 2>(queue, args, n_fewer);
    }
  launch_few_tiles<F, X, 1, Stream<F>::kDepth>(queue, args, n_blocks);
}

template <WeightFormat F>
void launch_format(const Queue& queue, GemmArgs& args, bool x_is_float) {
  if (x_is_float) return launch_few<F, float>(queue, args);
  // Routed experts see few tokens each even when the step has many.
  const bool routed = args.routed.n > 0;
  if (divide_up(args.n_tokens, routed ? 16 : 1) <= kFewTokens && fits_few(args))
    return launch_few<F, __nv_bfloat16>(queue, args);
  CUDA_CHECK(cudaFuncSetAttribute(wide_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kWideBytes)));
  launch(queue, wide_kernel<F>, plan_blocks(args, kWideTiles, kWideTokens), kWarps * 32, kWideBytes, args);
}

}  // namespace

void launch_gemm(const Queue& queue, GemmArgs args, bool x_is_float) {
  if (launch_early_linear(queue, args, x_is_float)) return;
  if (!x_is_float && launch_stream_gemm(queue, args)) return;
  switch (args.dense.tiles ? args.dense.format : args.routed.format) {
    case WeightFormat::f32: return launch_format<WeightFormat::f32>(queue, args, x_is_float);
    case WeightFormat::bf16: return launch_format<WeightFormat::bf16>(queue, args, x_is_float);
    case WeightFormat::fp8: return launch_format<WeightFormat::fp8>(queue, args, x_is_float);
    case WeightFormat::int4: return launch_format<WeightFormat::int4>(queue, args, x_is_float);
    case WeightFormat::int8: return launch_format<WeightFormat::int8>(queue, args, x_is_float);
  }
}

bool reads_float(const WeightView& weight, int n_tokens) {
  return n_tokens <= kFloatTokens && sizeof(__nv_bfloat16) * n_tokens * staged_stride(weight.n_groups) <= kMostStagedBytes;
}

}  // namespace sigmoe::cuda
