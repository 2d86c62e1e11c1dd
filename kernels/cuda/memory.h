// Device memory for weights, and how host bytes get there.
#pragma once

#include <cuda_runtime.h>

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace sigmoe::cuda {

// cudaMalloc that throws out_of_memory with what was asked, what is free and which option to lower.
void* device_malloc(size_t bytes, const char* what);

// Bytes of a slab; the slab lives as long as any span of it.
struct DeviceSpan {
  std::shared_ptr<void> slab;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

// Packs thousands of weights into slabs: cudaMalloc rounds every allocation up to 2 MB, and a model has 16,000 of them.
class WeightArena {
 public:
  DeviceSpan take(size_t bytes, const char* what);  // 256-byte aligned, not cleared; any thread

 private:
  std::mutex mutex_;
  std::shared_ptr<void> slab_;
  size_t used_ = 0, size_ = 0;
};

// Pinned host buffers and their device twins, used round-robin: a caller fills one while the device drains the others.
class UploadQueue {
 public:
  static constexpr size_t kBytes = 4 << 20;  // of one buffer
  static constexpr int kBuffers = 4;

  struct Buffer {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    cudaEvent_t drained = nullptr;
  };

  explicit UploadQueue(cudaStream_t stream) : stream_(stream), buffers_(kBuffers) { reserve(); }
  ~UploadQueue() { release(); }
  UploadQueue(const UploadQueue&) = delete;
  UploadQueue& operator=(const UploadQueue&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Calls fill(host) on a free buffer, then, once its `bytes` are on their way to the device twin, enqueue(device) for the
  // kernels that read them. Any thread.
  void send(size_t bytes, const std::function<void(std::byte*)>& fill, const std::function<void(const std::byte*)>& enqueue);
  void copy(void* device, const void* host, size_t bytes);  // in pieces; the host bytes may change when it returns
  // Calls enqueue(pinned) for kernels that read a copy of the host bytes where it lies, over the bus.
  void lend(const void* host, size_t bytes, const std::function<void(const std::byte*)>& enqueue);
  void wait() const;  // until everything sent has arrived

 private:
  void use_buffer(const std::function<void(const Buffer&)>& work);
  void reserve();
  void release();

  cudaStream_t stream_;
  int device_ = 0;  // that of the thread which made the queue; threads that fill buffers may have another
  std::vector<Buffer> buffers_;
  std::vector<Buffer*> free_;  // first in, first out: the front one has had most time to drain
  std::mutex mutex_;
  std::condition_variable returned_;
};

}  // namespace sigmoe::cuda
