// The functions of libascendcl.so that the host side calls, over this runtime; declared by host/acl_functions.def.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

#include "ascend/runtime/runtime.h"

extern "C" {
#define ACL_REQUIRED(name, result, parameters) result name parameters;
#include "ascend/host/acl_functions.def"
#undef ACL_OPTIONAL
#undef ACL_REQUIRED
}

namespace sigmoe::ascend::runtime {
namespace {

constexpr size_t kAlignment = 512;

thread_local std::string recent_message;
thread_local Context* current = nullptr;

// Every piece of device memory, and whoever wants to know of it.
struct Memory {
  std::mutex mutex;
  std::map<void*, size_t> pieces;
  size_t used = 0;
  std::vector<MemoryListener> listeners;
};
Memory& memory() {
  static Memory* memory = new Memory;  // outlives every static that frees into it
  return *memory;
}

struct Faults {
  std::mutex mutex;
  std::vector<Fault> faults;
};
Faults& faults() {
  static Faults faults;
  return faults;
}

int64_t number_from(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  const int64_t value = text ? std::strtoll(text, nullptr, 10) : 0;
  return value > 0 ? value : otherwise;
}

int32_t allocate(void** out, size_t bytes) {
  *out = nullptr;
  if (fault_now("malloc")) return fail(kOutOfMemory, "out of memory, as a test asked for");
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  if (bytes == 0 || all.used + rounded > device_facts().memory_bytes) return fail(kOutOfMemory, "no such piece is left");
  void* piece = std::aligned_alloc(kAlignment, rounded);
  if (!piece) return fail(kOutOfMemory, "the host has no such piece left");
  all.used += rounded;
  all.pieces[piece] = rounded;
  for (const MemoryListener& listener : all.listeners) listener.allocated(piece, rounded);
  *out = piece;
  return kOk;
}

int32_t release(void* piece) {
  Memory& all = memory();
  {
    const std::lock_guard lock(all.mutex);
    const auto at = all.pieces.find(piece);
    if (at == all.pieces.end()) return fail(kInvalidArgument, "memory that was not allocated was freed");
    for (const MemoryListener& listener : all.listeners) listener.freed(piece);
    all.used -= at->second;
    all.pieces.erase(at);
  }
  std::free(piece);
  return kOk;
}

// Calls `body` with the current context, when there is one and it is whole.
template <typename F>
int32_t with_context(const F& body) {
  if (!current) return fail(kNoContext, "the thread has no current context");
  if (const int32_t status = current->status()) return status;
  return body();
}

int32_t check_copy(size_t to_bytes, size_t bytes) {
  if (fault_now("memcpy")) return fail(kKernelFailed, "a copy failed, as a test asked for");
  return bytes <= to_bytes ? kOk : fail(kInvalidArgument, "a copy is larger than its target");
}

// An event is the number of times it was recorded and of those that the stream has come past.
struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, passed = 0;
};

}  // namespace

int32_t fail(Status status, const std::string& message) {
  recent_message = message;
  return status;
}

Context* current_context() { return current; }

void set_fault(const Fault& fault) {
  const std::lock_guard lock(faults().mutex);
  std::erase_if(faults().faults, [&](const Fault& known) { return known.kind == fault.kind; });
  if (fault.nth > 0) faults().faults.push_back(fault);
}

bool fault_now(const char* kind) {
  const std::lock_guard lock(faults().mutex);
  auto& known = faults().faults;
  const auto at = std::find_if(known.begin(), known.end(), [&](const Fault& fault) { return fault.kind == kind; });
  if (at == known.end()) return false;
  if (at->nth > 1) {
    --at->nth;
    return false;
  }
  if (!at->sticky) known.erase(at);
  return true;
}

DeviceFacts device_facts() {
  // Two groups of cores keep a small machine busy; a step costs threads for every core more.
  const int64_t groups = number_from("SIGMOE_ASCEND_TWIN_GROUPS", 2);
  const size_t host = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return {"Ascend910B3 (CPU twin)", groups, 2 * groups, static_cast<uint32_t>(number_from("SIGMOE_ASCEND_TWIN_DEVICES", 8)),
          host / 2};
}

void listen(const MemoryListener& listener) {
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  all.listeners.push_back(listener);
  for (const auto& [piece, bytes] : all.pieces) listener.allocated(piece, bytes);
}

}  // namespace sigmoe::ascend::runtime

using namespace sigmoe::ascend::runtime;

