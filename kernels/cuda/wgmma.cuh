// Hopper's asynchronous instructions as the many-row products use them: barriers in shared memory, bulk copies, and the
// warpgroup's tensor-core product, its narrow operand in shared memory and its 64-row one there or in registers.
#pragma once

#include <cstdint>

#include "cuda/operand_lists.h"

namespace sigmoe::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- barriers --------------------------------------------------------------------------------------------------------

__device__ inline void barrier_init(uint64_t* barrier, uint32_t n_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_arrivals) : "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// One arrival, and `bytes` more to come from bulk copies.
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ inline bool barrier_passed(uint64_t* barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(passed)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return passed != 0;
}
// A barrier that nobody completes within two seconds is a fault of the kernel: an error is better than a hang.
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint64_t begin = 0;
  for (uint32_t n_polls = 1; !barrier_passed(barrier, parity); ++n_polls) {
    if (n_polls % 256 != 0) continue;
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    if (begin == 0) begin = now;
    if (now - begin > 2000000000ull) __trap();
  }
}
// One arrival at the barrier that block `rank` of the cluster, which may be this one, has where this one has `barrier`. It
// releases no writes to the cluster (that would wait for all of this thread's): it says that reads are over.
__device__ inline void barrier_arrive_at(uint64_t* barrier, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
// `n_threads` of the block meet; 0 is __syncthreads()'s.
template <int id, int n_threads>
__device__ inline void meet() {
  asm volatile("bar.sync %0, %1;" ::"n"(id), "n"(n_threads) : "memory");
}

// The 128 threads of a warpgroup meet, at a barrier of its own.
__device__ inline void meet_group(int group) { asm volatile("bar.sync %0, 128;" ::"r"(3 + group) : "memory"); }

// ---- clusters --------------------------------------------------------------------------------------------------------

__device__ inline void cluster_meet() {
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}
// What block `rank` of the cluster has where this one has `shared`.
__device__ inline float load_peer(const float* shared, int rank) {
  uint32_t address;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}

// ---- copies ----------------------------------------------------------------------------------------------------------

// Contiguous global bytes to shared memory; both addresses and the size are multiples of 16.
__device__ inline void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// The same to both blocks of a cluster of two, at the same place in each and with the barrier that each has there.
__device__ inline void bulk_load_both(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  constexpr uint16_t kBoth = 3;
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "h"(kBoth)
      : "memory");
}
// Shared memory to global; bulk_store_read() before the shared bytes change.
__device__ inline void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)),
               "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ inline void bulk_store_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ inline void bulk_store_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
__device__ inline void copy_4_bytes(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
template <int n>
__device__ inline void wait_for_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
// Four 8 x 8 matrices of 16-bit values, of which the lane holds a pair of columns of one row of each: lane i's address gets
// column i % 8 of matrix i / 8.
__device__ inline void store_transposed(void* shared, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared)), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}
// Two of them: lanes 0 to 15 have the addresses.
__device__ inline void store_transposed(void* shared, uint32_t a, uint32_t b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(shared)), "r"(a), "r"(b)
               : "memory");
}
// Shared memory written by this thread becomes visible to bulk stores and to the tensor cores.
__device__ inline void publish_to_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int n>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}

// ---- products --------------------------------------------------------------------------------------------------------

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int n>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}
// Keeps the compiler from moving uses of an accumulator across a fence or a wait.
template <int n>
__device__ inline void pin(float (&values)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Rows of 128 bytes, 16-byte pieces swizzled by the row's number mod 8; `shared` is a multiple of 1024.
__device__ inline uint64_t swizzled_operand(const void* shared) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 | (shared_address(shared) & 0x3ffff) >> 4;
}
// Tiles of an FP8 weight as they are stored (weight.h): eight rows every 1024 bytes, of the halves of 64 bytes of k that begin
// at `shared`, a multiple of 512.
__device__ inline uint64_t weight_operand(const void* shared) {
  return uint64_t{2} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 | (shared_address(shared) & 0x3ffff) >> 4;
}

