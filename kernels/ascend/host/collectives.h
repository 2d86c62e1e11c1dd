// Sums and gathers over the ranks of a world by HCCL. The ranks are threads of one process, each with an NPU of its own; the
// engine's Comm brings them together once, to hand around what HCCL wants to start.
#pragma once

#include <cstdint>
#include <memory>

#include "ascend/host/device.h"
#include "backend/comm.h"

namespace sigmoe::ascend {

class Collectives {
 public:
  // Blocks until every rank of comm has called it. Throws not_found where there is no HCCL.
  Collectives(Device& device, Comm& comm);
  ~Collectives();
  Collectives(const Collectives&) = delete;
  Collectives& operator=(const Collectives&) = delete;

  const Comm& comm() const { return comm_; }
  void all_reduce_sum(float* data, int64_t n);  // in place, on the stream
  // received (world, n) <- sent (n) of every rank, in rank order.
  void all_gather(const float* sent, float* received, int64_t n);

 private:
  Device& device_;
  Comm& comm_;
  void* handle_ = nullptr;
};

}  // namespace sigmoe::ascend
