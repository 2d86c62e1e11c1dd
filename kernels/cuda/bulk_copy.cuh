// Hopper's copies from memory to shared memory that run by themselves and count their bytes on a barrier. Every wait is
// bounded: a kernel that would hang traps after about two seconds.
#pragma once

#include <cstdint>

namespace sigmoe::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#if __CUDA_ARCH__ >= 900

__device__ inline void barrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes barriers that this thread initialised known to the copy engine.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives once and announces `bytes` of copies that the barrier's phase waits for.
__device__ inline void barrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ inline bool barrier_try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
}

__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  if (barrier_try_wait(barrier, parity)) return;
  const long long start = clock64();
  while (!barrier_try_wait(barrier, parity))
    if (clock64() - start > 4'000'000'000ll) __trap();
}

// `bytes`, a multiple of 16, between addresses that are too.
__device__ inline void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

#else  // never reached: only kernels that are launched on Hopper alone call these

__device__ inline void barrier_init(uint64_t*, int) {}
__device__ inline void publish_barriers() {}
__device__ inline void barrier_arrive(uint64_t*) {}
__device__ inline void barrier_expect(uint64_t*, int) {}
__device__ inline void barrier_wait(uint64_t*, uint32_t) {}
__device__ inline void bulk_copy(void*, const void*, int, uint64_t*) {}

#endif

}  // namespace sigmoe::cuda
