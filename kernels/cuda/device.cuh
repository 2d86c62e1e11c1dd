// Device helpers shared by the kernels.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace sigmoe::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks until every kernel enqueued before this one has finished and its writes are visible. Weights are never written
// after loading, so they may be read before.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the queue start as soon as SMs have room; it will wait_for_previous() itself.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// RoPE of a pair: rounded as written here, not as a compiler contracts it, so that every kernel has the same bits.
__device__ inline void rotate(float& a, float& b, float cos, float sin) {
  const float first = fmaf(a, cos, -__fmul_rn(b, sin));
  b = fmaf(a, sin, __fmul_rn(b, cos));
  a = first;
}

// Sum over the block's threads, the same on every thread. `scratch` holds one float per warp; blockDim.x is a multiple of 32.
__device__ inline float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
  __syncthreads();  // scratch may still be read from an earlier call
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return warp_sum(lane < n_warps ? scratch[lane] : 0.0f);
}

// Sum of `value` over the threads before this one; on the last thread, plus its own value, the sum of all. `scratch` holds one
// int per warp.
__device__ inline int block_sum_before(int value, int* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int through = value;  // this thread
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, through, step);
    if (lane >= step) through += other;
  }
  if (lane == 31) scratch[warp] = through;
  __syncthreads();
  for (int w = 0; w < warp; ++w) through += scratch[w];
  return through - value;
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ inline float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Weights are read once per step: keep them from pushing activations out of L1.
__device__ inline uint4 load_once(const uint4* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

__device__ inline void prefetch_line(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// load_once for bytes that kernels write (KV pages): coherent, but no more welcome in L1.
__device__ inline uint4 load_stream(const void* address) {
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}

// Global to shared memory without passing through registers; wait_for_copies() before the barrier that readers wait at.
__device__ inline void copy_16_bytes(void* shared, const void* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ inline void wait_for_copies_but_last() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}  // but the last commit's
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// c (16, 8) += a (16, 16) b (16, 8). Lane (g, q) = (lane / 4, lane % 4) holds a: rows g and g + 8, columns 2q, 2q+1, 2q+8,
// 2q+9; b: the same k of column g; c: rows g and g + 8 of columns 2q, 2q+1.
__device__ inline void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with k = 8: a0 is row g, a1 row g + 8.
__device__ inline void mma_bf16_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b0));
}

}  // namespace sigmoe::cuda
