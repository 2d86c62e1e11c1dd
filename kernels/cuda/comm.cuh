// How a kernel talks to kernels on other GPUs: numbered words, flags, and waits that end.
#pragma once

#include <cstdint>

#include "cuda/comm.h"
#include "cuda/device.cuh"

namespace sigmoe::cuda {

__device__ inline uint64_t now_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

__device__ inline uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_relaxed(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// Everything this thread knows to have happened, happened for whoever sees the flag by wait_for_flag.
__device__ inline void raise_flag(uint32_t* flag, uint32_t number) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(number) : "memory");
}
__device__ inline uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Counts the polls of one wait; give_up() says when it has to end without success. Host memory is slow to read: every few
// thousand polls, some milliseconds, must do.
struct Patience {
  uint32_t polls = 0;
  uint64_t since = 0;
  __device__ bool give_up(const PeerView& peers) {
    if (++polls % 4096 != 0) return false;
    const uint64_t now = now_ns();
    if (since == 0) since = now;
    if (now - since > peers.patience_ns) store_relaxed(peers.stop, 1);
    return load_relaxed(peers.stop) != 0;
  }
};

__device__ inline void wait_for_flag(const PeerView& peers, const uint32_t* flag, uint32_t number) {
  Patience patience;
  while (load_acquire(flag) != number)
    if (patience.give_up(peers)) return;
}

// Two floats, each with the number of the call in the word beside it: eight bytes arrive together, sixteen need not.
__device__ inline void store_numbered(void* to, float a, float b, uint32_t number) {
  const uint64_t high = static_cast<uint64_t>(number) << 32;
  asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(high | __float_as_uint(a)),
               "l"(high | __float_as_uint(b))
               : "memory");
}
struct NumberedPair {
  uint64_t a, b;
  __device__ bool is(uint32_t number) const { return (a >> 32) == number && (b >> 32) == number; }
};
__device__ inline NumberedPair load_numbered(const void* from) {
  NumberedPair pair;
  asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];" : "=l"(pair.a), "=l"(pair.b) : "l"(from) : "memory");
  return pair;
}

// What a peer has written or may write: never from this SM's L1.
__device__ inline float4 load_shared(const float4* from) {
  float4 v;
  asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ inline float load_shared(const float* from) {
  float value;
  asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
  return value;
}

// The number of this launch for this block, from 1 on, never 0, odd and even in turn; to be called by all threads, and
// keep_number by one of them when the block is done. Blocks of all ranks with the same index see the same numbers.
__device__ inline uint32_t next_number(const uint32_t* counter) {
  const uint32_t number = load_relaxed(counter) + 1;
  return number != 0 ? number : 2;
}

__device__ inline float4 add(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ inline float squares(float4 a) { return a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w; }

}  // namespace sigmoe::cuda
