// A norm and the router's logits of one row at once: residual (D) f32 to partial logits (kRouterSlices, E) f32 and the normed
// row in BF16, for the experts.
//
// Bound: latency of 2 MB of gate. The grid is that of route_logits.cu, a tile of 16 experts and a slice of k to a block, and so
// is the order of every sum; the block's 16 KB of gate are on their way to shared memory before the residual exists. Each block
// adds up the squares of the whole row itself, in the order of reduce_add_rms_norm, and norms its own slice.
#include "cuda/device.cuh"
#include "cuda/few_logits.cuh"
#include "cuda/few_rows.h"

namespace sigmoe::cuda {
namespace {

using namespace few;

constexpr int kThreads = kRouterThreads, kWarps = kThreads / 32;
constexpr int kWidth = limits::few::kWidth;
constexpr int kVectors = kWidth / 4 / kThreads;  // float4 of the row that a thread has: of 128 floats i the i-th, i + 8-th, ...
constexpr int kPieces = kSliceK / 128;           // of a slice, one to a warp

struct RouterArgs {
  const float *residual, *norm_weight;
  float eps;
  WeightView gate;
  float* partial;
  __nv_bfloat16* normed;
};

__global__ void __launch_bounds__(kThreads) few_router_kernel(const __grid_constant__ RouterArgs args) {
  __shared__ __align__(16) uint4 gate[kGateVectors];
  __shared__ __align__(16) float x[kSliceK];
  __shared__ float scratch[32];
  static_assert(kVectors * kWarps == 32);
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = blockIdx.x, slice = blockIdx.y;
  load_gate(args.gate, tile, slice, gate);
  const int piece = warp - slice * kPieces % kWarps;  // of the slice, when this warp has one
  const bool norms = piece >= 0 && piece < kPieces;
  const int piece_at = slice * (kSliceK / 4) + piece * 32 + lane;
  float4 weight = {};
  if (norms) weight = reinterpret_cast<const float4*>(args.norm_weight)[piece_at];
  wait_for_previous();

  float4 v[kVectors], own = {};
  if (norms) own = reinterpret_cast<const float4*>(args.residual)[piece_at];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) v[i] = reinterpret_cast<const float4*>(args.residual)[threadIdx.x + i * kThreads];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float sum = warp_sum(v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w);
    if (lane == 0) scratch[warp + kWarps * i] = sum;
  }
  __syncthreads();
  const float inverse = 1.0f / sqrtf(warp_sum(scratch[lane]) / kWidth + args.eps);
  if (norms) {
    const float4 normed = {own.x * inverse * weight.x, own.y * inverse * weight.y, own.z * inverse * weight.z,
                           own.w * inverse * weight.w};
    reinterpret_cast<float4*>(x)[piece * 32 + lane] = normed;
    if (tile == 0)
      reinterpret_cast<uint2*>(args.normed)[piece_at] = {pack_bf16(normed.x, normed.y), pack_bf16(normed.z, normed.w)};
  }
  wait_for_copies();
  __syncthreads();
  if (warp > 0) return;
  const float2 logits = logits_of_slice(gate, x);
  float* to = args.partial + slice * args.gate.n + tile * 16 + lane / 4;
  if (lane % 4 == 0) to[0] = logits.x, to[8] = logits.y;
}

}  // namespace

void launch_few_router(const Queue& queue, const float* residual, const float* norm_weight, float eps, const WeightView& gate,
                       float* partial, void* normed) {
  launch(queue, few_router_kernel, dim3(gate.n_tiles, kRouterSlices), kThreads, 0,
         RouterArgs{residual, norm_weight, eps, gate, partial, static_cast<__nv_bfloat16*>(normed)});
}

}  // namespace sigmoe::cuda
