// The router's logits of one row between ranks: few_router.cu behind the sum over ranks, or behind a norm; and that sum with
// its norm for whoever wants the row whole.
//
// Bound: latency of 2 MB of gate and 64 KB of row a block, as there: a tile of 16 experts and a slice of k to a block, whose
// 16 KB of gate are on their way before the row exists. Each block takes the whole row and norms its own slice; those of the
// first tile write the residual stream and the normed row.
#include "cuda/device.cuh"
#include "cuda/few_logits.cuh"
#include "cuda/rank_row.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

constexpr int kThreads = kRouterThreads, kWarps = kThreads / 32;
static_assert(kRankWidth == kRouterSlices * kSliceK);
constexpr int kVectors = kRankVectors / kThreads;  // of a thread: of 128 floats i the i-th, i + 8-th, ...
constexpr int kSliceThreads = kSliceK / 4;         // half a block: a slice is half of what vectors i of all threads are
static_assert(2 * kSliceThreads == kThreads && kVectors * kWarps == 32);

enum class From { normed_row, two_ranks, more_ranks };

struct RouterArgs {
  RankRow row;
  const float* normed_row;
  WeightView gate;
  float* partial;
  __nv_bfloat16* normed;
};

template <From kFrom>
__global__ void __launch_bounds__(kThreads) rank_router_kernel(const __grid_constant__ RouterArgs args) {
  __shared__ __align__(16) uint4 gate[kGateVectors];
  __shared__ __align__(16) float x[kSliceK];
  __shared__ float of_warps[32];
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = blockIdx.x, slice = blockIdx.y;
  load_gate(args.gate, tile, slice, gate);
  const bool norms = static_cast<int>(threadIdx.x) / kSliceThreads == slice % 2;
  const int place = threadIdx.x % kSliceThreads, at = slice * kSliceThreads + place;  // float4 of the slice, of the row
  float4 weight = {};
  if (kFrom != From::normed_row && norms) weight = reinterpret_cast<const float4*>(args.row.norm_weight)[at];
  wait_for_previous();

  float4 normed = {};
  if constexpr (kFrom == From::normed_row) {
    if (norms) normed = __ldcg(reinterpret_cast<const float4*>(args.normed_row) + at);
  } else {
    __shared__ float4 row[kRankVectors];
    float4 value[kVectors];
    take_row<kFrom == From::two_ranks>(args.row, threadIdx.x, kThreads, value);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const float sum = warp_sum(squares(value[i]));
      if (lane == 0) of_warps[warp + kWarps * i] = sum;
      row[threadIdx.x + i * kThreads] = value[i];
    }
    __syncthreads();
    const float inverse = 1.0f / sqrtf(warp_sum(of_warps[lane]) / kRankWidth + args.row.eps);
    const float4 own = row[at];
    if (norms && tile == 0) reinterpret_cast<float4*>(args.row.residual_out)[at] = own;
    normed = {own.x * inverse * weight.x, own.y * inverse * weight.y, own.z * inverse * weight.z, own.w * inverse * weight.w};
  }
  if (norms) {
    reinterpret_cast<float4*>(x)[place] = normed;
    if (tile == 0) reinterpret_cast<uint2*>(args.normed)[at] = {pack_bf16(normed.x, normed.y), pack_bf16(normed.z, normed.w)};
  }
  wait_for_copies();
  __syncthreads();
  if (warp > 0) return;
  const float2 logits = logits_of_slice(gate, x);
  float* to = args.partial + slice * args.gate.n + tile * 16 + lane / 4;
  if (lane % 4 == 0) to[0] = logits.x, to[8] = logits.y;
}

struct TakeArgs {
  RankRow row;
  float* out;
};

template <bool kTwoRanks>
__global__ void __launch_bounds__(kRankVectors) take_row_kernel(const __grid_constant__ TakeArgs args) {
  __shared__ float of_warps[32];
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = threadIdx.x;
  float4 weight = {};
  if (args.out) weight = reinterpret_cast<const float4*>(args.row.norm_weight)[i];
  wait_for_previous();
  float4 value[1];
  take_row<kTwoRanks>(args.row, i, 0, value);
  const float4& v = value[0];
  reinterpret_cast<float4*>(args.row.residual_out)[i] = v;
  if (!args.out) return;
  const float sum = warp_sum(squares(v));
  if (lane == 0) of_warps[warp] = sum;
  __syncthreads();
  const float inverse = 1.0f / sqrtf(warp_sum(of_warps[lane]) / kRankWidth + args.row.eps);
  reinterpret_cast<float4*>(args.out)[i] = {v.x * inverse * weight.x, v.y * inverse * weight.y, v.z * inverse * weight.z,
                                            v.w * inverse * weight.w};
}

template <From kFrom>
void launch_router(const Queue& queue, const RouterArgs& args) {
  launch(queue, rank_router_kernel<kFrom>, dim3(args.gate.n_tiles, kRouterSlices), kThreads, 0, args);
}

}  // namespace

void launch_rank_router(const Queue& queue, const RankRow& row, const WeightView& gate, float* partial, void* normed) {
  const RouterArgs args{row, nullptr, gate, partial, static_cast<__nv_bfloat16*>(normed)};
  if (row.exchange.peers.world == 2)
    launch_router<From::two_ranks>(queue, args);
  else
    launch_router<From::more_ranks>(queue, args);
}

void launch_rank_router(const Queue& queue, const float* row, const WeightView& gate, float* partial, void* normed) {
  launch_router<From::normed_row>(queue, {{}, row, gate, partial, static_cast<__nv_bfloat16*>(normed)});
}

void launch_take_row(const Queue& queue, const RankRow& row, float* out) {
  const TakeArgs args{row, out};
  if (row.exchange.peers.world == 2)
    launch(queue, take_row_kernel<true>, 1, kRankVectors, 0, args);
  else
    launch(queue, take_row_kernel<false>, 1, kRankVectors, 0, args);
}

}  // namespace sigmoe::cuda
