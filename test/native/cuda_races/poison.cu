// libsigmoe_cuda_poisoned.so: the CUDA library with all shared memory of the GPU overwritten ahead of every kernel, by
// not-a-number, infinities or noise, another choice for each block and launch. A kernel that reads shared memory which it has
// not written then gives other bits from run to run, or NaN, where it may be right for months otherwise: what lies there are
// the weights of the kernel before. No sanitizer looks for that. Launches do not overlap here.
//
//   SIGMOE_CUDA_LIBRARY=.../libsigmoe_cuda_poisoned.so sigmoe_tests -tc='cuda *'
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace {

constexpr int kThreads = 1024;

__device__ uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

__global__ void __launch_bounds__(kThreads) poison_kernel(int n_words) {
  extern __shared__ uint32_t words[];
  __shared__ uint64_t seed;
  if (threadIdx.x == 0) seed = mix(clock64() + (uint64_t{blockIdx.x} << 48));
  __syncthreads();
  for (int i = threadIdx.x; i < n_words; i += kThreads) {
    const auto noise = static_cast<uint32_t>(mix(seed + i));
    switch (seed % 8) {
      case 0: words[i] = 0x7fc07fc0; break;                          // NaN in float32 and in BF16
      case 1: words[i] = 0x7f807f80; break;                          // infinity in BF16
      case 2: words[i] = 0xff7fff7f; break;                          // the least finite
      case 3: words[i] = 0x7f7f7f7f; break;                          // NaN in E4M3
      case 4: words[i] = 0x3f803f80 ^ (noise & 0x007f007fu); break;  // near one
      default: words[i] = noise;
    }
  }
}

}  // namespace

extern "C" {

cudaError_t __real_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args);

// What every launch of kernels/cuda goes through; the linker puts this in its place (--wrap).
cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args) {
  static const bool told = std::printf("cuda: shared memory is poisoned ahead of every kernel\n") > 0;
  (void)told;
  int device = 0, n_sms = 0, bytes = 0;
  cudaFuncAttributes attributes;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, poison_kernel);
  if (status != cudaSuccess) return status;
  bytes -= static_cast<int>(attributes.sharedSizeBytes);  // a block for each SM, with all that a block can have
  status = cudaFuncSetAttribute(poison_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  poison_kernel<<<n_sms, kThreads, bytes, config->stream>>>(bytes / 4);
  status = cudaGetLastError();
  return status == cudaSuccess ? __real_cudaLaunchKernelExC(config, kernel, args) : status;
}
}
