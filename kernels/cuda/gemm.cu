// y = x W^T for 1 to some hundred rows of x. Bound: memory, the bytes of W.
//
// A block has 8 warps: `slices` of them split k over the same tile of 16 rows of W, and 8 / slices tiles are worked on side by
// side. Weights are the 16-row operand of the tensor core and tokens the 8-wide one, so a token costs nothing until there are
// eight. Each lane keeps kDepth groups (16 loads of 16 bytes) in flight. Partial sums meet in shared memory and are added in
// slice order. Slices depend on k alone: a row's bits depend neither on its neighbours nor on how many there are.
#include "cuda/gemm.h"

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/element.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kWarps = 8;

template <WeightFormat F>
struct Stream {
  static constexpr int kChunks = kGroup / chunk_k(F);  // of a group
  static constexpr int kLaneK = chunk_k(F) / 4;        // k per lane, row and chunk
  static constexpr int kDepth = kChunks >= 16 ? 1 : kChunks >= 8 ? 2 : 4;
  static constexpr bool kScaled = F == WeightFormat::fp8 || F == WeightFormat::int4;
  static constexpr int kFlushes = F == WeightFormat::int4 ? kChunks : 1;  // of the unscaled sums, per group
};

// Two E4M3 codes in bytes (0, 2) of `word`, or (1, 3) when `high`, to BF16: the exponent field lands 120 too low, which a
// multiplication by 2^120 puts right, denormal codes included.
template <bool high>
__device__ inline uint32_t fp8_pair(uint32_t word) {
  const uint32_t sign = (high ? word : word << 8) & 0x80008000u;
  const uint32_t magnitude = (high ? word >> 4 : word << 4) & 0x07f007f0u;
  const uint32_t bits = sign | magnitude;
  const __nv_bfloat162 scaled =
      __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits), __nv_bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80)));
  return reinterpret_cast<const uint32_t&>(scaled);
}

// Nibbles i and i + 4 of `word`, minus 8, to BF16: 0x4300 | v is 128 + v.
__device__ inline uint32_t int4_pair(uint32_t word, int i) {
  const uint32_t bits = (word >> (4 * i) & 0x000f000fu) | 0x43004300u;
  const __nv_bfloat162 value =
      __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), __nv_bfloat162(__ushort_as_bfloat16(0x4308), __ushort_as_bfloat16(0x4308)));
  return reinterpret_cast<const uint32_t&>(value);
}

// sum (16 rows, 8 tokens) += one chunk of weights times the lane's kLaneK activations, as BF16 pairs in x.
template <WeightFormat F>
__device__ inline void multiply_chunk(float (&sum)[4], const uint4& w, const uint32_t* x) {
  if constexpr (F == WeightFormat::fp8) {
    mma_bf16(sum, fp8_pair<false>(w.x), fp8_pair<false>(w.z), fp8_pair<true>(w.x), fp8_pair<true>(w.z), x[0], x[1]);
    mma_bf16(sum, fp8_pair<false>(w.y), fp8_pair<false>(w.w), fp8_pair<true>(w.y), fp8_pair<true>(w.w), x[2], x[3]);
  } else if constexpr (F == WeightFormat::bf16) {
    mma_bf16(sum, w.x, w.z, w.y, w.w, x[0], x[1]);
  } else if constexpr (F == WeightFormat::int4) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = m < 2 ? w.x : w.y, high = m < 2 ? w.z : w.w;
      const int i = m % 2 * 2;
      mma_bf16(sum, int4_pair(low, i), int4_pair(high, i), int4_pair(low, i + 1), int4_pair(high, i + 1), x[2 * m], x[2 * m + 1]);
    }
  } else {
    mma_bf16_k8(sum, pack_bf16(__uint_as_float(w.x), __uint_as_float(w.y)), pack_bf16(__uint_as_float(w.z), __uint_as_float(w.w)), x[0]);
  }
}

