// Hopper's asynchronous units as the attention kernels use them, beside the barriers and copies of bulk_copy.cuh: pages by the
// tensor copy engine, warpgroup products. Only sm_90a code may call these; kernels for other targets compile to nothing
// (SIGMOE_HOPPER_CODE) and are never launched.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/bulk_copy.cuh"
#include "cuda/device.cuh"
#include "cuda/operand_lists.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SIGMOE_HOPPER_CODE 1
#else
#define SIGMOE_HOPPER_CODE 0
#endif

namespace sigmoe::cuda::hopper {

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Adds one to a counter in device memory: what this block's barriers have shown this thread is visible to whoever adds after
// it.
__device__ inline int arrive_on_device(int32_t* counter) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

#if SIGMOE_HOPPER_CODE

// Position in a ring of stages, each with a barrier "full" and one "empty". A fresh ring's stages are empty: its filler waits
// with the opposite parity.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// Barriers of some of the block's warps; ids 1 to 15, 0 is __syncthreads.
__device__ inline void named_sync(int id, int n_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}
__device__ inline void named_arrive(int id, int n_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

// ---- tensor copies -------------------------------------------------------------------------------------------------------

// The map's box at (column, row) to shared memory; its bytes count towards the barrier.
__device__ inline void copy_box(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
               : "memory");
}

__device__ inline void prefetch_map(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Ordinary writes to shared memory become visible to the copy engine and the tensor cores.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- warpgroup products ---------------------------------------------------------------------------------------------------
//
// Operands in shared memory lie in boxes of 64 columns: rows of 128 bytes, 8 rows (1024 bytes) to a swizzle pattern, boxes
// kBoxBytes apart.

// Of a box's rows as the n of b, its columns as k: `at` is 32 bytes further for every 16 columns.
__device__ inline uint64_t describe_rows_n(const void* at) {
  return ((shared_address(at) & 0x3ffff) >> 4) | (1ull << 16) | (static_cast<uint64_t>(1024 >> 4) << 32) | (1ull << 62);
}
// Of a box's rows as the k of b, its columns (and those of the boxes after it) as n: `at` is 2048 bytes further for every 16
// rows.
__device__ inline uint64_t describe_rows_k(const void* at, int box_bytes) {
  return ((shared_address(at) & 0x3ffff) >> 4) | (static_cast<uint64_t>(box_bytes >> 4) << 16) |
         (static_cast<uint64_t>(1024 >> 4) << 32) | (1ull << 62);
}

__device__ inline void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving the making and the use of operands in registers across the asynchronous products.
template <int n>
__device__ inline void pin(float (&values)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int n>
__device__ inline void pin(uint32_t (&values)[n][4]) {
#pragma unroll
  for (int i = 0; i < n; ++i)
    asm volatile("" : "+r"(values[i][0]), "+r"(values[i][1]), "+r"(values[i][2]), "+r"(values[i][3])::"memory");
}

// d (64, 64) += a (64, 16) b (16, 64): a in registers, b in shared memory.
template <bool kRowsAreK>
__device__ inline void wgmma(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SIGMOE_LIST_64 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : SIGMOE_OUT_64(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kRowsAreK ? 1 : 0));
}

// d (64, 128) += a (64, 16) b (16, 128): a in registers, b in shared memory.
template <bool kRowsAreK>
__device__ inline void wgmma(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SIGMOE_LIST_128
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
      : SIGMOE_OUT_128(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kRowsAreK ? 1 : 0));
}

// d (64, 128) = a (64, 16) b (16, 128), plus d when `accumulate`, in BF16: both in shared memory, rows along k.
__device__ inline void wgmma(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SIGMOE_LIST_128 "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : SIGMOE_OUT_128(0)
      : "l"(a), "l"(b), "r"(accumulate));
}

// In FP8, E4M3 both: k 32 to a product, of which a thread's four registers hold rows g and g + 8, columns 4 q and on, then the
// same rows, columns 16 + 4 q and on. b lies in rows of 128 bytes along k, `at` 32 bytes further for every 32 of it
// (describe_rows_n).
//
// d (64, 136) = a (64, 32) b (32, 136), plus d when `accumulate`.
__device__ inline void wgmma_e4m3(float (&d)[68], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %73, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3 {" SIGMOE_LIST_136 "}, {%68, %69, %70, %71}, %72, p, 1, 1;\n}\n"
      : SIGMOE_OUT_136(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
// d (64, 128) likewise, a in shared memory as b is.
__device__ inline void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" SIGMOE_LIST_128 "}, %64, %65, p, 1, 1;\n}\n"
      : SIGMOE_OUT_128(0)
      : "l"(a), "l"(b), "r"(accumulate));
}

template <int kRegisters>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif  // SIGMOE_HOPPER_CODE

}  // namespace sigmoe::cuda::hopper
