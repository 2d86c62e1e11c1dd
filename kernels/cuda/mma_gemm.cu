// y = x W^T for many rows of x by mma.sync. Bound: arithmetic from some 100 rows per weight on, the bytes of W below.
//
// A block takes one item: up to 128 rows of x that meet one weight, and 256 rows of that weight. The row tiles of an expert
// follow each other, and those of a linear layer go in bands of 16, so that W and x come from the cache. Results leave through
// shared memory as whole lines.
#include <algorithm>

#include "cuda/mma_tile.cuh"

namespace sigmoe::cuda {
namespace {

using namespace mma;

constexpr int kThreads = kWarps * 32;
constexpr int kBand = 16;  // row tiles of a linear layer that share what the cache holds of W

struct Item {
  RowTile rows;
  int weight_tile;
};

// The block's item; false when there is none.
__device__ inline bool find_item(const MmaGemmArgs& args, Item& item) {
  const int index = blockIdx.x, per_rows = (args.weight.n_tiles + kWeightTiles - 1) / kWeightTiles;
  if (args.tiles) {
    if (index >= *args.n_tiles * per_rows) return false;
    const RowTile any = args.tiles[index / per_rows];
    const int within = index - any.first_tile * per_rows;
    item.rows = args.tiles[any.first_tile + within % any.n_tiles];
    item.weight_tile = within / any.n_tiles * kWeightTiles;
    return true;
  }
  const int n_tiles = (args.n_rows + args.tile_rows - 1) / args.tile_rows, band = index / (kBand * per_rows);
  const int within = index - band * kBand * per_rows, band_tiles = min(kBand, n_tiles - band * kBand);
  item.weight_tile = within / band_tiles * kWeightTiles;
  item.rows.expert = args.n_experts;
  item.rows.first = item.rows.packed_row = (band * kBand + within % band_tiles) * args.tile_rows;
  item.rows.n_rows = min(args.tile_rows, args.n_rows - item.rows.first);
  return true;
}

// What each row of the item reads and where its result goes. Rows past the last repeat it; nobody writes their results.
__device__ inline void list_rows(const MmaGemmArgs& args, const RowTile& rows, Shared& s) {
  if (threadIdx.x >= kTileRows) return;
  const int r = threadIdx.x, token = rows.first + min(r, rows.n_rows - 1);
  int x_row = token, out_row = token;
  float weight = 1.0f;
  if (args.tiles && rows.expert < args.n_experts) {
    const int slot = args.slot_order[token];
    x_row = slot / args.n_active;
    out_row = x_row * args.n_slots + slot % args.n_active;
    if (args.mode == GemmMode::down) weight = args.slot_weights[slot];
  } else if (args.tiles) {
    out_row = token * args.n_slots + args.n_active;
  }
  if (args.mode == GemmMode::gate_up) s.pieces[r] = static_cast<uint32_t>(x_row) * (args.weight.k / 8);
  s.out_rows[r] = out_row;
  s.row_weights[r] = weight;
}

// Results as floats, 128 of a token's 256 at a time: 512 bytes of shared memory, then of its row of `out`.
template <int N>
__device__ void write_rows(const MmaGemmArgs& args, const Item& item, Shared& s, const Sums<N>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4, n = args.weight.n;
  float* staged = reinterpret_cast<float*>(s.x);
  const auto at = [](int r, int n) { return r * 128 + (n ^ (r / 2 % 4 * 8)); };
  for (int half = 0; half < 2; ++half) {
    if (half > 0) __syncthreads();
    if (warp / 4 == half)
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            staged[at(8 * j + 2 * q + i % 2, (warp % 4 * kWarpTiles + m) * 16 + i / 2 * 8 + g)] = sum[m][j][i];
    __syncthreads();
    const int first = item.weight_tile * 16 + half * 128 + 4 * lane;
    for (int r = warp; r < item.rows.n_rows; r += kWarps) {
      float4 v = *reinterpret_cast<const float4*>(staged + at(r, 4 * lane));
      const float weight = s.row_weights[r];
      v.x *= weight, v.y *= weight, v.z *= weight, v.w *= weight;
      float* out = args.out + static_cast<int64_t>(s.out_rows[r]) * n + first;
      if (n % 4 == 0) {
        if (first < n) *reinterpret_cast<float4*>(out) = v;
      } else {
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (first + i < n) out[i] = values[i];
      }
    }
  }
}

// SwiGLU in the registers of the lane that has gate and up, then 128 BF16 columns of each packed row.
template <int N>
__device__ void write_inner(const MmaGemmArgs& args, const Item& item, Shared& s, const Sums<N>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  uint8_t* staged = s.x[0];
  const auto at = [](int r, int piece) { return r * 256 + (piece ^ (r / 2 % 8)) * 16; };
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const float gate = sum[m][j][odd], up = sum[m][j][2 + odd];
        *reinterpret_cast<__nv_bfloat16*>(staged + at(8 * j + 2 * q + odd, warp * kWarpTiles + m) + g * 2) =
            __float2bfloat16_rn(gate / (1.0f + __expf(-gate)) * up);
      }
  __syncthreads();
  const int width = args.weight.n / 2, piece = threadIdx.x % 16, first = item.weight_tile * 8 + piece * 8;
  if (first >= width) return;  // a multiple of 8: the down product's k
  auto* out = static_cast<__nv_bfloat16*>(args.inner) + first;
  for (int r = threadIdx.x / 16; r < item.rows.n_rows; r += kThreads / 16)
    *reinterpret_cast<uint4*>(out + static_cast<int64_t>(item.rows.packed_row + r) * width) =
        *reinterpret_cast<const uint4*>(staged + at(r, piece));
}

template <WeightFormat F, bool GateUp, int N>
__device__ void run_item(const MmaGemmArgs& args, const WeightView& w, const Item& item, Shared& s) {
  Sums<N> sum;
  CopiedRows<GateUp, N> rows;
  rows.first = static_cast<const uint4*>(args.x);
  rows.stride = kCopied * (w.k / 8);
  rows.n_real = GateUp ? N : item.rows.n_rows;
  if constexpr (GateUp)
#pragma unroll
    for (int i = 0; i < N / kCopied; ++i) rows.pieces[i] = s.pieces[threadIdx.x / 8 + kCopied * i];
  else
    rows.first += static_cast<size_t>(item.rows.packed_row + threadIdx.x / 8) * (w.k / 8);
  multiply<F, N>(w, item.weight_tile + threadIdx.x / 32 * kWarpTiles, rows, s, sum);
  if constexpr (GateUp)
    write_inner<N>(args, item, s, sum);
  else
    write_rows<N>(args, item, s, sum);
}

template <WeightFormat F, bool GateUp>
__global__ void __launch_bounds__(kThreads, 1) mma_gemm_kernel(const __grid_constant__ MmaGemmArgs args) {
  extern __shared__ __align__(128) uint8_t raw[];
  Shared& s = *reinterpret_cast<Shared*>(raw);
  let_next_start();
  wait_for_previous();
  Item item;
  if (!find_item(args, item)) return;
  WeightView w = args.weight;
  if (item.rows.expert < args.n_experts) {
    w.tiles = args.experts[item.rows.expert].tiles;
    w.scales = args.experts[item.rows.expert].scales;
  }
  list_rows(args, item.rows, s);
  __syncthreads();
  const int n_rows = item.rows.n_rows;
  if (n_rows > 96)
    run_item<F, GateUp, 128>(args, w, item, s);
  else if (n_rows > 64)
    run_item<F, GateUp, 96>(args, w, item, s);
  else if (n_rows > 32)
    run_item<F, GateUp, 64>(args, w, item, s);
  else
    run_item<F, GateUp, 32>(args, w, item, s);
}

template <WeightFormat F>
void launch_format(const Queue& queue, const MmaGemmArgs& args, int n_blocks) {
  const auto kernel = args.mode == GemmMode::gate_up ? mma_gemm_kernel<F, true> : mma_gemm_kernel<F, false>;
  launch(queue, kernel, n_blocks, kThreads, sizeof(Shared), args);
}

// Rows of x to a block: as many as let the busiest SM end soonest. No row's bits depend on it.
int rows_of_tile(int n_rows, int n_weight_blocks) {
  int device = 0, n_sms = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
  int best = kTileRows;
  double best_cost = 0;
  for (int size = kTileRows; size >= 32; size -= 32) {
    const double per_sm = divide_up(static_cast<int64_t>(divide_up(n_rows, size)) * n_weight_blocks, n_sms);
    const double cost = per_sm * (size + 16);
    if (size == kTileRows || cost < best_cost) best = size, best_cost = cost;
  }
  const int n_tiles = divide_up(n_rows, best);
  return divide_up(divide_up(n_rows, n_tiles), 8) * 8;
}

}  // namespace

void launch_mma_gemm(const Queue& queue, MmaGemmArgs args) {
  const int n_weight_blocks = divide_up(args.weight.n_tiles, kWeightTiles);
  int n_row_tiles = args.most_tiles;
  if (args.mode == GemmMode::linear) {
    args.tile_rows = rows_of_tile(args.n_rows, n_weight_blocks);
    n_row_tiles = divide_up(args.n_rows, args.tile_rows);
  }
  const int n_blocks = n_row_tiles * n_weight_blocks;
  switch (args.weight.format) {
    case WeightFormat::bf16: return launch_format<WeightFormat::bf16>(queue, args, n_blocks);
    case WeightFormat::fp8: return launch_format<WeightFormat::fp8>(queue, args, n_blocks);
    case WeightFormat::int4: return launch_format<WeightFormat::int4>(queue, args, n_blocks);
    default: return;  // choose_products.cpp refuses it
  }
}

}  // namespace sigmoe::cuda