// N activations from `row` + k as BF16 pairs; elements at or past k_end are zero.
template <int N>
__device__ inline void load_x(const float* row, int k, int k_end, bool whole, uint32_t* x) {
  if (whole) {
    if constexpr (N == 2) {
      const float2 v = *reinterpret_cast<const float2*>(row + k);
      x[0] = pack_bf16(v.x, v.y);
    } else {
#pragma unroll
      for (int i = 0; i < N / 4; ++i) {
        const float4 v = *reinterpret_cast<const float4*>(row + k + 4 * i);
        x[2 * i] = pack_bf16(v.x, v.y);
        x[2 * i + 1] = pack_bf16(v.z, v.w);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < N / 2; ++i)
      x[i] = pack_bf16(k + 2 * i < k_end ? row[k + 2 * i] : 0.0f, k + 2 * i + 1 < k_end ? row[k + 2 * i + 1] : 0.0f);
  }
}

template <int N>
__device__ inline void load_x(const __nv_bfloat16* row, int k, int k_end, bool whole, uint32_t* x) {
  if (whole) {
    if constexpr (N == 2) {
      x[0] = *reinterpret_cast<const uint32_t*>(row + k);
    } else if constexpr (N == 4) {
      const uint2 v = *reinterpret_cast<const uint2*>(row + k);
      x[0] = v.x, x[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < N / 8; ++i) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + k + 8 * i);
        x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
      }
    }
  } else {
    const auto* bits = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
    for (int i = 0; i < N / 2; ++i)
      x[i] = (k + 2 * i < k_end ? bits[k + 2 * i] : 0u) | (k + 2 * i + 1 < k_end ? static_cast<uint32_t>(bits[k + 2 * i + 1]) << 16 : 0u);
  }
}

// One warp's share of one tile: groups [begin, end) of k.
template <WeightFormat F, int NT>
struct TileWalk {
  using S = Stream<F>;
  uint4 weights[S::kDepth][S::kChunks];
  float scales[S::kDepth][S::kFlushes][2];
  const uint4* source;
  const float* scale_rows[2];
  int begin, end, k_shift;

  __device__ TileWalk(const WeightView& w, int tile, int begin, int end) : begin(begin), end(end), k_shift(w.k_shift) {
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
    for (int c = 0; c < S::kChunks; ++c) weights[slot][c] = load_once(source + (static_cast<size_t>(group) * S::kChunks + c) * 32);
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
    for (int d = 0; d < S::kDepth; ++d)
      if (begin + d < end) fetch(d, begin + d);
  }

  // sum[j] (16 rows, 8 tokens) += tile times tokens 8j.. ; rows[j]: the activations of this lane's token, null when there is none.
  // Only the first n_used token blocks are worked on.
  template <typename X>
  __device__ void run(const X* const (&rows)[NT], int n_used, int k_end, float (&sum)[NT][4]) {
    const int q = threadIdx.x % 4;
    const bool aligned = k_end % 8 == 0;
    for (int group0 = begin; group0 < end; group0 += S::kDepth) {
#pragma unroll
      for (int d = 0; d < S::kDepth; ++d) {
        const int group = group0 + d;
        if (group >= end) break;
        const bool whole = aligned && (group + 1) * kGroup <= k_end;
#pragma unroll
        for (int j = 0; j < NT; ++j) {
          if (j >= n_used) break;
          uint32_t x[S::kChunks][S::kLaneK / 2];
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
            if (rows[j])
              load_x<S::kLaneK>(rows[j], group * kGroup + c * chunk_k(F) + q * S::kLaneK, k_end, whole, x[c]);
            else
#pragma unroll
              for (int i = 0; i < S::kLaneK / 2; ++i) x[c][i] = 0;
          }
          if constexpr (S::kScaled) {
#pragma unroll
            for (int f = 0; f < S::kFlushes; ++f) {
              float unscaled[4] = {};
#pragma unroll
              for (int c = 0; c < S::kChunks / S::kFlushes; ++c)
                multiply_chunk<F>(unscaled, weights[d][f * (S::kChunks / S::kFlushes) + c], x[f * (S::kChunks / S::kFlushes) + c]);
#pragma unroll
              for (int i = 0; i < 4; ++i) sum[j][i] += unscaled[i] * scales[d][f][i / 2];
            }
          } else {
#pragma unroll
            for (int c = 0; c < S::kChunks; ++c) multiply_chunk<F>(sum[j], weights[d][c], x[c]);
          }
        }
        if (group + S::kDepth < end) fetch(d, group + S::kDepth);
      }
    }
  }
};

