// sigmoe_cuda_pools: two GPUs, and memory of a pool that both reach, as kernels/cuda/device_world.cpp has it. A right program:
// the memory is cleared before the other GPU reads it, none of it past its end. A second pool gets the addresses of the first
// one, which is gone; of it memcheck and initcheck may still believe what was true of the first (kernels/cuda/README.md).
//
//   compute-sanitizer --tool memcheck sigmoe_cuda_pools
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace {

#define CHECK_CUDA(call)                                                          \
  do {                                                                            \
    const cudaError_t status = (call);                                            \
    if (status != cudaSuccess) {                                                  \
      std::printf("cuda pools: %s from %s\n", cudaGetErrorString(status), #call); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (0)

__global__ void sum_kernel(const float* values, int n, float* sum) {
  float own = 0.0f;
  for (int i = 0; i < n; ++i) own += values[i];
  *sum = own;
}

// n floats of one GPU's memory, read by both GPUs.
bool reads_zeros(int owner, int n) {
  CHECK_CUDA(cudaSetDevice(owner));
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, owner};
  cudaMemPool_t pool;
  CHECK_CUDA(cudaMemPoolCreate(&pool, &properties));
  cudaMemAccessDesc access = {};
  access.location = {cudaMemLocationTypeDevice, 1 - owner};
  access.flags = cudaMemAccessFlagsProtReadWrite;
  CHECK_CUDA(cudaMemPoolSetAccess(pool, &access, 1));
  void* values;
  CHECK_CUDA(cudaMallocFromPoolAsync(&values, n * sizeof(float), pool, stream));
  CHECK_CUDA(cudaMemsetAsync(values, 0, n * sizeof(float), stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));

  bool right = true;
  for (int device = 0; device < 2; ++device) {
    CHECK_CUDA(cudaSetDevice(device));
    float *on_device, sum = -1.0f;
    CHECK_CUDA(cudaMalloc(&on_device, sizeof(float)));
    sum_kernel<<<1, 1>>>(static_cast<const float*>(values), n, on_device);
    CHECK_CUDA(cudaMemcpy(&sum, on_device, sizeof(float), cudaMemcpyDeviceToHost));
    CHECK_CUDA(cudaFree(on_device));
    right = right && sum == 0.0f;
  }

  CHECK_CUDA(cudaSetDevice(owner));
  CHECK_CUDA(cudaFree(values));
  CHECK_CUDA(cudaMemPoolDestroy(pool));
  CHECK_CUDA(cudaStreamDestroy(stream));
  std::printf("%d floats of GPU %d at %p: %s\n", n, owner, values, right ? "right" : "WRONG");
  return right;
}

}  // namespace

int main() {
  int n_devices = 0, can = 0;
  if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices < 2 || cudaDeviceCanAccessPeer(&can, 0, 1) != cudaSuccess ||
      !can) {
    std::printf("cuda pools: skipped, no two GPUs that reach each other\n");
    return 0;
  }
  return reads_zeros(1, 169) && reads_zeros(1, 2048) && reads_zeros(0, 4096) ? 0 : 1;
}
