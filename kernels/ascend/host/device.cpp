#include "ascend/host/device.h"

#include <algorithm>
#include <cstring>

namespace sigmoe::ascend {
namespace {

constexpr size_t kStagingBytes = 1 << 20;
constexpr int kStagingBuffers = 4;
constexpr size_t kLandingBytes = 64 << 10;
constexpr size_t kSlabBytes = size_t{256} << 20;
constexpr size_t kSlabAlignment = 512;
constexpr size_t kMaxRecorded = 256;

std::string megabytes(size_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

bool is_out_of_memory(int32_t status) {
  return status == kAclMemoryAllocation || status == kAclBadAlloc || status == kAclStorageOverLimit;
}

// From the runtime where it can be asked, else from the name: 910B1 and B2 have 24 groups, B3 and B4 have 20.
Cores count_cores(const AclFunctions& acl, int index, const std::string& soc_name) {
  int64_t cube = 0, vector = 0;
  if (acl.aclGetDeviceCapability && acl.aclGetDeviceCapability(index, kAclCubeCores, &cube) == kAclSuccess &&
      acl.aclGetDeviceCapability(index, kAclVectorCores, &vector) == kAclSuccess && cube > 0 && vector > 0)
    return {static_cast<int>(cube), static_cast<int>(std::min(vector, 2 * cube))};
  const bool large = soc_name.find("910B1") != std::string::npos || soc_name.find("910B2") != std::string::npos;
  return large ? Cores{24, 48} : Cores{20, 40};
}

}  // namespace

Device::Device(const Runtime& runtime, int index) : runtime_(runtime), index_(index) {
  const int32_t status = acl().aclInit(nullptr);
  if (status != kAclRepeatInitialize) check(status, "aclInit");
  uint32_t n_devices = 0;
  check(acl().aclrtGetDeviceCount(&n_devices), "aclrtGetDeviceCount");
  if (index < 0 || static_cast<uint32_t>(index) >= n_devices)
    throw EngineError(ErrorCode::not_found,
                      "NPU " + std::to_string(index) + " asked for: " + std::to_string(n_devices) + " are visible",
                      "lower tensorParallelSize, or look at npu-smi info and ASCEND_RT_VISIBLE_DEVICES");
  soc_name_ = acl().aclrtGetSocName() ? acl().aclrtGetSocName() : "unknown NPU";
  cores_ = count_cores(acl(), index, soc_name_);
  try {
    check(acl().aclrtCreateContext(&context_, index), "aclrtCreateContext");
    enter();
    check(acl().aclrtCreateStreamWithConfig(&stream_, 0, kAclFastLaunch | kAclFastSync), "aclrtCreateStreamWithConfig");
    staging_.resize(kStagingBuffers);
    for (Staging& staging : staging_) {
      check(acl().aclrtMallocHost(reinterpret_cast<void**>(&staging.host), kStagingBytes), "aclrtMallocHost");
      check(acl().aclrtCreateEvent(&staging.drained), "aclrtCreateEvent");
    }
    check(acl().aclrtMallocHost(reinterpret_cast<void**>(&landing_), kLandingBytes), "aclrtMallocHost");
    probe_capture();
  } catch (...) {
    release();
    throw;
  }
}

Device::~Device() { release(); }

// Nothing here is checked: it also runs when the device has failed.
void Device::release() {
  if (!context_) return;
  acl().aclrtSetCurrentContext(context_);
  if (stream_) acl().aclrtSynchronizeStream(stream_);
  forget_recorded();
  for (const Staging& staging : staging_) {
    if (staging.drained) acl().aclrtDestroyEvent(staging.drained);
    if (staging.host) acl().aclrtFreeHost(staging.host);
  }
  if (landing_) acl().aclrtFreeHost(landing_);
  slab_.reset();
  if (stream_) acl().aclrtDestroyStream(stream_);
  acl().aclrtDestroyContext(context_);
  context_ = nullptr;
}

void Device::enter() {
  {
    const std::lock_guard lock(broken_mutex_);
    if (broken_) throw *broken_;
  }
  check(acl().aclrtSetCurrentContext(context_), "aclrtSetCurrentContext");
}

void Device::check(int32_t status, const char* what) {
  if (status == kAclSuccess) return;
  const char* recent = acl().aclGetRecentErrMsg();
  EngineError error(
      ErrorCode::device,
      "NPU " + std::to_string(index_) + " (" + runtime_.device + "): " + what + " gave error " + std::to_string(status) +
          (recent && *recent ? ": " + std::string(recent) : ""),
      "dispose the model and load it again; if it comes back, look at npu-smi info and the logs under ~/ascend/log");
  const std::lock_guard lock(broken_mutex_);
  if (!broken_) broken_ = std::make_unique<EngineError>(error);
  throw error;
}

// ---- memory ----------------------------------------------------------------------------------------------------------

void* Device::malloc(size_t bytes, const char* what) {
  enter();
  void* data = nullptr;
  const int32_t status = acl().aclrtMalloc(&data, std::max<size_t>(bytes, 1), kAclHugeFirst);
  if (is_out_of_memory(status)) {
    size_t free = 0, total = 0;
    check(acl().aclrtGetMemInfo(kAclHbmMemory, &free, &total), "aclrtGetMemInfo");
    throw EngineError(
        ErrorCode::out_of_memory,
        std::string(what) + ": " + megabytes(bytes) + " of NPU memory asked for, " + megabytes(free) + " of " +
            megabytes(total) + " free",
        "lower kvCacheTokens, maxModelLen or maxBatchedTokens, free the NPU, or use a smaller or quantised model");
  }
  check(status, "aclrtMalloc");
  return data;
}

DeviceBuffer Device::alloc(size_t bytes, const char* what) {
  void* data = malloc(bytes, what);
  DeviceBuffer buffer(data, bytes, [this](void* memory, size_t) {
    acl().aclrtSetCurrentContext(context_);
    acl().aclrtSynchronizeStream(stream_);  // what is on its way may still use it
    acl().aclrtFree(memory);
  });
  if (bytes > 0) check(acl().aclrtMemset(data, bytes, 0, bytes), "aclrtMemset");
  return buffer;
}

DeviceSpan Device::take(size_t bytes, const char* what) {
  const size_t rounded = (bytes + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
  const std::lock_guard lock(slab_mutex_);
  if (slab_used_ + rounded > slab_bytes_) {
    size_t asked = std::max(rounded, kSlabBytes);
    void* slab = nullptr;
    try {
      slab = malloc(asked, what);
    } catch (const EngineError& error) {
      if (error.code() != ErrorCode::out_of_memory || asked == rounded) throw;
      slab = malloc(asked = rounded, what);  // the last weights of a model that only just fits
    }
    slab_bytes_ = asked;
    slab_used_ = 0;
    slab_ = std::shared_ptr<void>(slab, [&acl = acl(), context = context_](void* memory) {
      acl.aclrtSetCurrentContext(context);
      acl.aclrtFree(memory);
    });
  }
  DeviceSpan span{slab_, static_cast<std::byte*>(slab_.get()) + slab_used_, bytes};
  slab_used_ += rounded;
  return span;
}

void Device::upload(void* to, const void* from, size_t bytes) {
  enter();
  const std::lock_guard lock(upload_mutex_);
  for (size_t done = 0; done < bytes; done += kStagingBytes) {
    const size_t n = std::min(kStagingBytes, bytes - done);
    const Staging& staging = staging_[next_staging_++ % staging_.size()];
    check(acl().aclrtSynchronizeEvent(staging.drained), "aclrtSynchronizeEvent");
    std::memcpy(staging.host, static_cast<const std::byte*>(from) + done, n);
    check(acl().aclrtMemcpyAsync(static_cast<std::byte*>(to) + done, n, staging.host, n, kAclHostToDevice, stream_),
          "aclrtMemcpyAsync");
    check(acl().aclrtRecordEvent(staging.drained, stream_), "aclrtRecordEvent");
  }
}

void Device::upload_at_once(void* to, const void* from, size_t bytes) {
  enter();
  if (bytes > 0) check(acl().aclrtMemcpy(to, bytes, from, bytes, kAclHostToDevice), "aclrtMemcpy");
}

void Device::download(void* to, const void* from, size_t bytes) {
  enter();
  if (bytes == 0) return;
  if (bytes <= kLandingBytes) {
    check(acl().aclrtMemcpyAsync(landing_, kLandingBytes, from, bytes, kAclDeviceToHost, stream_), "aclrtMemcpyAsync");
    synchronize();
    std::memcpy(to, landing_, bytes);
    return;
  }
  synchronize();
  check(acl().aclrtMemcpy(to, bytes, from, bytes, kAclDeviceToHost), "aclrtMemcpy");
}

void Device::zero(void* to, size_t bytes) {
  enter();
  if (bytes > 0) check(acl().aclrtMemsetAsync(to, bytes, 0, bytes, stream_), "aclrtMemsetAsync");
}

void Device::synchronize() {
  enter();
  check(acl().aclrtSynchronizeStream(stream_), "aclrtSynchronizeStream");
}

uint64_t Device::free_bytes() {
  enter();
  size_t free = 0, total = 0;
  check(acl().aclrtGetMemInfo(kAclHbmMemory, &free, &total), "aclrtGetMemInfo");
  return free;
}

// ---- kernels ---------------------------------------------------------------------------------------------------------

void Device::launch(Kernel kernel, uint32_t blocks, std::initializer_list<const void*> pointers, const void* tiling,
                    size_t tiling_bytes) {
  const KernelEntry& entry = runtime_.kernels->entries[static_cast<int>(kernel)];
  SIGMOE_CHECK(pointers.size() == static_cast<size_t>(entry.n_pointers) && tiling_bytes == entry.tiling_bytes,
               std::string("arguments of kernel ") + entry.name);
  const int most = entry.kind == KernelKind::aiv ? cores_.aiv : cores_.aic;
  SIGMOE_CHECK(blocks > 0 && static_cast<int>(blocks) <= most, std::string("blocks of kernel ") + entry.name);
  enter();
  std::vector<void*> arguments;
  for (const void* pointer : pointers) arguments.push_back(const_cast<void*>(pointer));
  check(entry.launch(blocks, stream_, arguments.data(), tiling), entry.name);
  ++n_launches_;
}

// Old toolkits lack the functions, and a driver may refuse: better to know when the model loads.
void Device::probe_capture() {
  if (!acl().aclmdlRICaptureBegin || !acl().aclmdlRICaptureEnd || !acl().aclmdlRIExecuteAsync) {
    refused_ = "this CANN has no aclmdlRICapture functions";
    return;
  }
  if (const int32_t status = acl().aclmdlRICaptureBegin(stream_, kAclCaptureThreadLocal)) {
    const char* recent = acl().aclGetRecentErrMsg();
    refused_ =
        "aclmdlRICaptureBegin gave error " + std::to_string(status) + (recent && *recent ? ": " + std::string(recent) : "");
    return;
  }
  void* graph = nullptr;
  check(acl().aclmdlRICaptureEnd(stream_, &graph), "aclmdlRICaptureEnd");
  if (graph && acl().aclmdlRIDestroy) acl().aclmdlRIDestroy(graph);
}

void Device::record(const std::function<void()>& ops, void*& graph) {
  check(acl().aclmdlRICaptureBegin(stream_, kAclCaptureThreadLocal), "aclmdlRICaptureBegin");
  recording_ = true;
  try {
    ops();
  } catch (...) {
    recording_ = false;
    void* unfinished = nullptr;
    acl().aclmdlRICaptureEnd(stream_, &unfinished);
    if (unfinished && acl().aclmdlRIDestroy) acl().aclmdlRIDestroy(unfinished);
    throw;
  }
  recording_ = false;
  check(acl().aclmdlRICaptureEnd(stream_, &graph), "aclmdlRICaptureEnd");
}

// The first run of a key only runs: it sizes scratch memory and makes tables. The second is recorded, the rest replay.
void Device::run_recorded(uint64_t key, const std::function<void()>& ops) {
  if (!captures()) return ops();
  enter();
  if (recorded_.size() >= kMaxRecorded && !recorded_.contains(key)) forget_recorded();
  if (recorded_[key].n_runs++ == 0) return ops();
  if (!recorded_[key].graph) {
    void* graph = nullptr;
    const uint64_t before = n_launches_;
    record(ops, graph);
    recorded_[key].graph = graph;
    recorded_[key].n_launches = n_launches_ - before;
    n_launches_ = before;  // what was only recorded has not been launched
  }
  check(acl().aclmdlRIExecuteAsync(recorded_[key].graph, stream_), "aclmdlRIExecuteAsync");
  n_launches_ += recorded_[key].n_launches;
  ++n_replays_;
}

void Device::forget_recorded() {
  if (recorded_.empty()) return;
  acl().aclrtSynchronizeStream(stream_);
  if (acl().aclmdlRIDestroy)
    for (const auto& [key, recorded] : recorded_)
      if (recorded.graph) acl().aclmdlRIDestroy(recorded.graph);
  recorded_.clear();
}

}  // namespace sigmoe::ascend
