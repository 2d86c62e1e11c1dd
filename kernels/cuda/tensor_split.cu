// y = x W^T for some tens to hundreds of rows of x and a W too small to fill the device: qkv, attention out, dense down.
// Bound: the bytes of W.
//
// As tensor_gemm.cu, but with 128 rows of W to a block and k divided among the blocks of a cluster, so that every
// multiprocessor reads. Their sums meet in shared memory, each block adding its share of the tile in the order of k. How k is
// divided depends on the weight alone.
#include <algorithm>

#include "cuda/tensor_tile.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kBlocks = 1;  // of 64 rows of W, per warpgroup
static_assert(kWeightTiles<kBlocks> == kSplitTiles);

template <WeightFormat F, int N>
__device__ void run_item(const TensorGemmArgs& args, Shared<kBlocks>& s, Position& at, const Item& item) {
  Sums<N, kBlocks> sum;
  multiply<F, N>(args, s, at, item.rows.expert, item.weight_tile, KRange(args, F), sum);
  meet<kConsumers, kGroups * 128>();             // nobody reads the stages any more, nor are any on their way
  float* parts = reinterpret_cast<float*>(s.x);  // (N / 2, threads)
#pragma unroll
  for (int i = 0; i < N / 2; ++i) parts[i * kGroups * 128 + threadIdx.x] = sum[0][i];
  cluster_meet();
  const int lane = threadIdx.x % 32, n = args.weight.n, rank = blockIdx.x % args.n_splits;
  const int row = (item.weight_tile + threadIdx.x / 32) * 16 + lane / 4;
  const int begin = N / 2 * rank / args.n_splits, end = N / 2 * (rank + 1) / args.n_splits;
  constexpr int kAtOnce = 8;  // a peer's memory is far: many loads in flight
  for (int first = begin; first < end; first += kAtOnce) {
    float values[kMostSplits][kAtOnce];
#pragma unroll
    for (int from = 0; from < kMostSplits; ++from)
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        values[from][i] =
            from < args.n_splits && first + i < end ? load_peer(parts + (first + i) * kGroups * 128 + threadIdx.x, from) : 0.0f;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = first + i, column = index / 4 * 8 + lane % 4 * 2 + index % 2, own_row = row + index % 4 / 2 * 8;
      float total = values[0][i];
#pragma unroll
      for (int from = 1; from < kMostSplits; ++from) total += values[from][i];
      if (index < end && column < item.rows.n_rows && own_row < n)
        args.out[static_cast<int64_t>(item.rows.first + column) * n + own_row] = total * s.factors[0][column];
    }
  }
}

template <WeightFormat F>
__global__ void __launch_bounds__(kThreads, 1) tensor_split_kernel(const __grid_constant__ TensorGemmArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(sizeof(Shared<kBlocks>::x) >= kWeightTiles<kBlocks> * 16 * Shared<kBlocks>::kRows * sizeof(float),
                "the sums take the place of x");
  extern __shared__ uint8_t raw[];
  let_next_start();
  Shared<kBlocks>& s = prepare<Shared<kBlocks>, false>(raw, 1);
  wait_for_previous();
  if (threadIdx.x >= kGroups * 128) {
    give_registers<40>();
    produce<F>(args, s, KRange(args, F));
    cluster_meet();
  } else {
    take_registers<232>();
    Position at;
    const Item item = find_item<Shared<kBlocks>>(args, blockIdx.x / args.n_splits);
    switch (operand_rows<false>(item.rows.n_rows)) {
      case 16: run_item<F, 16>(args, s, at, item); break;
      case 32: run_item<F, 32>(args, s, at, item); break;
      case 64: run_item<F, 64>(args, s, at, item); break;
      case 96: run_item<F, 96>(args, s, at, item); break;
      default: run_item<F, 128>(args, s, at, item);
    }
  }
  cluster_meet();  // the others have read this block's sums
#endif
}

}  // namespace

void launch_tensor_split(const Queue& queue, const TensorGemmArgs& args) {
  const auto kernel = args.weight.format == WeightFormat::fp8 ? tensor_split_kernel<WeightFormat::fp8>
                                                              : tensor_split_kernel<WeightFormat::bf16>;
  constexpr size_t kBytes = sizeof(Shared<kBlocks>) + 1024;
  const int n_tiles = divide_up(args.weight.n_tiles, kWeightTiles<kBlocks>) * divide_up(args.n_rows, Shared<kBlocks>::kRows);
  launch_clusters(queue, args.n_splits, kernel, n_tiles * args.n_splits, kThreads, kBytes, args);
}

}  // namespace sigmoe::cuda
