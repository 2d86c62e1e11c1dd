// y = x W^T for up to four rows of x and FP8 weights of k 4096 (qkv, attention out): all of W on its way before x exists.
//
// Bound: memory, the bytes of W; but a kernel that is over in five microseconds spends as long again starting its stream. So
// the grid fits the device whole, three blocks to an SM, and a block asks for every byte of its 16 rows at once, 64 KB, before
// it waits for the kernel ahead: the bytes arrive while that one (a norm, attention) works. What registers hold is expanded to
// BF16 meanwhile, too. After the wait are left: x from L2, the tensor core, one meeting of the four warps.
//
// A warp has one of the four slices of k that gemm_few.cu has, adds in its order and meets the others in its order:
// the bits are the same.
#include <algorithm>

#include "cuda/bulk_copy.cuh"
#include "cuda/early_linear.h"
#include "cuda/gemm_tile.cuh"

namespace sigmoe::cuda {
namespace {

constexpr WeightFormat kFormat = WeightFormat::fp8;
using S = Stream<kFormat>;
using limits::early::kBlocksPerSm, limits::early::kGroups, limits::early::kMostTokens, limits::early::kWarps,
    limits::early::warp_bytes;
constexpr int kSliceGroups = kGroups / kWarps;
constexpr int kSliceK = kSliceGroups * kGroup;
[[maybe_unused]] constexpr int kHeldGroups = 3;  // of a slice, expanded in registers before the wait
constexpr int kGroupBytes = 16 * kGroup, kSliceBytes = kSliceGroups * kGroupBytes;
constexpr int kRowElements = kSliceK + 32;  // of a token: 64 bytes more, so that tokens lie in different banks
static_assert(slices_for(kGroups) == kWarps);

static_assert(warp_bytes(1) == kSliceBytes + kRowElements * static_cast<int>(sizeof(__nv_bfloat16)));

struct EarlyArgs {
  WeightView w;
  const void* x;
  const int32_t* row_ids;
  float* out;
  int n_tokens;
  const float* norm_weight = nullptr;
  float eps = 0.0f;
};

// What stands around the product: nothing, a norm of its one row ahead of it, or a sum with what `out` holds behind it.
enum class Around { nothing, norm_before, sum_after };

// The lane's part of what its warp needs of a token's activations, to shared memory in BF16.
[[maybe_unused]] __device__ inline void stage(__nv_bfloat16* to, const float* from, int lane) {
  float4 v[kSliceK / 128];
#pragma unroll
  for (int i = 0; i < kSliceK / 128; ++i) v[i] = reinterpret_cast<const float4*>(from)[lane + 32 * i];
#pragma unroll
  for (int i = 0; i < kSliceK / 128; ++i)
    reinterpret_cast<uint2*>(to)[lane + 32 * i] = {pack_bf16(v[i].x, v[i].y), pack_bf16(v[i].z, v[i].w)};
}
[[maybe_unused]] __device__ inline void stage(__nv_bfloat16* to, const __nv_bfloat16* from, int lane) {
#pragma unroll
  for (int i = 0; i < kSliceK / 256; ++i) copy_16_bytes(to + 8 * (lane + 32 * i), from + 8 * (lane + 32 * i));
}

// The norm of the row: lane l's float4 i of its warp's slice is number l + 32 i of it. Sums of squares meet as those of
// reduce_add_rms_norm do, 128 floats to a warp sum, so that every block has the bits of that kernel.
struct NormOfSlice {
  static constexpr int kVectors = kSliceK / 128;
  float4 weight[kVectors];
};

[[maybe_unused]] __device__ inline void load_weight(NormOfSlice& norm, const float* from) {
#pragma unroll
  for (int i = 0; i < NormOfSlice::kVectors; ++i)
    norm.weight[i] = reinterpret_cast<const float4*>(from)[threadIdx.x % 32 + 32 * i];
}

// scratch (32): by all warps at once.
[[maybe_unused]] __device__ inline void stage(const NormOfSlice& norm, __nv_bfloat16* to, const float* from, float eps,
                                              float* scratch) {
  constexpr int kVectors = NormOfSlice::kVectors;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float4 v[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) v[i] = reinterpret_cast<const float4*>(from)[lane + 32 * i];
  float own = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float sum = warp_sum(v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w);
    if (lane == i) own = sum;
  }
  if (lane < kVectors) scratch[warp * kVectors + lane] = own;
  __syncthreads();
  const float inverse = 1.0f / sqrtf(warp_sum(scratch[lane]) / (kWarps * kSliceK) + eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float4 &value = v[i], &weight = norm.weight[i];
    reinterpret_cast<uint2*>(to)[lane + 32 * i] = {pack_bf16(value.x * inverse * weight.x, value.y * inverse * weight.y),
                                                   pack_bf16(value.z * inverse * weight.z, value.w * inverse * weight.w)};
  }
}

template <typename X, Around kAround>
__global__ void __launch_bounds__(kWarps * 32, kBlocksPerSm) early_kernel(const __grid_constant__ EarlyArgs args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t arrived[kWarps][2];
  __shared__ float scale[kWarps][kSliceGroups][16];
  // What follows qkv must not take its time while it waits for x and makes its norm: 1.7 us of a layer.
  if (kAround != Around::norm_before) let_next_start();
  const WeightView& w = args.w;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4, tile = blockIdx.x;
  char* own = shared + warp * warp_bytes(args.n_tokens);
  if (lane == 0) {  // the groups that are expanded first arrive on a barrier of their own
    barrier_init(&arrived[warp][0], 1);
    barrier_init(&arrived[warp][1], 1);
    publish_barriers();
    const char* source =
        reinterpret_cast<const char*>(w.tiles) + (static_cast<size_t>(tile) * kGroups + warp * kSliceGroups) * kGroupBytes;
    constexpr int kFirst = kHeldGroups * kGroupBytes;
    barrier_expect(&arrived[warp][0], kFirst);
    bulk_copy(own, source, kFirst, &arrived[warp][0]);
    barrier_expect(&arrived[warp][1], kSliceBytes - kFirst);
    bulk_copy(own + kFirst, source + kFirst, kSliceBytes - kFirst, &arrived[warp][1]);
  }
  // Of rows g and g + 8; the lanes of a row share out its groups.
  for (const int row : {g, g + 8}) {
    const float* scales = w.scales + static_cast<size_t>(max(row_in_tile(w, tile, row), 0) >> w.row_shift) * w.scale_columns;
#pragma unroll
    for (int i = q; i < kSliceGroups; i += 4) scale[warp][i][row] = scales[(warp * kSliceGroups + i) * kGroup >> w.k_shift];
  }
  __syncwarp();
  const auto weights = [&](int group, uint4(&stored)[S::kChunks]) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
      stored[c] = reinterpret_cast<const uint4*>(own)[(group * S::kChunks + c) * 32 + vector_of<kFormat>(lane)];
  };
  uint32_t held[kHeldGroups][S::kChunks][S::kProducts][4];
  barrier_wait(&arrived[warp][0], 0);
#pragma unroll
  for (int i = 0; i < kHeldGroups; ++i) {
    uint4 stored[S::kChunks];
    weights(i, stored);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) unpack<kFormat>(chunk_of<kFormat>(stored, c), held[i][c]);
  }
  [[maybe_unused]] NormOfSlice norm;
  if constexpr (kAround == Around::norm_before) load_weight(norm, args.norm_weight + warp * kSliceK);
  wait_for_previous();

  // Sums of token t and rows n and n + 8 are added up and written by this thread, if by any.
  const int column = warp, t_out = 2 * q + column, n = tile * 16 + g;
  const bool writes = threadIdx.x < 64 && t_out < args.n_tokens;
  float* out = args.out + static_cast<int64_t>(t_out) * w.n;
  float before[2] = {};
  if (kAround == Around::sum_after && writes) {
    if (n < w.n) before[0] = out[n];
    if (n + 8 < w.n) before[1] = out[n + 8];
  }
  auto* x = reinterpret_cast<__nv_bfloat16*>(own + kSliceBytes);
  if constexpr (kAround == Around::norm_before) {
    __shared__ float scratch[32];
    stage(norm, x, static_cast<const float*>(args.x) + warp * kSliceK, args.eps, scratch);
    let_next_start();
  } else {
    for (int t = 0; t < args.n_tokens; ++t)
      stage(x + t * kRowElements,
            static_cast<const X*>(args.x) + static_cast<int64_t>(args.row_ids ? args.row_ids[t] : t) * w.k + warp * kSliceK,
            lane);
  }
  wait_for_copies();
  __syncwarp();
  const __nv_bfloat16* from = x + g * kRowElements + q * S::kLaneK;
  const auto load = [&](int group, int chunk, uint32_t(&b)[S::kLaneK / 2]) {
    if (g < args.n_tokens)
      load_x<S::kLaneK>(from, group * kGroup + chunk * chunk_k(kFormat), 0, true, b);
    else
#pragma unroll
      for (uint32_t& pair : b) pair = 0;
  };
  float sum[4] = {};
  const auto add = [&](int i, const float(&unscaled)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += unscaled[e] * scale[warp][i][g + e / 2 * 8];
  };
