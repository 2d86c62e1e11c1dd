// NCCL, opened at run time: how ranks meet whose GPUs cannot reach each other's memory, and what benchmarks compare with.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/comm.h"

namespace sigmoe::cuda {

class Nccl {
 public:
  // Blocks until every rank of comm has called it. Throws not_found where there is no libnccl.so.2, on all ranks.
  explicit Nccl(Comm& comm);
  ~Nccl();
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;

  void all_reduce(float* data, size_t n, cudaStream_t stream);
  // data: what each rank r has, counts[r] floats, one behind the other. Every rank has put its own part in place.
  void all_gather(float* data, const std::vector<size_t>& counts, cudaStream_t stream);

 private:
  struct State;
  std::shared_ptr<State> state_;  // the world ends calls in progress when it is shut down
};

}  // namespace sigmoe::cuda
