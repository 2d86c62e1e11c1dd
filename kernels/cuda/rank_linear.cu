// Linear layers of one row between ranks, FP8 or BF16: qkv behind the sum over ranks and its norm, and attention out ahead of
// one.
//
// Bound: memory, the bytes of W, and a hop between GPUs. As early_linear.cu: a block has 16 rows of W and a warp a slice of
// 1024 of k, all of whose bytes are on their way before the kernel ahead is done: to shared memory, and two groups of 128 to
// registers, which FP8 takes from there to expand it meanwhile and BF16 straight from memory. qkv: every block takes the whole
// row, 64 KB from L2 with two ranks, in place of a kernel between that takes it once; the first eight blocks write the residual
// stream. Out: the 16 floats of a block go to the other ranks the moment they exist.
//
// k is cut and added up as gemm_few.cu does, the row as comm_reduce.cu does: the bits are the same.
#include "cuda/bulk_copy.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/rank_row.cuh"

namespace sigmoe::cuda {
namespace {

using limits::rank::kSliceGroups, limits::rank::kSliceK;
constexpr int kQkvWarps = 4;
constexpr int kHeldGroups = 2;  // of a slice, in registers before the wait
static_assert(slices_for(4 * kSliceGroups) == 4 && slices_for(2 * kSliceGroups) == 2 && slices_for(kSliceGroups) == 1);

// Of a warp.
template <WeightFormat F>
struct Slice {
  static constexpr int kGroupBytes = 16 * kGroup * (F == WeightFormat::bf16 ? 2 : 1);
  static constexpr int kFirstStaged = F == WeightFormat::bf16 ? kHeldGroups : 0;
  alignas(128) std::byte weights[(kSliceGroups - kFirstStaged) * kGroupBytes];
  alignas(16) __nv_bfloat16 x[kSliceK];
  float scale[kSliceGroups][16];
  uint64_t arrived[2];
};

#if __CUDA_ARCH__ >= 900

template <WeightFormat F>
using Held = uint32_t[kHeldGroups][Stream<F>::kChunks][Stream<F>::kProducts][4];

template <WeightFormat F>
__device__ inline void load_staged(const Slice<F>& own, int group, uint4 (&stored)[Stream<F>::kChunks]) {
  const auto* from = reinterpret_cast<const uint4*>(own.weights) + vector_of<F>(threadIdx.x % 32);
#pragma unroll
  for (int c = 0; c < Stream<F>::kChunks; ++c)
    stored[c] = from[((group - Slice<F>::kFirstStaged) * Stream<F>::kChunks + c) * 32];
}

// Asks for the slice and takes its first groups.
template <WeightFormat F>
__device__ inline void start_slice(Slice<F>& own, const WeightView& w, int tile, int slice, Held<F>& held) {
  using S = Stream<F>;
  constexpr int kGroupBytes = Slice<F>::kGroupBytes;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const auto* source = reinterpret_cast<const std::byte*>(w.tiles) +
                       (static_cast<size_t>(tile) * w.n_groups + slice * kSliceGroups) * kGroupBytes;
  constexpr int kFirst = kHeldGroups * kGroupBytes, kLast = (kSliceGroups - kHeldGroups) * kGroupBytes;
  if (lane == 0) {
    barrier_init(&own.arrived[0], 1);
    barrier_init(&own.arrived[1], 1);
    publish_barriers();
    if constexpr (Slice<F>::kFirstStaged == 0) {
      barrier_expect(&own.arrived[0], kFirst);
      bulk_copy(own.weights, source, kFirst, &own.arrived[0]);
    }
    barrier_expect(&own.arrived[1], kLast);
    bulk_copy(own.weights + (kHeldGroups - Slice<F>::kFirstStaged) * kGroupBytes, source + kFirst, kLast, &own.arrived[1]);
  }
  if constexpr (S::kScaled)
    for (const int row : {g, g + 8}) {
      const float* scales = w.scales + static_cast<size_t>((tile * 16 + row) >> w.row_shift) * w.scale_columns;
#pragma unroll
      for (int i = q; i < kSliceGroups; i += 4) own.scale[i][row] = scales[(slice * kSliceGroups + i) * kGroup >> w.k_shift];
    }
  __syncwarp();
  if constexpr (Slice<F>::kFirstStaged == 0) barrier_wait(&own.arrived[0], 0);
#pragma unroll
  for (int i = 0; i < kHeldGroups; ++i) {
    uint4 stored[S::kChunks];
    if constexpr (Slice<F>::kFirstStaged == 0)
      load_staged(own, i, stored);
    else
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
        stored[c] = load_once(reinterpret_cast<const uint4*>(source) + (i * S::kChunks + c) * 32 + vector_of<F>(lane));
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) unpack<F>(chunk_of<F>(stored, c), held[i][c]);
  }
}

// The slice's part of the tile's rows to sums (16), once the warp has its x.
template <WeightFormat F>
__device__ inline void multiply_slice(Slice<F>& own, const Held<F>& held, float* sums) {
  using S = Stream<F>;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  float sum[4] = {};  // 0 and 2 count: of rows g and g + 8
#pragma unroll
  for (int i = 0; i < kSliceGroups; ++i) {
    if (i == kHeldGroups) barrier_wait(&own.arrived[1], 0);
    float unscaled[4] = {};
    uint4 stored[S::kChunks];
    if (i >= kHeldGroups) load_staged(own, i, stored);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      uint32_t b[S::kLaneK / 2] = {};
      if (g == 0) load_x<S::kLaneK>(own.x + q * S::kLaneK, i * kGroup + c * chunk_k(F), 0, true, b);
      if (i < kHeldGroups) {
        multiply<F>(S::kScaled ? unscaled : sum, held[i < kHeldGroups ? i : 0][c], b);
      } else {
        uint32_t a[S::kProducts][4];
        unpack<F>(chunk_of<F>(stored, c), a);
        multiply<F>(S::kScaled ? unscaled : sum, a, b);
      }
    }
    if constexpr (S::kScaled) {
      sum[0] += unscaled[0] * own.scale[i][g];
      sum[2] += unscaled[2] * own.scale[i][g + 8];
    }
  }
  if (q == 0) sums[g] = sum[0], sums[g + 8] = sum[2];
}

