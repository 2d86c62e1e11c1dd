// y = x W^T for many rows of x, by wgmma. Bound: arithmetic from some 200 rows per weight on, the bytes of W below.
//
// Blocks of 256 rows of W stay and take the items (tile of rows of x, rows of W) of tensor_tile.cuh in turn; the row tiles of
// an expert follow each other, so that W is read from memory once.
#include "cuda/tensor_tile.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kBlocks = 2;  // of 64 rows of W, per warpgroup

template <int N>
__device__ void write_rows(const TensorGemmArgs& args, const Shared<kBlocks>& s, const Item& item, int info,
                           const Sums<N, kBlocks>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128, g = lane / 4, q = lane % 4;
  const int n = args.weight.n, first = (item.weight_tile + group * kBlocks * 4 + warp) * 16 + g;
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int column = 8 * j + 2 * q + odd;
      if (column >= item.rows.n_rows) continue;
      float* out = args.out + static_cast<int64_t>(s.out_rows[info][column]) * n;
      const float weight = s.row_weights[info][column];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const int row = first + block * 64 + 8 * high;
          if (row < n) out[row] = sum[block][4 * j + odd + 2 * high] * weight;
        }
    }
}

// SwiGLU, then packed for the down product: the block's 128 columns are one FP8 block (two of BF16).
template <WeightFormat F, int N>
__device__ void write_inner(const TensorGemmArgs& args, Shared<kBlocks>& s, const Item& item, Sums<N, kBlocks>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128, g = lane / 4, q = lane % 4;
  const int width = args.weight.n / 2, first_column = item.weight_tile * 8 + group * kBlocks * 32 + warp * 8 + g;
  const int n_rows = round_up_8(item.rows.n_rows);
  if (threadIdx.x == 0) bulk_store_read();  // the last result has left
  const bool real[kBlocks] = {first_column < width, first_column + 32 < width};
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      float largest = 0.0f;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float& low = sum[block][4 * j + odd];
        const float high = sum[block][4 * j + odd + 2];
        low = real[block] ? low / (1.0f + __expf(-low)) * high : 0.0f;
        largest = fmaxf(largest, fabsf(low));
      }
      if constexpr (F == WeightFormat::fp8) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
        if (g == 0) s.largest[group * 4 + warp][8 * j + 2 * q + odd] = largest;
      }
    }
  if constexpr (F == WeightFormat::fp8) {
    meet<kConsumers, kGroups * 128>();
    if (threadIdx.x < N) {
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kGroups * 4; ++i) largest = fmaxf(largest, s.largest[i][threadIdx.x]);
      const float2 scale = fp8_scale(largest);
      s.inverse[threadIdx.x] = scale.y;
      if (static_cast<int>(threadIdx.x) < n_rows)
        args.inner.scales[static_cast<int64_t>(item.weight_tile / kWeightTiles<kBlocks>) * args.inner.stride +
                          item.rows.packed_row + threadIdx.x] = scale.x;
    }
    meet<kConsumers, kGroups * 128>();
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int r = 8 * j + 2 * q + odd;
        const float inverse = s.inverse[r];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int place = packed_place_fp8(warp * 8 + g);
          s.packed[swizzled(r, (group * kBlocks + block) * 2 + place / 16) + place % 16] =
              static_cast<uint8_t>(pack_fp8(sum[block][4 * j + odd] * inverse, 0.0f));
        }
      }
    publish_to_async();
    meet<kConsumers, kGroups * 128>();
    if (threadIdx.x == 0)
      bulk_store(
          args.inner.data +
              (static_cast<int64_t>(item.weight_tile / kWeightTiles<kBlocks>) * args.inner.stride + item.rows.packed_row) * 128,
          s.packed, n_rows * 128);
  } else {  // a warpgroup's 64 columns are a block: half of it per block of 64 rows of W; one warpgroup after the other
    for (int turn = 0; turn < kGroups; ++turn) {
      meet<kConsumers, kGroups * 128>();
      if (turn == group) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int r = 8 * j + 2 * q + odd;
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
              const int k = block * 32 + warp * 8 + g, place = packed_place_bf16(k % 16);
              *reinterpret_cast<__nv_bfloat16*>(s.packed + swizzled(r, k / 16 * 2 + place / 16) + place % 16) =
                  __float2bfloat16_rn(sum[block][4 * j + odd]);
            }
          }
        publish_to_async();
      }
      meet<kConsumers, kGroups * 128>();
      if (threadIdx.x == 0) {
        bulk_store(args.inner.data +
                       (static_cast<int64_t>(item.weight_tile / kWeightTiles<kBlocks> * kGroups + turn) * args.inner.stride +
                        item.rows.packed_row) *
                           128,
                   s.packed, n_rows * 128);
        if (turn + 1 < kGroups) bulk_store_read();
      }
    }
  }
  if (item.last && threadIdx.x == 0) bulk_store_done();
}

