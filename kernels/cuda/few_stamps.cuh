// When the blocks of a kernel start, have what they wait for, and end: least and most of each over the blocks, in nanoseconds.
// For finding out where a layer's time goes; nothing happens without a place to write to.
#pragma once

#include <cstdint>

namespace sigmoe::cuda {

enum class StampOf : int { qkv, attention, out, router, gate_up, down };
constexpr int kStampWords = 6;  // of a kernel: least and most of start, wait, end

struct FewStamps {
  unsigned long long* to;

  __device__ FewStamps(unsigned long long* stamps, StampOf kernel, int thread = 0)
      : to(stamps && static_cast<int>(threadIdx.x) == thread ? stamps + static_cast<int>(kernel) * kStampWords : nullptr) {
    write(0);
  }
  __device__ void waited() { write(2); }
  __device__ void done() { write(4); }
  __device__ static unsigned long long now() {
    unsigned long long t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
  }
  __device__ static void put(unsigned long long* stamps, StampOf kernel, int at, unsigned long long t) {
    atomicMin(stamps + static_cast<int>(kernel) * kStampWords + at, t);
    atomicMax(stamps + static_cast<int>(kernel) * kStampWords + at + 1, t);
  }

 private:
  __device__ void write(int at) {
    if (!to) return;
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    atomicMin(to + at, now);
    atomicMax(to + at + 1, now);
  }
};

}  // namespace sigmoe::cuda
