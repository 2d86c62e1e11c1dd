// Packs activations for the many-row products, a block per row. Bound: memory, x read once in float32 (what is beyond 4096
// columns again from the cache). One block more makes the tile list of a step from the router's offsets meanwhile.
#include "cuda/gemm.h"
#include "cuda/packed.cuh"
#include "cuda/quantise.h"

namespace sigmoe::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kHeld = 4;  // groups of a row that a warp keeps in registers: all of 4096 columns

struct PackArgs {
  const float* x;
  const int32_t* row_ids;
  int n_rows, k, n_groups;
  PackedRows out;
  TilePlan plan;
};

// A thread per expert. Tiles of an expert are as even as multiples of 16 rows allow.
__device__ void make_plan(const TilePlan& plan) {
  __shared__ int warp_tiles[kWarps], warp_packed[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int n_tiles = 0, n_packed = 0;  // of the experts before `base`
  for (int base = 0; base <= plan.n_experts; base += kWarps * 32) {
    const int e = base + static_cast<int>(threadIdx.x);
    int first = 0, count = 0;
    if (e == plan.n_experts) {
      count = plan.n_shared;
    } else if (e < plan.n_experts && plan.experts[e].tiles) {
      first = plan.expert_offsets[e];
      count = plan.expert_offsets[e + 1] - first;
    }
    const int own = (count + plan.tile_rows - 1) / plan.tile_rows, packed = round_up_8(count);
    int tiles_before = own, packed_before = packed;  // of the warp, then of the block
    for (int step = 1; step < 32; step *= 2) {
      const int a = __shfl_up_sync(kAllLanes, tiles_before, step), b = __shfl_up_sync(kAllLanes, packed_before, step);
      if (lane >= step) tiles_before += a, packed_before += b;
    }
    __syncthreads();  // the last round's sums have been read
    if (lane == 31) warp_tiles[warp] = tiles_before, warp_packed[warp] = packed_before;
    __syncthreads();
    int first_tile = n_tiles + tiles_before - own, packed_row = n_packed + packed_before - packed;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) first_tile += warp_tiles[w], packed_row += warp_packed[w];
      n_tiles += warp_tiles[w];
      n_packed += warp_packed[w];
    }
    const int size = own > 0 ? ((count + own - 1) / own + 15) / 16 * 16 : 0;
    for (int i = 0; i < own; ++i) {
      RowTile tile;
      tile.expert = e;
      tile.first = first + i * size;
      tile.n_rows = min(size, count - i * size);
      tile.packed_row = packed_row + i * size;
      tile.first_tile = first_tile;
      tile.n_tiles = own;
      plan.tiles[first_tile + i] = tile;
    }
  }
  if (threadIdx.x == 0) *plan.n_tiles = n_tiles;
}

template <WeightFormat F>
__global__ void __launch_bounds__(kWarps * 32) pack_rows_kernel(const __grid_constant__ PackArgs args) {
  __shared__ float of_warp[kWarps];
  let_next_start();
  wait_for_previous();
  if (args.plan.tiles) {
    if (blockIdx.x == 0) return make_plan(args.plan);
  }
  const int r = static_cast<int>(blockIdx.x) - (args.plan.tiles ? 1 : 0), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float* row = args.x + static_cast<int64_t>(args.row_ids ? args.row_ids[r] : r) * args.k;
  const auto load = [&](int group) {
    const int k = group * kGroup + 4 * lane;
    if (args.k % 4 == 0) return k < args.k ? *reinterpret_cast<const float4*>(row + k) : float4{0, 0, 0, 0};
    const auto one = [&](int i) { return k + i < args.k ? row[k + i] : 0.0f; };
    return float4{one(0), one(1), one(2), one(3)};
  };
  float4 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    held[i] = {0, 0, 0, 0};
    if (const int group = warp + i * kWarps; group < args.n_groups) held[i] = load(group);
  }
  float inverse = 1.0f;
  if constexpr (F == WeightFormat::fp8) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) largest = fmaxf(largest, largest_of(held[i]));
    for (int group = warp + kHeld * kWarps; group < args.n_groups; group += kWarps)
      largest = fmaxf(largest, largest_of(load(group)));
    largest = warp_largest(largest);
    if (lane == 0) of_warp[warp] = largest;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, of_warp[w]);
    const float2 scale = fp8_scale(largest);
    inverse = scale.y;
    if (threadIdx.x == 0) args.out.scales[r] = scale.x;
  }
  const auto pack = [&](int group, const float4& values) {
    if constexpr (F == WeightFormat::fp8)
      pack_group_fp8(args.out, r, group, values, inverse);
    else
      pack_group_bf16(args.out, r, group, values);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (const int group = warp + i * kWarps; group < args.n_groups) pack(group, held[i]);
  for (int group = warp + kHeld * kWarps; group < args.n_groups; group += kWarps) pack(group, load(group));
}

}  // namespace

void launch_pack_rows(const Queue& queue, WeightFormat format, const float* x, const int32_t* row_ids, int n_rows, int k,
                      const PackedRows& out, const TilePlan& plan) {
  const PackArgs args{x, row_ids, n_rows, k, divide_up(k, kGroup), out, plan};
  const int n_blocks = n_rows + (plan.tiles ? 1 : 0);
  launch(queue, format == WeightFormat::fp8 ? pack_rows_kernel<WeightFormat::fp8> : pack_rows_kernel<WeightFormat::bf16>,
         n_blocks, kWarps * 32, 0, args);
}

}  // namespace sigmoe::cuda
