// One NPU as a backend sees it: its context and streams, memory in and out, launches, recorded steps. Every call of ACL in this
// backend is made here or in the files of collectives and aclnn products.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ascend/host/acl.h"
#include "ascend/host/cores.h"
#include "backend/backend.h"

namespace sigmoe::ascend {

// Bytes of a slab; the slab lives as long as any span of it.
struct DeviceSpan {
  std::shared_ptr<void> slab;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

class Device {
 public:
  Device(const Runtime& runtime, int index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Runtime& runtime() const { return runtime_; }
  const AclFunctions& acl() const { return runtime_.acl; }
  void* stream() const { return stream_; }
  const std::string& soc_name() const { return soc_name_; }
  Cores cores() const { return cores_; }
  bool captures() const { return refused_.empty(); }
  const std::string& capture_refused() const { return refused_; }  // why steps are not recorded; empty: they are

  // Any thread. What alloc gives is zero-filled; what take gives is not.
  DeviceBuffer alloc(size_t bytes, const char* what);
  DeviceSpan take(size_t bytes, const char* what);                // of a slab, 512-byte aligned: a model has 16,000 weights
  void upload(void* to, const void* from, size_t bytes);          // in the stream's order; `from` may change when it returns
  void upload_at_once(void* to, const void* from, size_t bytes);  // into memory that nothing on the stream touches
  void download(void* to, const void* from, size_t bytes);        // waits for the stream
  void zero(void* to, size_t bytes);
  void synchronize();
  uint64_t free_bytes();

  // Puts a kernel on the stream. Pointers in the order of its entry.
  template <typename Tiling>
  void launch(Kernel kernel, uint32_t blocks, std::initializer_list<const void*> pointers, const Tiling& tiling) {
    launch(kernel, blocks, pointers, &tiling, sizeof(Tiling));
  }
  uint64_t n_launches() const { return n_launches_; }  // kernels that went to the device, alone or in a recorded step

  // See Backend::run_recorded: runs a key's first time, records its second, replays from then on.
  void run_recorded(uint64_t key, const std::function<void()>& ops);
  void forget_recorded();
  bool recording() const { return recording_; }
  uint64_t n_replays() const { return n_replays_; }

  // Throws `device` for anything but success, and from then on from every call: a failed NPU does not come back.
  void check(int32_t status, const char* what);
  void enter();  // makes this device's context the thread's: before every call of Ascend's libraries

 private:
  void launch(Kernel kernel, uint32_t blocks, std::initializer_list<const void*> pointers, const void* tiling,
              size_t tiling_bytes);
  void* malloc(size_t bytes, const char* what);
  void probe_capture();
  void record(const std::function<void()>& ops, void*& graph);
  void release();

  // Pinned memory that uploads pass through, buffer by buffer: one is filled while those before it are still read.
  struct Staging {
    std::byte* host = nullptr;
    void* drained = nullptr;  // event
  };

  const Runtime& runtime_;
  int index_;
  std::string soc_name_;
  Cores cores_;
  void* context_ = nullptr;
  void* stream_ = nullptr;
  std::vector<Staging> staging_;
  size_t next_staging_ = 0;
  std::byte* landing_ = nullptr;  // pinned: small downloads land here
  std::mutex upload_mutex_;

  std::mutex slab_mutex_;
  std::shared_ptr<void> slab_;
  size_t slab_used_ = 0, slab_bytes_ = 0;

  std::mutex broken_mutex_;
  std::unique_ptr<EngineError> broken_;

  struct Recorded {
    int n_runs = 0;
    void* graph = nullptr;
    uint64_t n_launches = 0;
  };
  std::map<uint64_t, Recorded> recorded_;
  bool recording_ = false;
  std::string refused_;
  uint64_t n_launches_ = 0, n_replays_ = 0;
};

}  // namespace sigmoe::ascend