#endif

struct QkvArgs {
  WeightView w;
  RankRow row;
  float* y;
};

template <WeightFormat F, bool kTwoRanks>
__global__ void __launch_bounds__(kQkvWarps * 32, 2) rank_qkv_kernel(const __grid_constant__ QkvArgs args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte raw[];
  __shared__ float of_vectors[32], sums[kQkvWarps][16];
  constexpr int kVectors = kSliceK / 128;  // of a lane, of the warp's slice: of 128 floats i the lane-th
  static_assert(kQkvWarps * kVectors == 32);
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = blockIdx.x, first = warp * (kSliceK / 4) + lane;
  Slice<F>& own = reinterpret_cast<Slice<F>*>(raw)[warp];
  Held<F> held;
  start_slice<F>(own, args.w, tile, warp, held);
  float4 weight[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) weight[i] = reinterpret_cast<const float4*>(args.row.norm_weight)[first + 32 * i];
  wait_for_previous();

  float4 value[kVectors];
  take_row<kTwoRanks>(args.row, first, 32, value);
  float squares_of_own = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (i == tile) reinterpret_cast<float4*>(args.row.residual_out)[first + 32 * i] = value[i];
    const float sum = warp_sum(squares(value[i]));
    if (lane == i) squares_of_own = sum;
  }
  if (lane < kVectors) of_vectors[warp * kVectors + lane] = squares_of_own;
  __syncthreads();
  const float inverse = 1.0f / sqrtf(warp_sum(of_vectors[lane]) / kRankWidth + args.row.eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    reinterpret_cast<uint2*>(own.x)[lane + 32 * i] = {
        pack_bf16(value[i].x * inverse * weight[i].x, value[i].y * inverse * weight[i].y),
        pack_bf16(value[i].z * inverse * weight[i].z, value[i].w * inverse * weight[i].w)};
  __syncwarp();
  multiply_slice<F>(own, held, sums[warp]);
  __syncthreads();
  if (threadIdx.x >= 16) return;
  float sum = 0.0f;
#pragma unroll
  for (int s = 0; s < kQkvWarps; ++s) sum += sums[s][threadIdx.x];
  args.y[tile * 16 + threadIdx.x] = sum;
#endif
}