#pragma unroll
  for (int i = 0; i < kHeldGroups; ++i) {
    float unscaled[4] = {};
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      uint32_t b[S::kLaneK / 2];
      load(i, c, b);
      multiply<kFormat>(unscaled, held[i][c], b);
    }
    add(i, unscaled);
  }
  barrier_wait(&arrived[warp][1], 0);
#pragma unroll
  for (int i = kHeldGroups; i < kSliceGroups; ++i) {
    float unscaled[4] = {};
    uint4 stored[S::kChunks];
    weights(i, stored);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      uint32_t a[S::kProducts][4], b[S::kLaneK / 2];
      load(i, c, b);
      unpack<kFormat>(chunk_of<kFormat>(stored, c), a);
      multiply<kFormat>(unscaled, a, b);
    }
    add(i, unscaled);
  }
  __syncwarp();  // the weights have been read: the sums take their place
#pragma unroll
  for (int e = 0; e < 4; ++e) reinterpret_cast<float*>(own)[e * 32 + lane] = sum[e];
  __syncthreads();
  if (!writes) return;
  float low = 0.0f, high = 0.0f;
#pragma unroll
  for (int s = 0; s < kWarps; ++s) {
    const auto* partial = reinterpret_cast<const float*>(shared + s * warp_bytes(args.n_tokens));
    low += partial[column * 32 + lane];
    high += partial[(column + 2) * 32 + lane];
  }
  if (kAround == Around::sum_after) low = before[0] + low, high = before[1] + high;
  if (n < w.n) out[n] = low;
  if (n + 8 < w.n) out[n + 8] = high;