// A0 to A3, B, S: the operand numbers after the accumulators.
#define SIGMOE_WGMMA(SHAPE, TYPES, N, TRANSPOSE, A0, A1, A2, A3, B, S)                                           \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #S ", 0; wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES    \
               " {" SIGMOE_LIST_##N "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B ", p, 1, 1" TRANSPOSE "; }" \
               : SIGMOE_OUT_##N(0)                                                                               \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(static_cast<int>(accumulate)))
#define SIGMOE_WGMMA_SHARED(SHAPE, N, A, B, S)                                                  \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #S ", 0; wgmma.mma_async.sync.aligned." SHAPE \
               ".f32.e4m3.e4m3"                                                                 \
               " {" SIGMOE_LIST_##N "}, %" #A ", %" #B ", p, 1, 1; }"                           \
               : SIGMOE_OUT_##N(0)                                                              \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

// d (64, N) = a b, plus d when `accumulate`: 32 bytes of k, in one order in both operands. d as mma_bf16's c, 8 columns after
// the other. Of the warp's 16 rows of a lane (g, q) brings bytes 4q .. 4q + 3 of row g, of row g + 8, and the same of the second
// 16 bytes.
template <int N>
__device__ inline void wgmma_fp8(float (&d)[N / 2], const uint4& a, uint64_t b, bool accumulate) {
  static_assert(N == 16);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  SIGMOE_WGMMA("m64n16k32", "e4m3.e4m3", 16, "", 8, 9, 10, 11, 12, 13);
#endif
}
// Both from shared memory.
template <int N>
__device__ inline void wgmma_fp8(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(N % 16 == 0 && N <= 144);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (N == 16) SIGMOE_WGMMA_SHARED("m64n16k32", 16, 8, 9, 10);
  if constexpr (N == 32) SIGMOE_WGMMA_SHARED("m64n32k32", 32, 16, 17, 18);
  if constexpr (N == 48) SIGMOE_WGMMA_SHARED("m64n48k32", 48, 24, 25, 26);
  if constexpr (N == 64) SIGMOE_WGMMA_SHARED("m64n64k32", 64, 32, 33, 34);
  if constexpr (N == 80) SIGMOE_WGMMA_SHARED("m64n80k32", 80, 40, 41, 42);
  if constexpr (N == 96) SIGMOE_WGMMA_SHARED("m64n96k32", 96, 48, 49, 50);
  if constexpr (N == 112) SIGMOE_WGMMA_SHARED("m64n112k32", 112, 56, 57, 58);
  if constexpr (N == 128) SIGMOE_WGMMA_SHARED("m64n128k32", 128, 64, 65, 66);
  if constexpr (N == 144) SIGMOE_WGMMA_SHARED("m64n144k32", 144, 72, 73, 74);
#endif
}
template <int N>
__device__ inline void wgmma_bf16(float (&d)[N / 2], const uint4& a, uint64_t b, bool accumulate) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (N == 16) SIGMOE_WGMMA("m64n16k16", "bf16.bf16", 16, ", 0", 8, 9, 10, 11, 12, 13);
  if constexpr (N == 32) SIGMOE_WGMMA("m64n32k16", "bf16.bf16", 32, ", 0", 16, 17, 18, 19, 20, 21);
  if constexpr (N == 64) SIGMOE_WGMMA("m64n64k16", "bf16.bf16", 64, ", 0", 32, 33, 34, 35, 36, 37);
  if constexpr (N == 96) SIGMOE_WGMMA("m64n96k16", "bf16.bf16", 96, ", 0", 48, 49, 50, 51, 52, 53);
  if constexpr (N == 128) SIGMOE_WGMMA("m64n128k16", "bf16.bf16", 128, ", 0", 64, 65, 66, 67, 68, 69);
#endif
}

#undef SIGMOE_WGMMA
#undef SIGMOE_WGMMA_SHARED

}  // namespace sigmoe::cuda
