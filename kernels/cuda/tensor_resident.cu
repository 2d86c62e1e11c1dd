// tensor_split.cu for FP8 weights whose share of a block fits its shared memory whole (qkv, attention out), and its bits.
// Bound: the bytes of W, then those of x: 120 blocks of 128 rows of W read a third of x each, as many bytes again as W.
//
// All of a block's W is asked for at once, in eight long copies, before the wait for the kernel ahead; the rest of shared
// memory is a ring of x. Sums meet as in tensor_split.cu, where W lay.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/tensor_resident.h"
#include "cuda/wgmma.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kGroups = 2, kMultipliers = kGroups * 128, kThreads = kMultipliers + 128;
constexpr int kTiles = kGroups * 4;         // of W
constexpr int kTileBytes = 16 * kGroup;     // of a k block
constexpr int kMostRows = 128;              // of x
constexpr int kMostStages = 8, kParts = 3;  // of x; barriers that W arrives on
constexpr int kSharedBytes = 227 << 10, kOwnBytes = 2048;
enum Meeting { kMultiply = 1 };

struct ResidentArgs {
  WeightView w;
  PackedRows x;
  float* out;
  int n_rows, n_row_tiles, row_tile;                // tiles of rows of x, and the rows of one
  int n_splits, n_stages, stage_rows, most_blocks;  // most_blocks: of k, of any split
};

struct Barriers {
  uint64_t weights[kParts], full[kMostStages], empty[kMostStages], sums;
};

__host__ __device__ constexpr int stage_bytes(int rows) { return rows * 128; }

// Kilobytes of sums, one per column pair's element: all of a block's, then what the others sent, each its part.
__host__ __device__ constexpr int first_sum(int n, int rank, int n_splits) { return n / 2 * rank / n_splits; }
__host__ __device__ constexpr int most_sums(int n, int n_splits) { return (n / 2 + n_splits - 1) / n_splits; }

