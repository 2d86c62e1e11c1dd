// Linear layers of tens to hundreds of rows whose k is divided among the blocks of a cluster: what tensor_split.cu and
// tensor_resident.cu share.
#pragma once

#include "cuda/tensor_gemm.h"

namespace sigmoe::cuda {

constexpr int kMostSplits = 4;

// tensor_split.cu's product with all of a block's W in shared memory; false where it does not fit, and nothing was launched.
bool launch_tensor_resident(const Queue& queue, const TensorGemmArgs& args);

template <typename Args>
void launch_cluster(const Queue& queue, void (*kernel)(Args), int n_blocks, int n_threads, size_t shared_bytes, int cluster,
                    const Args& args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = cluster;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = n_blocks;
  config.blockDim = n_threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = queue.overlap ? 2 : 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
}

}  // namespace sigmoe::cuda
