// norm_many.cu over two GPUs: residual += what both ranks' slots add up to; out = RMSNorm(residual) * weight, in float32 and
// packed for the products behind it.
//
// Bound: the links, a row from each GPU to the other, then memory as in norm_many.cu. Two ranks send as many bytes when each
// has the other's rows whole as when each sums one half and hands it on, and meet once instead of twice. A row is one block's
// work; blocks take rows in turn, the same ones on both ranks: first all rows are sent, each with a flag of its own, then
// taken.
//
// Rows travel in float32 in steps whose experts are kernels of few rows: then the bits are those of comm_reduce.cu, for sums of
// two have no order. Where experts leave BF16 for the sum over slots, what ranks send is rounded to it, too, and so is what
// they keep, or they would not agree.
#include "cuda/comm.cuh"
#include "cuda/comm_many.h"
#include "cuda/packed.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kMostGroups = 32;  // widths up to 4096

__device__ inline float4 expanded(uint2 v) { return {bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)}; }

template <bool Bf16>
__device__ inline float4 load_slot(const void* addend, int64_t at) {
  if constexpr (Bf16)
    return expanded(static_cast<const uint2*>(addend)[at]);
  else
    return static_cast<const float4*>(addend)[at];
}

__device__ inline uint2 load_sent(const uint2* from) {
  uint2 v;
  asm volatile("ld.relaxed.sys.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
  return v;
}

struct ManyReduceArgs {
  PeerView peers;
  ExchangeLayout at;
  ManyNormArgs norm;
  uint2* twin = nullptr;
  int first_row = 0, n_rows = 0;
};

template <bool Bf16Slots, bool Bf16Wire>
__global__ void __launch_bounds__(kMostGroups * 32) many_reduce_kernel(const __grid_constant__ ManyReduceArgs args) {
  __shared__ float of_group[kMostGroups];
  let_next_start();
  const ManyNormArgs& norm = args.norm;
  const PeerView& peers = args.peers;
  const int n = norm.width / 4, i = threadIdx.x, lane = i % 32, group = i / 32, n_groups = norm.width / kGroup;
  const int stride = gridDim.x, other = 1 - peers.rank;
  const float4 scale = reinterpret_cast<const float4*>(norm.weight)[i];  // a constant of the model: no need to wait for it
  wait_for_previous();
  auto* counter = reinterpret_cast<uint32_t*>(peers.memory[peers.rank] + args.at.two_shot_counters) + blockIdx.x;
  const uint32_t number = next_number(counter);
  const size_t half = static_cast<size_t>(number % 2) * kTwoShotRows;
  const auto sent = [&](int to, int row) { return peers.memory[to] + args.at.partial + (half + row) * n * 16; };
  const auto kept = [&](int row) {
    return reinterpret_cast<float4*>(peers.memory[peers.rank] + args.at.reduced) + (half + row) * n + i;
  };
  const auto flag = [&](int of, int row, int source) {
    return reinterpret_cast<uint32_t*>(peers.memory[of] + args.at.partial_flags) + row * kMaxRanks + source;
  };
  const bool one_row = args.n_rows <= stride;
  float4 own = {};
  for (int row = blockIdx.x; row < args.n_rows; row += stride) {
    const int64_t t = args.first_row + row;
    own = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 3
    for (int s = 0; s < norm.n_slots; ++s) own = add(own, load_slot<Bf16Slots>(norm.addend, (t * norm.n_slots + s) * n + i));
    if constexpr (Bf16Wire) {
      const uint2 rounded = {pack_bf16(own.x, own.y), pack_bf16(own.z, own.w)};
      reinterpret_cast<uint2*>(sent(other, row))[i] = rounded;
      own = expanded(rounded);
    } else {
      reinterpret_cast<float4*>(sent(other, row))[i] = own;
    }
    if (!one_row) *kept(row) = own;
    __syncthreads();
    if (i == 0) raise_flag(flag(other, row, peers.rank), number);
  }
  for (int row = blockIdx.x; row < args.n_rows; row += stride) {
    const int t = args.first_row + row;
    float4& residual = reinterpret_cast<float4*>(norm.residual)[static_cast<int64_t>(t) * n + i];
    float4 value = residual;
    if (!one_row) own = *kept(row);
    if (i == 0) wait_for_flag(peers, flag(peers.rank, row, other), number);
    __syncthreads();
    float4 theirs;
    if constexpr (Bf16Wire)
      theirs = expanded(load_sent(reinterpret_cast<const uint2*>(sent(peers.rank, row)) + i));
    else
      theirs = load_shared(reinterpret_cast<const float4*>(sent(peers.rank, row)) + i);
    value = add(value, add(own, theirs));
    residual = value;
    const float sum = warp_sum(squares(value));
    if (lane == 0) of_group[group] = sum;
    __syncthreads();
    const float inverse = 1.0f / sqrtf(warp_sum(lane < n_groups ? of_group[lane] : 0.0f) / norm.width + norm.eps);
    value = {value.x * inverse * scale.x, value.y * inverse * scale.y, value.z * inverse * scale.z,
             value.w * inverse * scale.w};
    reinterpret_cast<float4*>(norm.out)[static_cast<int64_t>(t) * n + i] = value;
    if (args.twin) args.twin[static_cast<int64_t>(t) * n + i] = {pack_bf16(value.x, value.y), pack_bf16(value.z, value.w)};
    __syncthreads();  // the squares have been read
    if (!norm.packed.data) continue;
    if (norm.format == WeightFormat::bf16) {
      pack_group_bf16(norm.packed, t, group, value);
      continue;
    }
    const float largest = warp_largest(largest_of(value));
    if (lane == 0) of_group[group] = largest;
    __syncthreads();
    const float2 of_row = fp8_scale(warp_largest(lane < n_groups ? of_group[lane] : 0.0f));
    if (i == 0) norm.packed.scales[t] = of_row.x;
    pack_group_fp8(norm.packed, t, group, value, of_row.y);
    __syncthreads();  // the next row writes of_group again
  }
  if (i == 0) store_relaxed(counter, number);
}

}  // namespace

void launch_many_reduce(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ManyNormArgs& norm,
                        void* twin) {
  SIGMOE_CHECK(peers.world == 2 && norm.width == at.width && norm.width % kGroup == 0 && norm.width <= kMostNormGroups * kGroup,
               "two ranks and rows that pack");
  const bool bf16_wire = norm.n_tokens >= kManyExpertRows;
  SIGMOE_CHECK(bf16_wire || !norm.addend_is_bf16, "slots in BF16 are of steps whose sums travel so");
  const auto kernel = norm.addend_is_bf16 ? many_reduce_kernel<true, true>
                      : bf16_wire         ? many_reduce_kernel<false, true>
                                          : many_reduce_kernel<false, false>;
  for (int row = 0; row < norm.n_tokens; row += kTwoShotRows) {
    const int n_rows = norm.n_tokens - row < kTwoShotRows ? norm.n_tokens - row : kTwoShotRows;
    const ManyReduceArgs args{peers, at, norm, static_cast<uint2*>(twin), row, n_rows};
    const int blocks = n_rows < peers.n_blocks ? n_rows : peers.n_blocks;
    launch(queue, kernel, blocks, norm.width / 4, 0, args);
  }
}

}  // namespace sigmoe::cuda