// The expert with the i-th non-empty list, or -1. All threads of the block call it and get the same answer.
__device__ int nth_touched(const int32_t* offsets, int n_experts, int i) {
  __shared__ int warp_counts[kWarps];
  __shared__ int found;
  if (threadIdx.x == 0) found = -1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0;
  for (int base = 0; base < n_experts; base += kWarps * 32) {
    const int e = base + static_cast<int>(threadIdx.x);
    const bool touched = e < n_experts && offsets[e + 1] > offsets[e];
    const unsigned ballot = __ballot_sync(kAllLanes, touched);
    if (lane == 0) warp_counts[warp] = __popc(ballot);
    __syncthreads();
    int rank = before + __popc(ballot & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) rank += warp_counts[w];
      before += warp_counts[w];
    }
    if (touched && rank == i) found = e;
    __syncthreads();
    if (before > i) break;
  }
  return found;
}

template <WeightFormat F, typename X, int NT>
__global__ void __launch_bounds__(kWarps * 32) gemm_kernel(const __grid_constant__ GemmArgs args) {
  __shared__ float partial[kWarps][NT * 4][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool dense = static_cast<int>(blockIdx.x) < args.dense_blocks;
  let_next_start();

  // What this block works on: rows of which weight, for which tokens.
  WeightView w = dense ? args.dense : args.routed;
  const int slices = dense ? args.dense_slices : args.routed_slices, tiles_per_block = kWarps / slices;
  int row_block, token_begin = 0, token_end = args.n_tokens;
  const int32_t* slots = nullptr;  // the routed list: flat (token, choice) indices
  int single_slot = -1;
  if (dense) {
    row_block = blockIdx.x % args.dense_row_blocks;
    token_begin = blockIdx.x / args.dense_row_blocks * (8 * NT);
    token_end = min(token_begin + 8 * NT, args.n_tokens);
  } else {
    wait_for_previous();
    const int item = blockIdx.x - args.dense_blocks, i = item / args.routed_row_blocks;
    row_block = item % args.routed_row_blocks;
    int expert;
    if (args.n_tokens == 1) {  // its choices are distinct: no list to search
      expert = args.expert_ids[i];
      single_slot = i;
      token_end = 1;
    } else {
      expert = nth_touched(args.expert_offsets, args.n_experts, i);
      if (expert < 0) return;
      token_end = args.expert_offsets[expert + 1] - args.expert_offsets[expert];
      slots = args.slot_order + args.expert_offsets[expert];
    }
    w.tiles = args.experts[expert].tiles;
    w.scales = args.experts[expert].scales;
    if (!w.tiles) return;  // this rank has no share of the expert; the output was zeroed
  }

  const int tile = row_block * tiles_per_block + warp / slices, slice = warp % slices;
  const bool has_tile = tile < w.n_tiles;
  const int begin = has_tile ? w.n_groups * slice / slices : 0, end = has_tile ? w.n_groups * (slice + 1) / slices : 0;
  TileWalk<F, NT> walk(w, has_tile ? tile : 0, begin, end);
  walk.prefetch();
  if (dense) wait_for_previous();

  for (int first = token_begin; first < token_end; first += 8 * NT) {
    if (first > token_begin) walk.prefetch();
    const int n_here = min(8 * NT, token_end - first), n_used = (n_here + 7) / 8;
    const X* rows[NT];
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      const int t = first + 8 * j + lane / 4;
      rows[j] = nullptr;
      if (t < token_end) {
        int64_t row = t;
        if (dense) {
          if (args.row_ids) row = args.row_ids[t];
        } else {
          const int slot = slots ? slots[t] : single_slot;
          row = args.mode == GemmMode::gate_up ? slot / args.n_active : slot;
        }
        rows[j] = static_cast<const X*>(dense ? args.dense_x : args.routed_x) + row * w.k;
      }
    }
    float sum[NT][4] = {};
    walk.run(rows, n_used, w.k, sum);

    if (first > token_begin) __syncthreads();  // the last round's sums have been read
#pragma unroll
    for (int j = 0; j < NT; ++j)
      if (j < n_used)
#pragma unroll
        for (int i = 0; i < 4; ++i) partial[warp][4 * j + i][lane] = sum[j][i];
    __syncthreads();

    // One thread per pair of sums (rows g and g + 8 of one token).
    const int n_pairs = tiles_per_block * n_used * 2 * 32;
    for (int index = threadIdx.x; index < n_pairs; index += kWarps * 32) {
      const int owner = index % 32, column = index / 32 % 2, j = index / 64 % n_used, local = index / (64 * n_used);
      const int out_tile = row_block * tiles_per_block + local, t = first + 8 * j + owner % 4 * 2 + column;
      if (out_tile >= w.n_tiles || t >= token_end) continue;
      float low = 0.0f, high = 0.0f;
      for (int s = 0; s < slices; ++s) {
        low += partial[local * slices + s][4 * j + column][owner];
        high += partial[local * slices + s][4 * j + column + 2][owner];
      }
      const int slot = dense ? -1 : slots ? slots[t] : single_slot;
      if (args.mode == GemmMode::gate_up) {
        const int width = w.n / 2, inner = out_tile * 8 + owner / 4;
        if (inner >= width) continue;
        auto* out = static_cast<__nv_bfloat16*>(dense ? args.dense_out : args.routed_out);
        out[static_cast<int64_t>(dense ? t : slot) * width + inner] = __float2bfloat16_rn(low / (1.0f + __expf(-low)) * high);
      } else {
        float* out = static_cast<float*>(dense ? args.dense_out : args.routed_out);
        int64_t row = t;
        float weight = 1.0f;
        if (args.mode == GemmMode::down) {
          row = dense ? static_cast<int64_t>(t) * args.n_slots + args.n_active
                      : static_cast<int64_t>(slot / args.n_active) * args.n_slots + slot % args.n_active;
          if (!dense) weight = args.slot_weights[slot];
        }
        const int n = out_tile * 16 + owner / 4;
        if (n < w.n) out[row * w.n + n] = low * weight;
        if (n + 8 < w.n) out[row * w.n + n + 8] = high * weight;
      }
    }
  }
}