extern "C" {

int32_t sigmoe_runtime_enqueue(void* stream, void (*run)(void*), void* state, void (*release_state)(void*)) {
  const std::shared_ptr<void> shared(state, release_state);
  if (fault_now("launch")) return fail(kKernelFailed, "a launch failed, as a test asked for");
  if (fault_now("kernel"))
    return static_cast<Stream*>(stream)->enqueue([] { throw std::runtime_error("a kernel failed, as a test asked for"); });
  return static_cast<Stream*>(stream)->enqueue([run, shared] { run(shared.get()); });
}

void sigmoe_runtime_listen(void (*allocated)(void*, size_t), void (*freed)(void*)) { listen({allocated, freed}); }

void sigmoe_runtime_set_fault(const char* kind, int64_t nth, int32_t sticky) { set_fault({kind, nth, sticky != 0}); }

int32_t aclInit(const char*) {
  static bool done = false;
  return std::exchange(done, true) ? 100002 : kOk;
}

int32_t aclrtGetDeviceCount(uint32_t* count) {
  *count = device_facts().n_devices;
  return kOk;
}

const char* aclrtGetSocName() { return device_facts().soc_name; }

int32_t aclGetDeviceCapability(uint32_t, int32_t info, int64_t* value) {
  *value = info == 0 ? device_facts().cube_cores : device_facts().vector_cores;
  return kOk;
}

const char* aclGetRecentErrMsg() { return recent_message.c_str(); }

int32_t aclrtCreateContext(void** context, int32_t device) {
  if (device < 0 || device >= static_cast<int32_t>(device_facts().n_devices))
    return fail(kInvalidArgument, "there is no device " + std::to_string(device));
  auto* made = new Context;
  made->device = device;
  *context = current = made;
  return kOk;
}

int32_t aclrtDestroyContext(void* context) {
  if (current == context) current = nullptr;
  delete static_cast<Context*>(context);
  return kOk;
}

int32_t aclrtSetCurrentContext(void* context) {
  current = static_cast<Context*>(context);
  return kOk;
}

int32_t aclrtGetMemInfo(int32_t, size_t* free, size_t* total) {
  return with_context([&] {
    const std::lock_guard lock(memory().mutex);
    *total = device_facts().memory_bytes;
    *free = *total - memory().used;
    return static_cast<int32_t>(kOk);
  });
}

int32_t aclrtMalloc(void** device, size_t bytes, int32_t) {
  return with_context([&] { return allocate(device, bytes); });
}

int32_t aclrtFree(void* device) { return release(device); }

int32_t aclrtMallocHost(void** host, size_t bytes) {
  return with_context([&] {
    *host = std::malloc(bytes);
    return *host ? static_cast<int32_t>(kOk) : fail(kOutOfMemory, "the host has no such piece left");
  });
}

int32_t aclrtFreeHost(void* host) {
  std::free(host);
  return kOk;
}

int32_t aclrtMemcpy(void* to, size_t to_bytes, const void* from, size_t bytes, int32_t) {
  return with_context([&] {
    const int32_t status = check_copy(to_bytes, bytes);
    if (status == kOk) std::memcpy(to, from, bytes);
    return status;
  });
}

int32_t aclrtMemcpyAsync(void* to, size_t to_bytes, const void* from, size_t bytes, int32_t, void* stream) {
  return with_context([&] {
    const int32_t status = check_copy(to_bytes, bytes);
    return status ? status : static_cast<Stream*>(stream)->enqueue([=] { std::memcpy(to, from, bytes); });
  });
}

int32_t aclrtMemset(void* to, size_t to_bytes, int32_t value, size_t bytes) {
  return with_context([&] {
    if (bytes > to_bytes) return fail(kInvalidArgument, "more is set than there is");
    std::memset(to, value, bytes);
    return static_cast<int32_t>(kOk);
  });
}

int32_t aclrtMemsetAsync(void* to, size_t to_bytes, int32_t value, size_t bytes, void* stream) {
  return with_context([&] {
    if (bytes > to_bytes) return fail(kInvalidArgument, "more is set than there is");
    return static_cast<Stream*>(stream)->enqueue([=] { std::memset(to, value, bytes); });
  });
}

int32_t aclrtCreateStreamWithConfig(void** stream, uint32_t, uint32_t) {
  return with_context([&] {
    *stream = new Stream(*current);
    return static_cast<int32_t>(kOk);
  });
}

int32_t aclrtDestroyStream(void* stream) {
  delete static_cast<Stream*>(stream);
  return kOk;
}

int32_t aclrtSynchronizeStream(void* stream) {
  return with_context([&] { return static_cast<Stream*>(stream)->synchronize(); });
}

int32_t aclrtCreateEvent(void** event) {
  return with_context([&] {
    *event = new Event;
    return static_cast<int32_t>(kOk);
  });
}

int32_t aclrtDestroyEvent(void* event) {
  delete static_cast<Event*>(event);
  return kOk;
}

int32_t aclrtRecordEvent(void* event, void* stream) {
  return with_context([&] {
    auto* recorded = static_cast<Event*>(event);
    {
      const std::lock_guard lock(recorded->mutex);
      ++recorded->recorded;
    }
    return static_cast<Stream*>(stream)->enqueue([recorded] {
      const std::lock_guard lock(recorded->mutex);
      ++recorded->passed;
      recorded->changed.notify_all();
    });
  });
}

int32_t aclrtSynchronizeEvent(void* event) {
  return with_context([&] {
    auto* recorded = static_cast<Event*>(event);
    std::unique_lock lock(recorded->mutex);
    // A stream that a failed kernel has stopped never comes past: its context says so.
    while (!recorded->changed.wait_for(lock, std::chrono::milliseconds(20),
                                       [&] { return recorded->passed == recorded->recorded; }))
      if (const int32_t status = current->status()) return status;
    return static_cast<int32_t>(kOk);
  });
}

int32_t aclmdlRICaptureBegin(void* stream, int32_t) {
  return with_context([&] { return static_cast<Stream*>(stream)->begin_capture(); });
}

int32_t aclmdlRICaptureEnd(void* stream, void** graph) {
  return with_context([&] {
    Graph* captured = nullptr;
    const int32_t status = static_cast<Stream*>(stream)->end_capture(captured);
    *graph = captured;
    return status;
  });
}

int32_t aclmdlRIExecuteAsync(void* graph, void* stream) {
  return with_context([&] {
    for (const Task& task : *static_cast<Graph*>(graph))
      if (const int32_t status = static_cast<Stream*>(stream)->enqueue(task)) return status;
    return static_cast<int32_t>(kOk);
  });
}

int32_t aclmdlRIDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return kOk;
}

}  // extern "C"
