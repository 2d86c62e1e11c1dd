// The one symbol that libsigmoe_cuda.so exports.
#include "backend/plugin.h"

#include <cuda_runtime.h>

#include "cuda/cuda_backend.h"

namespace sigmoe::cuda {
namespace {

constexpr int kLeastMajor = 8;  // Ampere: BF16 tensor cores

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// The oldest Linux driver that runs programs of this toolkit's major version.
const char* driver_floor() { return CUDART_VERSION >= 13000 ? "580" : "525"; }

bool describe(std::string& detail) {
  int driver = 0, n_devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    detail = std::string("no NVIDIA driver found; this build needs one of branch ") + driver_floor() + " or newer";
    return false;
  }
  const cudaError_t status = cudaGetDeviceCount(&n_devices);
  if (status == cudaErrorInsufficientDriver) {
    detail = "the NVIDIA driver supports CUDA " + version_text(driver) + ", this build is of CUDA " +
             version_text(CUDART_VERSION) + " and needs a driver of branch " + driver_floor() + " or newer";
    return false;
  }
  if (status != cudaSuccess || n_devices == 0) {
    detail = std::string("no usable GPU: ") + (status == cudaSuccess ? "the driver lists none" : cudaGetErrorString(status));
    return false;
  }
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    detail = "the first GPU does not answer";
    return false;
  }
  detail = std::string(properties.name) + ", " + std::to_string(properties.totalGlobalMem >> 30) + " GiB, compute capability " +
           std::to_string(properties.major) + "." + std::to_string(properties.minor);
  if (properties.major >= kLeastMajor) return true;
  detail += ": too old, 8.0 (Ampere) or newer is needed";
  return false;
}

std::unique_ptr<Backend> create(const BackendOptions& options) { return std::make_unique<CudaBackend>(options); }

constexpr BackendPlugin kPlugin{kPluginAbi, describe, create};

}  // namespace
}  // namespace sigmoe::cuda

extern "C" __attribute__((visibility("default"))) const sigmoe::BackendPlugin* sigmoe_plugin() {
  return &sigmoe::cuda::kPlugin;
}
