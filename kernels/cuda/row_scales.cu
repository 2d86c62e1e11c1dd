// One scale per row for what gate-up leaves, in place of one per row and 128 columns: the down product then scales its sums
// once instead of once per 128 of k, which took it 100 of its 670 us at 8,192 tokens.
//
// Scales are powers of 16, so a code that stays in E4M3's normal range keeps its bits but for the exponent; in blocks below the
// row's largest, only codes that are small in their own block lose some.
//
// Bound: memory, once in and out what lies in blocks with a smaller scale than the row's.
#include <cuda_fp8.h>

#include "cuda/packed.cuh"
#include "cuda/quantise.h"

namespace sigmoe::cuda {
namespace {

constexpr int kWarps = 8, kRows = 8;  // of a block; four lanes share a row's 128 bytes of k

__device__ inline uint32_t scaled_codes(uint32_t codes, __half2 factor) {
  uint32_t out = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const __half2_raw wide = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes >> 16 * i), __NV_E4M3);
    const __half2_raw scaled = __hmul2(static_cast<__half2>(wide), factor);
    out |= static_cast<uint32_t>(__nv_cvt_halfraw2_to_fp8x2(scaled, __NV_SATFINITE, __NV_E4M3)) << 16 * i;
  }
  return out;
}

__global__ void __launch_bounds__(kWarps * 32) row_scales_kernel(PackedRows rows, int n_blocks) {
  __shared__ float of_warp[kWarps][kRows];
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * kRows;
  const auto scale_of = [&](int block, int row) {
    return __bfloat162float(rows.block_scales[static_cast<int64_t>(block) * rows.stride + first + row]);
  };
  float largest = 0.0f;
  for (int block = warp * 4 + lane / kRows; block < n_blocks; block += kWarps * 4)
    largest = fmaxf(largest, scale_of(block, lane % kRows));
#pragma unroll
  for (int step = kRows; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  if (lane < kRows) of_warp[warp][lane] = largest;
  __syncthreads();
  if (threadIdx.x < kRows) {
    for (int i = 0; i < kWarps; ++i) largest = fmaxf(largest, of_warp[i][threadIdx.x]);
    rows.scales[first + threadIdx.x] = largest;
    of_warp[0][threadIdx.x] = largest;
  }
  __syncthreads();
  const int row = lane / 4;
  const float inverse = 1.0f / of_warp[0][row];
  for (int block = warp; block < n_blocks; block += kWarps) {
    const float ratio = scale_of(block, row) * inverse;
    if (ratio == 1.0f) continue;
    const __half2 factor = __float2half2_rn(ratio);
    uint4* codes =
        reinterpret_cast<uint4*>(rows.data + (static_cast<int64_t>(block) * rows.stride + first + row) * 128) + lane % 4;
    uint4 at[2] = {codes[0], codes[4]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4& w = at[i];
      w = {scaled_codes(w.x, factor), scaled_codes(w.y, factor), scaled_codes(w.z, factor), scaled_codes(w.w, factor)};
      codes[4 * i] = w;
    }
  }
}

}  // namespace

void launch_row_scales(const Queue& queue, const PackedRows& rows, int n_blocks) {
  launch(queue, row_scales_kernel, rows.stride / kRows, kWarps * 32, 0, rows, n_blocks);
}

}  // namespace sigmoe::cuda
