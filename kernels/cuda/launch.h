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

// Grid, block and attributes of a launch; `cluster` blocks share memory (sm_90).
struct LaunchShape {
  LaunchShape(dim3 grid, dim3 block, size_t shared_bytes, const Queue& queue, int cluster) {
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = queue.stream;
    config.attrs = attributes;
    if (queue.overlap) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = cluster;
      attributes[config.numAttrs].val.clusterDim.y = 1;
      attributes[config.numAttrs++].val.clusterDim.z = 1;
    }
  }
  LaunchShape(const LaunchShape&) = delete;
  LaunchShape& operator=(const LaunchShape&) = delete;

  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};
};

template <typename... Params, typename... Args>
void launch_clusters(const Queue& queue, void (*kernel)(Params...), int cluster, dim3 grid, dim3 block, size_t shared_bytes,
                     Args&&... args) {
  const LaunchShape shape(grid, block, shared_bytes, queue, cluster);
  CUDA_CHECK(cudaLaunchKernelEx(&shape.config, kernel, static_cast<Params>(std::forward<Args>(args))...));
}

template <typename... Params, typename... Args>
void launch(const Queue& queue, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
  launch_clusters(queue, kernel, 1, grid, block, shared_bytes, std::forward<Args>(args)...);
}

constexpr int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace sigmoe::cuda
