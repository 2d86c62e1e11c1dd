#include "cuda/memory.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "cuda/launch.h"

namespace sigmoe::cuda {
namespace {

constexpr size_t kSlabBytes = size_t{256} << 20;
constexpr size_t kSlabAlignment = 256;

std::string megabytes(size_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

}  // namespace

void* device_malloc(size_t bytes, const char* what) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // this one is not sticky
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    throw EngineError(
        ErrorCode::out_of_memory,
        std::string(what) + ": " + megabytes(bytes) + " of GPU memory asked for, " + megabytes(free) + " of " +
            megabytes(total) + " free",
        "lower kvCacheTokens, maxModelLen or maxBatchedTokens, free the GPU, or use a smaller or quantised model");
  }
  CUDA_CHECK(status);
  return data;
}

DeviceSpan WeightArena::take(size_t bytes, const char* what) {
  const size_t rounded = (bytes + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
  const std::lock_guard lock(mutex_);
  if (used_ + rounded > size_) {
    const size_t asked = std::max(rounded, kSlabBytes);
    void* slab = nullptr;
    try {
      slab = device_malloc(asked, what);
      size_ = asked;
    } catch (const EngineError& error) {
      if (error.code() != ErrorCode::out_of_memory || asked == rounded) throw;
      slab = device_malloc(rounded, what);  // the last weights of a model that only just fits
      size_ = rounded;
    }
    slab_ = std::shared_ptr<void>(slab, [](void* memory) { cudaFree(memory); });
    used_ = 0;
  }
  DeviceSpan span{slab_, static_cast<std::byte*>(slab_.get()) + used_, bytes};
  used_ += rounded;
  return span;
}

void UploadQueue::reserve() {
  CUDA_CHECK(cudaGetDevice(&device_));
  try {
    for (Buffer& buffer : buffers_) {
      CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&buffer.host), kBytes));
      buffer.device = static_cast<std::byte*>(device_malloc(kBytes, "upload buffers"));
      CUDA_CHECK(cudaEventCreateWithFlags(&buffer.drained, cudaEventDisableTiming));
      free_.push_back(&buffer);
    }
  } catch (...) {
    release();
    throw;
  }
}

void UploadQueue::release() {
  cudaStreamSynchronize(stream_);
  for (const Buffer& buffer : buffers_) {
    if (buffer.drained) cudaEventDestroy(buffer.drained);
    if (buffer.device) cudaFree(buffer.device);
    if (buffer.host) cudaFreeHost(buffer.host);
  }
}

// Runs `work` with the buffer that has had most time to drain, and marks what work enqueued as its next drain.
void UploadQueue::use_buffer(const std::function<void(const Buffer&)>& work) {
  Buffer* buffer = nullptr;
  {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [&] { return !free_.empty(); });
    buffer = free_.front();
    free_.erase(free_.begin());
  }
  std::exception_ptr failure;
  try {
    CUDA_CHECK(cudaSetDevice(device_));
    CUDA_CHECK(cudaEventSynchronize(buffer->drained));
    work(*buffer);
    CUDA_CHECK(cudaEventRecord(buffer->drained, stream_));
  } catch (...) {
    failure = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    free_.push_back(buffer);
  }
  returned_.notify_one();
  if (failure) std::rethrow_exception(failure);
}

void UploadQueue::send(size_t bytes, const std::function<void(std::byte*)>& fill,
                       const std::function<void(const std::byte*)>& enqueue) {
  SIGMOE_CHECK(bytes <= kBytes, "an upload is larger than its buffer");
  use_buffer([&](const Buffer& buffer) {
    fill(buffer.host);
    CUDA_CHECK(cudaMemcpyAsync(buffer.device, buffer.host, bytes, cudaMemcpyHostToDevice, stream_));
    enqueue(buffer.device);
  });
}

void UploadQueue::copy(void* device, const void* host, size_t bytes) {
  for (size_t done = 0; done < bytes; done += kBytes) {
    const size_t n = std::min(kBytes, bytes - done);
    use_buffer([&](const Buffer& buffer) {
      std::memcpy(buffer.host, static_cast<const std::byte*>(host) + done, n);
      CUDA_CHECK(cudaMemcpyAsync(static_cast<std::byte*>(device) + done, buffer.host, n, cudaMemcpyHostToDevice, stream_));
    });
  }
}

void UploadQueue::lend(const void* host, size_t bytes, const std::function<void(const std::byte*)>& enqueue) {
  SIGMOE_CHECK(bytes <= kBytes, "an upload is larger than its buffer");
  use_buffer([&](const Buffer& buffer) {
    std::memcpy(buffer.host, host, bytes);
    enqueue(buffer.host);
  });
}

void UploadQueue::wait() const { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

}  // namespace sigmoe::cuda