// Warps that share a tile: enough that a lane's share of k is about one pipeline full.
int slices_for(const WeightView& w) { return w.n_groups >= 32 ? 8 : w.n_groups >= 16 ? 4 : w.n_groups >= 8 ? 2 : 1; }

template <WeightFormat F, typename X, int NT>
void launch_variant(const Queue& queue, GemmArgs& args) {
  int n_blocks = 0;
  if (args.dense.tiles) {
    args.dense_slices = slices_for(args.dense);
    args.dense_row_blocks = divide_up(args.dense.n_tiles, kWarps / args.dense_slices);
    args.dense_blocks = args.dense_row_blocks * divide_up(args.n_tokens, 8 * NT);
    n_blocks += args.dense_blocks;
  }
  if (args.routed.n > 0) {
    args.routed_slices = slices_for(args.routed);
    args.routed_row_blocks = divide_up(args.routed.n_tiles, kWarps / args.routed_slices);
    n_blocks += args.routed_row_blocks * static_cast<int>(std::min<int64_t>(args.n_experts, int64_t{args.n_tokens} * args.n_active));
  }
  launch(queue, gemm_kernel<F, X, NT>, n_blocks, kWarps * 32, 0, args);
}

template <WeightFormat F>
void launch_format(const Queue& queue, GemmArgs& args, bool x_is_float) {
  // Routed experts see few tokens each even when the step has many.
  const int tokens = args.dense.tiles && args.routed.n == 0 ? args.n_tokens : divide_up(args.n_tokens, 8);
  if (x_is_float)
    launch_variant<F, float, 1>(queue, args);
  else if (tokens <= 8)
    launch_variant<F, __nv_bfloat16, 1>(queue, args);
  else if (tokens <= 16)
    launch_variant<F, __nv_bfloat16, 2>(queue, args);
  else
    launch_variant<F, __nv_bfloat16, 4>(queue, args);
}

}  // namespace

void launch_gemm(const Queue& queue, GemmArgs args, bool x_is_float) {
  switch (args.dense.tiles ? args.dense.format : args.routed.format) {
    case WeightFormat::f32: return launch_format<WeightFormat::f32>(queue, args, x_is_float);
    case WeightFormat::bf16: return launch_format<WeightFormat::bf16>(queue, args, x_is_float);
    case WeightFormat::fp8: return launch_format<WeightFormat::fp8>(queue, args, x_is_float);
    case WeightFormat::int4: return launch_format<WeightFormat::int4>(queue, args, x_is_float);
  }
}

}  // namespace sigmoe::cuda
