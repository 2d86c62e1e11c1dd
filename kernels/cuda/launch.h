// Host side of every kernel call: checked runtime calls, and launches that overlap their start with the kernel before.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "backend/error.h"

namespace sigmoe::cuda {

// A failed runtime call leaves the context unusable as often as not, so every one of them breaks the model.
[[noreturn]] void throw_cuda_error(cudaError_t status, const char* expression, const char* file, int line);

#define CUDA_CHECK(expression)                                                                              \
  do {                                                                                                      \
    const cudaError_t status_ = (expression);                                                               \
    if (status_ != cudaSuccess) ::sigmoe::cuda::throw_cuda_error(status_, #expression, __FILE__, __LINE__); \
  } while (0)

// Where kernels go. `overlap`: the device can start a kernel while the one before it drains (sm_90); such a kernel calls
// wait_for_previous() before it touches anything another kernel wrote.
struct Queue {
  cudaStream_t stream = nullptr;
  bool overlap = false;
};

template <typename... Params, typename... Args>
void launch(const Queue& queue, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = queue.overlap ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...));
}

constexpr int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace sigmoe::cuda
