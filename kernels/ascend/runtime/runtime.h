// An ACL of our own, for machines without an NPU: contexts, streams that are threads, memory that is the host's, graphs that
// are lists of what a stream was given. It is the inside of libsigmoe_ascend_twin.so and, built as libascendcl.so, what the
// tests of the host side load in place of the real one.
//
// Like the real one it wants a current context on every thread, refuses to synchronise while it captures, and after a kernel
// has failed answers every call with that failure.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace sigmoe::ascend::runtime {

// Error codes of rt_error_codes.h that this runtime gives.
enum Status : int32_t {
  kOk = 0,
  kInvalidArgument = 107000,
  kNoContext = 107002,
  kStreamCaptured = 107027,
  kStreamNotCaptured = 107029,
  kCaptureRefused = 107030,
  kOutOfMemory = 207001,
  kKernelFailed = 507035,
};

// Sets what aclGetRecentErrMsg says on this thread, and returns the status.
int32_t fail(Status status, const std::string& message);

// A device as one backend sees it.
struct Context {
  int32_t device = 0;
  std::mutex mutex;
  Status broken = kOk;  // once set, it stays
  std::string message;

  void break_with(Status status, const std::string& why);
  int32_t status();  // kOk, or fail() with what broke it
};

// The context of the calling thread; null when it has none.
Context* current_context();

using Task = std::function<void()>;
using Graph = std::vector<Task>;

// Runs its tasks in order on a thread of its own. A task that throws breaks the context; those behind it are dropped.
class Stream {
 public:
  explicit Stream(Context& context);
  ~Stream();

  int32_t enqueue(Task task);  // into the graph while one is captured
  int32_t synchronize();
  int32_t begin_capture();
  int32_t end_capture(Graph*& graph);
  Context& context() { return context_; }

 private:
  void loop();

  Context& context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool busy_ = false, stopping_ = false;
  std::unique_ptr<Graph> capturing_;
  std::thread thread_;
};

// Faults on purpose: the nth call from now of one kind fails, and with `sticky` every one after it. Set by tests alone.
struct Fault {
  std::string kind;  // "malloc", "memcpy", "launch" (refused), "kernel" (fails when it runs), "capture"
  int64_t nth = 0;   // 1: the next
  bool sticky = false;
};
void set_fault(const Fault& fault);
bool fault_now(const char* kind);

// How large the pretended device is.
struct DeviceFacts {
  const char* soc_name;
  int64_t cube_cores, vector_cores;
  uint32_t n_devices;
  size_t memory_bytes;
};
DeviceFacts device_facts();

// Who wants to know what memory is the device's: the twin, which refuses every other address.
struct MemoryListener {
  void (*allocated)(void* memory, size_t bytes);
  void (*freed)(void* memory);
};
void listen(const MemoryListener& listener);  // is told of what is allocated already, too

}  // namespace sigmoe::ascend::runtime

// How a library of kernels for the CPU reaches this runtime from outside.
extern "C" {
int32_t sigmoe_runtime_enqueue(void* stream, void (*run)(void* state), void* state, void (*release)(void* state));
void sigmoe_runtime_listen(void (*allocated)(void* memory, size_t bytes), void (*freed)(void* memory));
void sigmoe_runtime_set_fault(const char* kind, int64_t nth, int32_t sticky);
}
