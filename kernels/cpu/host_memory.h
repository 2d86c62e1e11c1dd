// Memory for weights, caches and scratch: zero-filled, 64-byte aligned or better, on huge pages where the system gives
// them. Asking for more than the machine has left is an error here, not a visit from the out-of-memory killer later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "backend/backend.h"

namespace sigmoe {

// What this process may still take: the smaller of the machine's available memory and the control group's limit, less
// what was handed out here and not touched yet.
uint64_t available_memory_bytes();

// Throws out_of_memory naming `what`.
DeviceBuffer allocate_host(size_t bytes, const char* what);

// Many weights share one large mapping, so that experts of a megabyte sit on huge pages too. A slab is freed when the
// last weight in it is.
class SlabArena {
 public:
  struct Piece {
    std::shared_ptr<DeviceBuffer> slab;  // keeps the memory
    std::byte* data = nullptr;
  };
  Piece allocate(size_t bytes, const std::string& what);  // from any thread

 private:
  std::mutex lock_;
  std::shared_ptr<DeviceBuffer> slab_;
  size_t used_ = 0;
};

}  // namespace sigmoe
