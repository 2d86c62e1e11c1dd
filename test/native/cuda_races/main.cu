// sigmoe_cuda_races: right programs, as small as can be, that sanitizers report nevertheless (kernels/cuda/README.md).
//
// Rings of shared memory as the kernels have them, right by the PTX memory model. racecheck reports those in which lane 0
// arrives for its warp, whose other lanes it follows by __syncwarp() alone: it credits an arrival to its own lane. "cluster":
// blocks that read each other's shared memory, for a racecheck that was told to leave their kernel out.
//
//   sigmoe_cuda_races               computes with every one of them and compares
//   compute-sanitizer --tool racecheck sigmoe_cuda_races [NAME]
//   compute-sanitizer --tool racecheck --kernel-name kns=ring sigmoe_cuda_races cluster
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/bulk_copy.cuh"

using namespace sigmoe::cuda;

namespace {

[[maybe_unused]] constexpr int kStages = 2;
constexpr int kTiles = 16, kFloats = 32;  // a tile: one float per lane

enum class Copy { bulk, bulk_of_other_lane, small, small_all_arrive };

// Warp 0 copies tiles into a ring, warp 1 adds them up. A tile is full when its bytes are there and empty when it has been
// read.
template <Copy kind, bool AllRelease>
__global__ void ring_kernel(const float* tiles, float* sums) {
#if __CUDA_ARCH__ >= 900
  __shared__ __align__(128) float ring[kStages][kFloats];
  __shared__ uint64_t full[kStages], empty[kStages];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&full[s], kind == Copy::small_all_arrive ? 32 : 1);
      barrier_init(&empty[s], AllRelease ? 32 : 1);
    }
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    for (int i = 0; i < kTiles; ++i) {
      const int s = i % kStages;
      const float* from = tiles + i * kFloats;
      barrier_wait(&empty[s], (i / kStages & 1) ^ 1);
      __syncwarp();
      if constexpr (kind == Copy::bulk || kind == Copy::bulk_of_other_lane) {
        if (lane == 0) barrier_expect(&full[s], sizeof(ring[s]));
        if (lane == (kind == Copy::bulk ? 0 : 1)) bulk_copy(ring[s], from, sizeof(ring[s]), &full[s]);
      } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(&ring[s][lane])), "l"(from + lane)
                     : "memory");
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncwarp();
        if (kind == Copy::small_all_arrive || lane == 0) barrier_arrive(&full[s]);
      }
    }
  } else {
    float sum = 0.0f;
    for (int i = 0; i < kTiles; ++i) {
      const int s = i % kStages;
      barrier_wait(&full[s], i / kStages & 1);
      sum += ring[s][lane];
      __syncwarp();
      if (AllRelease || lane == 0) barrier_arrive(&empty[s]);
    }
    sums[lane] = sum;
  }
#endif
}

// A cluster of two blocks; each adds up what the other has put into its own shared memory, block 0 gives the result.
__global__ void cluster_kernel(const float* tiles, float* sums) {
#if __CUDA_ARCH__ >= 900
  __shared__ float own[kFloats];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    float sum = 0.0f;
    for (int i = 0; i < kTiles; ++i) sum += tiles[i * kFloats + lane];
    own[lane] = sum;
  }
  const auto meet = [] { asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory"); };
  meet();
  uint32_t address;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own + lane)), "r"(1 - blockIdx.x % 2));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address));
  if (threadIdx.x < 32 && blockIdx.x == 0) sums[lane] = value;
  meet();  // nobody reads a block that has ended
#endif
}

struct Ring {
  const char* name;
  void (*kernel)(const float*, float*);
  int n_blocks = 1;  // of a cluster
};

constexpr Ring kRings[] = {
    {"bulk", ring_kernel<Copy::bulk, true>},
    {"bulk-released-by-lane-0", ring_kernel<Copy::bulk, false>},
    {"bulk-announced-by-another-lane", ring_kernel<Copy::bulk_of_other_lane, true>},
    {"small", ring_kernel<Copy::small_all_arrive, true>},
    {"small-announced-by-lane-0", ring_kernel<Copy::small, true>},
    {"cluster", cluster_kernel, 2},
};

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || device.major < 9) {
    std::printf("cuda races: skipped, no GPU of Hopper's kind or newer\n");
    return 0;
  }
  std::vector<float> tiles(kTiles * kFloats), expected(kFloats), got(kFloats);
  for (int i = 0; i < kTiles * kFloats; ++i) tiles[i] = static_cast<float>(i * 7 % 101), expected[i % kFloats] += tiles[i];
  float *on_device, *sums;
  if (cudaMalloc(&on_device, tiles.size() * sizeof(float)) != cudaSuccess ||
      cudaMalloc(&sums, kFloats * sizeof(float)) != cudaSuccess ||
      cudaMemcpy(on_device, tiles.data(), tiles.size() * sizeof(float), cudaMemcpyHostToDevice) != cudaSuccess) {
    std::printf("cuda races: the GPU refuses memory\n");
    return 1;
  }
  bool right = true;
  for (const Ring& ring : kRings) {
    if (argc > 1 && std::strcmp(argv[1], ring.name) != 0) continue;
    cudaMemset(sums, 0, kFloats * sizeof(float));
    cudaLaunchConfig_t config = {};
    config.gridDim = ring.n_blocks;
    config.blockDim = 64;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(ring.n_blocks), 1, 1};
    config.attrs = &cluster;
    config.numAttrs = 1;
    const float* from = on_device;
    const cudaError_t launched = cudaLaunchKernelEx(&config, ring.kernel, from, sums);
    const cudaError_t status =
        launched != cudaSuccess ? launched : cudaMemcpy(got.data(), sums, kFloats * sizeof(float), cudaMemcpyDeviceToHost);
    const bool same = status == cudaSuccess && got == expected;
    std::printf("%-32s %s\n", ring.name, same ? "right" : status == cudaSuccess ? "WRONG" : cudaGetErrorString(status));
    right = right && same;
  }
  cudaFree(on_device);
  cudaFree(sums);
  return right ? 0 : 1;
}
