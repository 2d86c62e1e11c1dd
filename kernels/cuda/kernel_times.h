// Device clocks, and what the kernels of a piece of work take one by one.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <vector>

#include "backend/bench_device.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {

class Event {
 public:
  Event() { CUDA_CHECK(cudaEventCreate(&handle_)); }
  ~Event() { cudaEventDestroy(handle_); }
  Event(const Event&) = delete;
  cudaEvent_t handle() const { return handle_; }
  void record(const Queue& queue) const { CUDA_CHECK(cudaEventRecord(handle_, queue.stream)); }
  void wait() const { CUDA_CHECK(cudaEventSynchronize(handle_)); }
  double ms_since(const Event& start) const {
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, start.handle_, handle_));
    return ms;
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

// Runs `work` a few times, its kernels strictly one after the other with a clock after each. in_step: as often as every other
// rank does, however long that takes.
std::vector<BenchDevice::KernelUse> time_kernels(const Queue& queue, const std::function<void()>& work, bool in_step);

double median_of(std::vector<double> values);

}  // namespace sigmoe::cuda
