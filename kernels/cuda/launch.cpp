#include "cuda/launch.h"

#include <string>

namespace sigmoe::cuda {

void throw_cuda_error(cudaError_t status, const char* expression, const char* file, int line) {
  const std::string where = std::string(file) + ":" + std::to_string(line);
  throw EngineError(
      ErrorCode::device,
      std::string("CUDA error ") + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ") from " + expression +
          " at " + where,
      "dispose the model; after a failed kernel this process cannot use the GPU again (device 'cpu' goes on): start "
      "it anew, and if the error comes back, look at the driver's log (dmesg, nvidia-smi)");
}

void allow_shared_memory(const void* kernel, size_t bytes) {
  cudaFuncAttributes attributes;
  CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  if (bytes <= static_cast<size_t>(attributes.maxDynamicSharedSizeBytes)) return;
  int device = 0, most = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  most - static_cast<int>(attributes.sharedSizeBytes)));
}

}  // namespace sigmoe::cuda
