// Breaks the GPU context of this process, as a kernel with a bug would: it writes where no memory is. The product has nothing
// that could do this on purpose.
#include <cuda_runtime.h>

#include <cstdint>

#include "fault.h"

namespace sigmoe::testing {
namespace {

__global__ void write_nowhere() { *reinterpret_cast<volatile int*>(uintptr_t{64}) = 1; }

}  // namespace

std::string break_the_gpu() {
  write_nowhere<<<1, 1>>>();
  return cudaGetErrorName(cudaDeviceSynchronize());
}

}  // namespace sigmoe::testing