struct OutArgs {
  WeightView w;
  const float* x;
  float* partial;
  RowExchange push;
};

template <WeightFormat F, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 8 / kWarps) rank_out_kernel(const __grid_constant__ OutArgs args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte raw[];
  __shared__ float sums[kWarps][16];
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = blockIdx.x;
  Slice<F>& own = reinterpret_cast<Slice<F>*>(raw)[warp];
  Held<F> held;
  start_slice<F>(own, args.w, tile, warp, held);
  const uint32_t number = args.push.peers.world > 1 ? next_number(row_counter(args.push, tile)) : 0;
  wait_for_previous();

  const auto* x = reinterpret_cast<const float4*>(args.x) + warp * (kSliceK / 4) + lane;
  float4 value[kSliceK / 128];
#pragma unroll
  for (int i = 0; i < kSliceK / 128; ++i) value[i] = __ldcg(x + 32 * i);
#pragma unroll
  for (int i = 0; i < kSliceK / 128; ++i)
    reinterpret_cast<uint2*>(own.x)[lane + 32 * i] = {pack_bf16(value[i].x, value[i].y), pack_bf16(value[i].z, value[i].w)};
  __syncwarp();
  multiply_slice<F>(own, held, sums[warp]);
  __syncthreads();
  if (threadIdx.x >= 16) return;
  float sum = 0.0f;
#pragma unroll
  for (int s = 0; s < kWarps; ++s) sum += sums[s][threadIdx.x];
  hand_out(args.push, tile, args.partial, sum, number);
#endif
}

template <WeightFormat F, typename Args>
void launch_slices(const Queue& queue, void (*kernel)(Args), int n_warps, const Args& args) {
  const int bytes = n_warps * static_cast<int>(sizeof(Slice<F>));
  launch(queue, kernel, args.w.n_tiles, n_warps * 32, bytes, args);
}

template <WeightFormat F>
void launch_qkv(const Queue& queue, const QkvArgs& args) {
  if (args.row.exchange.peers.world == 2)
    launch_slices<F>(queue, rank_qkv_kernel<F, true>, kQkvWarps, args);
  else
    launch_slices<F>(queue, rank_qkv_kernel<F, false>, kQkvWarps, args);
}

template <WeightFormat F>
void launch_out(const Queue& queue, const OutArgs& args) {
  if (args.w.k == 2 * kSliceK)
    launch_slices<F>(queue, rank_out_kernel<F, 2>, 2, args);
  else
    launch_slices<F>(queue, rank_out_kernel<F, 1>, 1, args);
}

}  // namespace

bool has_rank_rows() {
  static const bool built = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, rank_qkv_kernel<WeightFormat::fp8, true>));
    return attributes.binaryVersion >= 90 && attributes.ptxVersion != 80;
  }();
  return built;
}

void launch_rank_qkv(const Queue& queue, const WeightView& weight, const RankRow& row, float* y) {
  const QkvArgs args{weight, row, y};
  weight.format == WeightFormat::bf16 ? launch_qkv<WeightFormat::bf16>(queue, args)
                                      : launch_qkv<WeightFormat::fp8>(queue, args);
}

void launch_rank_out(const Queue& queue, const WeightView& weight, const float* x, float* partial, const RowExchange* push) {
  const OutArgs args{weight, x, partial, push ? *push : RowExchange{}};
  weight.format == WeightFormat::bf16 ? launch_out<WeightFormat::bf16>(queue, args)
                                      : launch_out<WeightFormat::fp8>(queue, args);
}

}  // namespace sigmoe::cuda