// All threads of the cluster have come here; says nothing of what they wrote.
[[maybe_unused]] __device__ inline void meet_cluster() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}
// Shared memory to where block `rank` of the cluster has `to`, counted on its `barrier`.
[[maybe_unused]] __device__ inline void send(float* to, const float* from, int bytes, uint64_t* barrier, int rank) {
  asm volatile(
      "{ .reg .b32 to, barrier; mapa.shared::cluster.u32 to, %0, %4; mapa.shared::cluster.u32 barrier, %3, %4;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], [%1], %2, [barrier]; }" ::"r"(
          shared_address(to)),
      "r"(shared_address(from)), "r"(bytes), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}

struct Place {
  int begin, end;  // blocks of k
  int tile;        // of W
  __device__ explicit Place(const ResidentArgs& args) {
    const int rank = blockIdx.x % args.n_splits;
    tile = static_cast<int>(blockIdx.x) / args.n_splits * kTiles;
    begin = args.w.n_groups * rank / args.n_splits;
    end = args.w.n_groups * (rank + 1) / args.n_splits;
  }
  // The part of W that block kb of k arrives with.
  __device__ int part(int kb) const { return (kb - begin) * kParts / (end - begin); }
};

[[maybe_unused]] __device__ inline void copy_weights(const ResidentArgs& args, const Place& place, uint8_t* w,
                                                     Barriers& barriers) {
  const int lane = threadIdx.x % 32, n = place.end - place.begin;
  const auto* source = reinterpret_cast<const uint8_t*>(args.w.tiles) +
                       (static_cast<size_t>(place.tile + lane) * args.w.n_groups + place.begin) * kTileBytes;
  for (int part = 0; part < kParts; ++part) {
    const int from = (part * n + kParts - 1) / kParts, to = ((part + 1) * n + kParts - 1) / kParts;
    if (lane == 0) barrier_expect(&barriers.weights[part], (to - from) * kTileBytes * kTiles);
    __syncwarp();
    if (lane < kTiles && to > from)
      bulk_load(w + (lane * args.most_blocks + from) * kTileBytes, source + from * kTileBytes, (to - from) * kTileBytes,
                &barriers.weights[part]);
  }
}

template <int N>
__device__ void run(const ResidentArgs& args, const Place& place, const uint8_t* w, const uint8_t* x, Barriers& barriers,
                    float* parts) {
  constexpr int kHalves = N >= 64 ? 2 : 1, kHalf = N / kHalves;  // one is scaled while the other is multiplied
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4;
  float sum[N / 2] = {}, part[kHalves][kHalf / 2];
  const float* scales =
      args.w.scales + static_cast<size_t>((place.tile * 16 + warp / 4 * 64) >> args.w.row_shift) * args.w.scale_columns;
  const uint4* tile = reinterpret_cast<const uint4*>(w + warp * args.most_blocks * kTileBytes) + lane;
  int stage = 0;
  uint32_t parity = 0;
  for (int kb = place.begin; kb < place.end; ++kb) {
    const float scale = __ldg(scales + kb);
    barrier_wait(&barriers.weights[place.part(kb)], 0);
    uint4 a[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) a[c] = tile[(kb - place.begin) * (kTileBytes / 16) + 32 * c];
    barrier_wait(&barriers.full[stage], parity);
    const uint8_t* rows = x + stage * stage_bytes(args.stage_rows);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) pin(part[h]);
    wgmma_fence();
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const uint64_t b = swizzled_operand(rows + h * kHalf * 128);
#pragma unroll
      for (int c = 0; c < 4; ++c) wgmma_fp8<kHalf>(part[h], a[c], b + 2 * c, c > 0);
      wgmma_commit();
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      if (h + 1 < kHalves)
        wgmma_wait<1>();
      else
        wgmma_wait<0>();
      pin(part[h]);
#pragma unroll
      for (int j = 0; j < kHalf / 8; ++j) {
        float* to = sum + h * (kHalf / 2) + 4 * j;
        to[0] += part[h][4 * j] * scale;
        to[1] += part[h][4 * j + 1] * scale;
        to[2] += part[h][4 * j + 2] * scale;
        to[3] += part[h][4 * j + 3] * scale;
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&barriers.empty[stage]);
    if (++stage == args.n_stages) stage = 0, parity ^= 1;
  }
  const int row = (place.tile + warp) * 16 + lane / 4, n = args.w.n, rank = blockIdx.x % args.n_splits;
  meet_cluster();  // nobody reads W any more: the sums take its place
  const int own = first_sum(N, rank, args.n_splits), count = first_sum(N, rank + 1, args.n_splits) - own;
  const int most = most_sums(N, args.n_splits);
  float* received = parts + N / 2 * kMultipliers;  // (splits, most, threads)
#pragma unroll
  for (int i = 0; i < N / 2; ++i) parts[i * kMultipliers + threadIdx.x] = sum[i];
  publish_to_async();
  meet<kMultiply, kMultipliers>();
  if (static_cast<int>(threadIdx.x) < args.n_splits && static_cast<int>(threadIdx.x) != rank) {
    const int to = threadIdx.x, first = first_sum(N, to, args.n_splits);
    send(received + rank * most * kMultipliers, parts + first * kMultipliers,
         (first_sum(N, to + 1, args.n_splits) - first) * kMultipliers * 4, &barriers.sums, to);
  }
  if (threadIdx.x == 0) barrier_expect(&barriers.sums, (args.n_splits - 1) * count * kMultipliers * 4);
  barrier_wait(&barriers.sums, 0);
  wait_for_previous();  // it has; the scales of x are seen from here on
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const int index = own + i, column = index / 4 * 8 + q * 2 + index % 2;
    float total = 0.0f;
    for (int from = 0; from < args.n_splits; ++from) {
      const float value =
          from == rank ? parts[index * kMultipliers + threadIdx.x] : received[(from * most + i) * kMultipliers + threadIdx.x];
      total = from == 0 ? value : total + value;
    }
    if (column < args.n_rows)
      args.out[static_cast<int64_t>(column) * n + row + index % 4 / 2 * 8] = total * args.x.scales[column];
  }
}

