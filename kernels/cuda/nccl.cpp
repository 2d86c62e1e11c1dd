#include "cuda/nccl.h"

#include <dlfcn.h>

#include <atomic>
#include <cstring>
#include <string>

#include "backend/node_comm.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {
namespace {

// As nccl.h has them, which need not be installed.
struct UniqueId {
  char bytes[128];
};
constexpr int kFloat32 = 7, kSum = 0;

struct Functions {
  int (*ncclGetUniqueId)(UniqueId*) = nullptr;
  int (*ncclCommInitRank)(void**, int, UniqueId, int) = nullptr;
  int (*ncclCommDestroy)(void*) = nullptr;
  int (*ncclCommAbort)(void*) = nullptr;
  int (*ncclAllReduce)(const void*, void*, size_t, int, int, void*, cudaStream_t) = nullptr;
  int (*ncclBroadcast)(const void*, void*, size_t, int, int, void*, cudaStream_t) = nullptr;
  int (*ncclGroupStart)() = nullptr;
  int (*ncclGroupEnd)() = nullptr;
  const char* (*ncclGetErrorString)(int) = nullptr;
  std::string missing;  // why there are none
};

const Functions& functions() {
  static const Functions found = [] {
    Functions f;
    void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* error = dlerror();
      f.missing = error ? error : "libnccl.so.2";
      return f;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (!function && f.missing.empty()) f.missing = std::string("libnccl.so.2 has no ") + name;
    };
#define FIND(name) find(f.name, #name)
    FIND(ncclGetUniqueId);
    FIND(ncclCommInitRank);
    FIND(ncclCommDestroy);
    FIND(ncclCommAbort);
    FIND(ncclAllReduce);
    FIND(ncclBroadcast);
    FIND(ncclGroupStart);
    FIND(ncclGroupEnd);
    FIND(ncclGetErrorString);
#undef FIND
    return f;
  }();
  return found;
}

void check(int status, const char* call) {
  if (status != 0)
    throw EngineError(ErrorCode::device, std::string("NCCL error from ") + call + ": " + functions().ncclGetErrorString(status),
                      "run again with NCCL_DEBUG=INFO to see why; then dispose the model and load it again");
}

// What the first rank made, on all.
UniqueId exchange_id(Comm& comm) {
  UniqueId own = {};
  if (comm.rank() == 0) check(functions().ncclGetUniqueId(&own), "ncclGetUniqueId");
  auto* nodes = dynamic_cast<NodeComm*>(&comm);
  if (!nodes) return *static_cast<const UniqueId*>(comm.exchange(std::make_shared<UniqueId>(own))[0].get());
  const std::string first = nodes->exchange_bytes({own.bytes, sizeof own.bytes})[0];
  if (first.size() != sizeof own.bytes)
    throw EngineError(ErrorCode::device, "the first rank's NCCL id has " + std::to_string(first.size()) + " bytes",
                      "start all nodes with the same version");
  std::memcpy(own.bytes, first.data(), sizeof own.bytes);
  return own;
}

}  // namespace

struct Nccl::State {
  void* handle = nullptr;
  std::atomic<bool> ended = false;
  void end(bool abort) {
    if (!handle || ended.exchange(true)) return;
    if (abort)
      functions().ncclCommAbort(handle);
    else
      functions().ncclCommDestroy(handle);
  }
};

Nccl::Nccl(Comm& comm) : state_(std::make_shared<State>()) {
  if (!functions().missing.empty())
    throw EngineError(ErrorCode::not_found,
                      "tensorParallelSize " + std::to_string(comm.world()) +
                          " asked for on GPUs that cannot reach each other's memory, or of several processes, and NCCL was not "
                          "found (" +
                          functions().missing + ")",
                      "install libnccl2 (package libnccl2 or nvidia-nccl), or use tensorParallelSize 1");
  check(functions().ncclCommInitRank(&state_->handle, comm.world(), exchange_id(comm), comm.rank()), "ncclCommInitRank");
  comm.on_shut_down([state = state_] { state->end(true); });
}

Nccl::~Nccl() { state_->end(false); }

void Nccl::all_reduce(float* data, size_t n, cudaStream_t stream) {
  check(functions().ncclAllReduce(data, data, n, kFloat32, kSum, state_->handle, stream), "ncclAllReduce");
}

void Nccl::all_gather(float* data, const std::vector<size_t>& counts, cudaStream_t stream) {
  check(functions().ncclGroupStart(), "ncclGroupStart");
  for (size_t rank = 0; rank < counts.size(); data += counts[rank++])
    check(functions().ncclBroadcast(data, data, counts[rank], kFloat32, static_cast<int>(rank), state_->handle, stream),
          "ncclBroadcast");
  check(functions().ncclGroupEnd(), "ncclGroupEnd");
}

}  // namespace sigmoe::cuda
