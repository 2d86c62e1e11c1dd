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

// Lets a block of the kernel have this much shared memory; beyond 48 KiB a kernel has to ask. It then asks for all that a block
// can have: the limit belongs to the kernel on its device, and two engine threads on one GPU that each asked for their own
// launch's size would lower it under one another between this call and the launch.
void allow_shared_memory(const void* kernel, size_t bytes);

// `cluster`: blocks of x that share their shared memory (sm_90), or 1.
template <typename... Params, typename... Args>
void launch_clusters(const Queue& queue, int cluster, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                     Args&&... args) {
  if (shared_bytes > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  config.attrs = attributes;
  if (queue.overlap) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...));
}

// Clusters of `cluster` blocks that the device runs at once.
template <typename... Params>
int clusters_at_once(void (*kernel)(Params...), int cluster, dim3 block, size_t shared_bytes) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = cluster;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int n = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveClusters(&n, kernel, &config));
  return n;
}

template <typename... Params, typename... Args>
void launch(const Queue& queue, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
  launch_clusters(queue, 1, kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
}

constexpr int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace sigmoe::cuda