template <WeightFormat F, bool GateUp, int N>
__device__ void run_item(const TensorGemmArgs& args, Shared<kBlocks>& s, Position& at, const Item& item, int info) {
  Sums<N, kBlocks> sum;
  multiply<F, GateUp, N>(args, s, at, item, KRange(args, F), sum);
  if constexpr (GateUp)
    write_inner<F, N>(args, s, item, sum);
  else
    write_rows<N>(args, s, item, info, sum);
}

template <WeightFormat F, bool GateUp>
__global__ void __launch_bounds__(kThreads, 1) tensor_gemm_kernel(const __grid_constant__ TensorGemmArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  let_next_start();
  Shared<kBlocks>& s = prepare<kBlocks, GateUp>(raw);
  wait_for_previous();
  if (threadIdx.x >= kGroups * 128) {
    give_registers<40>();
    produce<F>(args, s, KRange(args, F));
  } else {
    take_registers<232>();
    Position at;
    int info = 0;
    const int n_items = count_items<kBlocks>(args);
    for (int index = blockIdx.x; index < n_items; index += gridDim.x) {
      const Item item = find_item<kBlocks>(args, index);
      switch (operand_rows(item.rows.n_rows)) {
        case 16: run_item<F, GateUp, 16>(args, s, at, item, info); break;
        case 32: run_item<F, GateUp, 32>(args, s, at, item, info); break;
        case 64: run_item<F, GateUp, 64>(args, s, at, item, info); break;
        case 96: run_item<F, GateUp, 96>(args, s, at, item, info); break;
        default: run_item<F, GateUp, 128>(args, s, at, item, info);
      }
      if (++info == kInfos) info = 0;
    }
  }
#elif __CUDA_ARCH__ == 900
#error "Hopper's code needs the target 90a"
#endif
}

}  // namespace

int n_multiprocessors() {
  static const int n = [] {
    int device = 0, count = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
  }();
  return n;
}

bool has_tensor_gemm() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, tensor_gemm_kernel<WeightFormat::fp8, false>));
    return attributes.binaryVersion == 90 && attributes.ptxVersion != 80;  // 80: sm_80 code, compiled by the driver
  }();
  return has;
}

bool fits_tensor_gemm(const WeightView& w) {
  if (w.format == WeightFormat::bf16) return true;
  if (w.format != WeightFormat::fp8) return false;
  // One scale per row or tensor, or blocks that a warpgroup's rows do not straddle.
  return w.k_shift >= 30 || (w.k_shift >= 7 && w.row_shift >= 7 && (!w.gate_up || w.n / 2 % 128 == 0));
}

void launch_tensor_gemm(const Queue& queue, TensorGemmArgs args) {
  if (args.mode == GemmMode::linear) {
    args.n_splits = tensor_splits(args.weight, args.n_rows);
    if (args.n_splits > 1) return launch_tensor_split(queue, args);
  }
  const bool fp8 = args.weight.format == WeightFormat::fp8, gate_up = args.mode == GemmMode::gate_up;
  const auto kernel = fp8 ? gate_up ? tensor_gemm_kernel<WeightFormat::fp8, true> : tensor_gemm_kernel<WeightFormat::fp8, false>
                      : gate_up ? tensor_gemm_kernel<WeightFormat::bf16, true>
                                : tensor_gemm_kernel<WeightFormat::bf16, false>;
  constexpr size_t kBytes = sizeof(Shared<kBlocks>) + 1024;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
  launch(queue, kernel, n_multiprocessors(), kThreads, kBytes, args);
}

}  // namespace sigmoe::cuda