__global__ void __launch_bounds__(kThreads, 1) resident_kernel(const __grid_constant__ ResidentArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  __shared__ Barriers barriers;
  let_next_start();
  const Place place(args);
  uint8_t* x = raw + (1024 - shared_address(raw) % 1024) % 1024;  // the ring first: its stages must lie on whole kilobytes
  uint8_t* w = x + args.n_stages * stage_bytes(args.stage_rows);
  if (threadIdx.x == kMultipliers) {
    for (uint64_t& barrier : barriers.weights) barrier_init(&barrier, 1);
    for (int i = 0; i < kMostStages; ++i) {
      barrier_init(&barriers.full[i], 1);
      barrier_init(&barriers.empty[i], kGroups * 4);
    }
    barrier_init(&barriers.sums, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    publish_to_async();
  }
  if (threadIdx.x >= kMultipliers) {
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < kMultipliers + 32) {
      __syncwarp();
      copy_weights(args, place, w, barriers);
    }
    __syncthreads();
    give_registers<40>();
    wait_for_previous();
    if (threadIdx.x < kMultipliers + 32) {
      const int bytes = stage_bytes(args.stage_rows);
      int stage = 0;
      uint32_t parity = 1;
      for (int kb = place.begin; kb < place.end; ++kb) {
        barrier_wait(&barriers.empty[stage], parity);
        uint8_t* to = x + stage * stage_bytes(args.stage_rows);
        const size_t from = static_cast<size_t>(kb) * args.x.stride;
        if (lane == 0) barrier_expect(&barriers.full[stage], bytes);
        __syncwarp();
        if (lane == 0) bulk_load(to, args.x.data + from * 128, bytes, &barriers.full[stage]);
        if (++stage == args.n_stages) stage = 0, parity ^= 1;
      }
    }
    meet_cluster();
  } else {
    __syncthreads();
    take_registers<232>();
    float* parts = reinterpret_cast<float*>(w);
    switch (args.stage_rows) {
      case 16: run<16>(args, place, w, x, barriers, parts); break;
      case 32: run<32>(args, place, w, x, barriers, parts); break;
      case 64: run<64>(args, place, w, x, barriers, parts); break;
      case 96: run<96>(args, place, w, x, barriers, parts); break;
      default: run<128>(args, place, w, x, barriers, parts);
    }
  }
  meet_cluster();  // what this block sent has arrived
#endif
}

}  // namespace

bool launch_tensor_resident(const Queue& queue, const TensorGemmArgs& gemm) {
  const WeightView& w = gemm.weight;
  if (w.format != WeightFormat::fp8 || w.gate_up || w.n % (kTiles * 16) != 0 || w.k % kGroup != 0 || w.row_shift < 6 ||
      w.k_shift != 7 || gemm.x.stride % 8 != 0 || gemm.n_rows > kMostRows)
    return false;
  ResidentArgs args = {};
  args.w = w;
  args.x = gemm.x;
  args.out = gemm.out;
  args.n_rows = gemm.n_rows;
  args.n_splits = gemm.n_splits;
  args.stage_rows = gemm.n_rows <= 16 ? 16 : divide_up(gemm.n_rows, 32) * 32;
  args.most_blocks = divide_up(w.n_groups, args.n_splits);
  const int weight_bytes = std::max(args.most_blocks * kTileBytes * kTiles,
                                    (args.stage_rows / 2 + args.n_splits * most_sums(args.stage_rows, args.n_splits)) *
                                        kMultipliers * static_cast<int>(sizeof(float)));
  const int left = kSharedBytes - kOwnBytes - weight_bytes;
  args.n_stages = std::min({left / stage_bytes(args.stage_rows), args.most_blocks, kMostStages});
  if (args.n_stages < 2) return false;
  const int bytes = 1024 + args.n_stages * stage_bytes(args.stage_rows) + weight_bytes;
  CUDA_CHECK(cudaFuncSetAttribute(resident_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_cluster(queue, resident_kernel, w.n_tiles / kTiles * args.n_splits, kThreads, bytes, args.n_splits, args);
  return true;
}

}  // namespace sigmoe::cuda