#endif
}

template <typename X, Around kAround>
void launch_kernel(const Queue& queue, const EarlyArgs& args) {
  const auto kernel = early_kernel<X, kAround>;
  const int bytes = kWarps * warp_bytes(args.n_tokens);
  launch(queue, kernel, args.w.n_tiles, kWarps * 32, bytes, args);
}

}  // namespace

bool has_early_linear() {
  static const bool known = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, early_kernel<float, Around::nothing>));
    return attributes.binaryVersion >= 90 && attributes.ptxVersion != 80;  // 80: sm_80 code, compiled by the driver
  }();
  return known;
}

void launch_early_linear(const Queue& queue, const GemmArgs& gemm, bool x_is_float) {
  const EarlyArgs args{gemm.dense, gemm.dense_x, gemm.row_ids, static_cast<float*>(gemm.dense_out), gemm.n_tokens};
  if (x_is_float)
    launch_kernel<float, Around::nothing>(queue, args);
  else
    launch_kernel<__nv_bfloat16, Around::nothing>(queue, args);
}

void launch_normed_linear(const Queue& queue, const WeightView& weight, const float* residual, const float* norm_weight,
                          float eps, float* y) {
  launch_kernel<float, Around::norm_before>(queue, {weight, residual, nullptr, y, 1, norm_weight, eps});
}

void launch_adding_linear(const Queue& queue, const WeightView& weight, const float* x, int n_tokens, float* residual) {
  launch_kernel<float, Around::sum_after>(queue, {weight, x, nullptr, residual, n_tokens});
}

}  // namespace sigmoe::cuda
