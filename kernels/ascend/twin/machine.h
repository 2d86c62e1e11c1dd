// The machine a kernel runs on: cores with their true memories, the clocks of their pipes, and one launch over them. What the
// API functions of AscendC do is in the other headers; they find their core in twin::self.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "ascend/twin/fiber.h"
#include "ascend/twin/types.h"

namespace AscendC {
class TPipe;
}

namespace twin {

// The kernel statement that called an API function: its last, defaulted argument.
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  std::string text() const {
    const char* name = std::strrchr(file, '/');
    return std::string(name ? name + 1 : file) + ":" + std::to_string(line);
  }
};

#define TWIN_WHERE ::twin::Where where = ::twin::Where::here()

// What a kernel did wrong. The message says where, in which kernel, on which core.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Kind : std::uint8_t { aiv, aic, mix };  // mix: groups of one cube and two vector cores

// Whether kernels are checked (alignment, bounds, uninitialised reads, queues, hazards) or only computed.
inline std::atomic<bool> checks_flag{true};
inline void checks(bool on) { checks_flag.store(on, std::memory_order_relaxed); }
inline bool checking() { return checks_flag.load(std::memory_order_relaxed); }

// The order in which cores run between synchronisations: 0 by number, else shuffled by this seed.
inline std::atomic<std::uint64_t> schedule_seed{0};
inline void schedule(std::uint64_t seed) { schedule_seed.store(seed, std::memory_order_relaxed); }

// ---- global memory ---------------------------------------------------------------------------------------------------

class GmRegistry {
 public:
  void add(const void* data, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    ranges_[address(data)] = address(data) + bytes;
  }
  void remove(const void* data) {
    const std::lock_guard lock(mutex_);
    ranges_.erase(address(data));
  }
  std::map<std::uintptr_t, std::uintptr_t> ranges() const {  // begin to end
    const std::lock_guard lock(mutex_);
    return ranges_;
  }

 private:
  static std::uintptr_t address(const void* data) { return reinterpret_cast<std::uintptr_t>(data); }
  mutable std::mutex mutex_;
  std::map<std::uintptr_t, std::uintptr_t> ranges_;
};

inline GmRegistry& gm_registry() {
  static GmRegistry registry;
  return registry;
}
inline void register_gm(const void* data, std::size_t bytes) { gm_registry().add(data, bytes); }
inline void unregister_gm(const void* data) { gm_registry().remove(data); }

// ---- local memory ----------------------------------------------------------------------------------------------------

enum class Arena : std::uint8_t { ub, l1, l0a, l0b, l0c, bt, fb };
constexpr int kArenas = 7;
// The end of UB and L1 is the system's, and of UB another 8 KB belong to library functions unless a build takes them.
constexpr std::array<std::uint32_t, kArenas> kArenaBytes = {192 * 1024, 512 * 1024, 64 * 1024, 64 * 1024,
                                                            128 * 1024, 1024,       2048};
constexpr std::array<std::uint32_t, kArenas> kUsableBytes = {
    192 * 1024 - 256 - 8192, 512 * 1024 - 256, 64 * 1024, 64 * 1024, 128 * 1024, 1024, 2048};
constexpr std::array<std::uint32_t, kArenas> kArenaAlign = {32, 32, 512, 512, 64, 64, 64};
inline const char* name_of(Arena arena) {
  constexpr const char* kNames[] = {"UB", "L1", "L0A", "L0B", "L0C", "BT", "FB"};
  return kNames[static_cast<int>(arena)];
}

inline Arena arena_of(AscendC::TPosition position) {
  using P = AscendC::TPosition;
  switch (position) {
    case P::A1:
    case P::B1:
    case P::C1: return Arena::l1;
    case P::A2: return Arena::l0a;
    case P::B2: return Arena::l0b;
    case P::CO1: return Arena::l0c;
    case P::C2: return Arena::bt;
    case P::C2PIPE2GM: return Arena::fb;
    default: return Arena::ub;
  }
}

constexpr std::uint32_t kBlock = 32;    // what local memory is addressed and tracked in
constexpr std::uint8_t kPoison = 0xff;  // fresh local memory: NaN in every float type

// Who touched a block of 32 bytes last: ids of the launch's log, 0 for nobody.
struct BlockState {
  std::uint32_t writer = 0;
  std::array<std::uint32_t, kPipes> readers{};
};

struct Region {
  std::unique_ptr<std::byte, void (*)(void*)> data{nullptr, std::free};
  std::vector<std::uint8_t> valid;  // per byte: written since it was handed out
  std::vector<BlockState> blocks;
};

struct Memory {
  std::array<Region, kArenas> regions;
  Stack stack;

  Region& region(Arena arena) {
    Region& region = regions[static_cast<int>(arena)];
    const std::uint32_t bytes = kArenaBytes[static_cast<int>(arena)];
    if (!region.data) region.data.reset(static_cast<std::byte*>(std::aligned_alloc(1024, bytes)));
    if (checking() && region.valid.empty()) {
      region.valid.assign(bytes, 0);
      region.blocks.assign(bytes / kBlock, {});
    }
    return region;
  }
};

// A piece of local memory that TPipe handed out: one buffer of a queue, or a TBuf.
struct Buffer {
  enum State : std::uint8_t { free, allocated, queued, dequeued, always };
  Arena arena;
  std::uint32_t offset, bytes;
  State state;
  std::uint32_t use = 0;                            // counts AllocTensor: a tensor of an earlier one is stale
  std::int8_t queued_event = -1, freed_event = -1;  // hardware event ids held
  Where taken{"", 0};
};

// ---- clocks ----------------------------------------------------------------------------------------------------------

using Clock = std::array<std::uint32_t, kPipes>;  // of each pipe of one core: instructions up to here are complete

inline void join(Clock& clock, const Clock& other) {
  for (int i = 0; i < kPipes; ++i) clock[i] = std::max(clock[i], other[i]);
}

// One hardware event: set by a pipe, waited for by another.
struct Event {
  bool set = false, taken = false, by_queue = false;  // taken: AllocEventID gave it away
  Clock clock{};
  Where where{"", 0};
};

// What a core publishes when it sets a flag for others: its own clock and what it knows of others'.
struct Message {
  std::vector<Clock> known;
};

struct Access {  // an instruction that touched memory
  Where where;
  const char* name;
  std::uint32_t seq;
  std::uint16_t core;
  pipe_t pipe;
  bool atomic;
};

class Launch;

struct Core {
  Launch* launch = nullptr;
  Memory* memory = nullptr;
  Fiber fiber;
  int index = 0, block = 0, group = 0, sub = 0;
  bool cube = false;
  const char* kernel = "kernel";

  // Programs and pipes
  Clock issued{};                            // instructions given to each pipe
  std::array<Clock, kPipes> known{};         // known[p]: what is complete when the next instruction of pipe p starts
  std::vector<Clock> foreign;                // per core: likewise, for every pipe of this core
  std::vector<std::array<Event, 8>> events;  // by HardEvent
  std::deque<Buffer> buffers;
  std::array<std::uint32_t, kArenas> used{};
  AscendC::TPipe* pipe = nullptr;

  // Modes of the vector and copy units
  float deq_scale = 1.0f;
  int atomic_type = 0;  // 0: copies to GM overwrite
  std::uint64_t compare_mask[2] = {0, 0};

  // Scalar cache of GM: 64-byte lines held, with the log's end when they were read
  std::unordered_map<std::uintptr_t, std::uint32_t> lines;

  // Waiting for other cores
  std::function<bool()> ready;
  std::string waits_for;
  bool started = false, ended = false;

  void wait_until(std::function<bool()> condition, std::string what);
  std::string label() const { return (cube ? "AIC " : "AIV ") + std::to_string(block); }
  bool knows(const Access& access, pipe_t pipe) const {
    if (access.core == index) return known[pipe][access.pipe] >= access.seq || (access.pipe == PIPE_S && pipe == PIPE_S);
    return foreign[access.core][access.pipe] >= access.seq;
  }
};

inline thread_local Core* self = nullptr;  // the core whose program runs on this thread

[[noreturn]] inline void fail(Where where, const std::string& what) {
  if (!self) throw Fault(where.text() + ": outside any kernel: " + what);
  throw Fault(where.text() + ": " + self->kernel + ", " + self->label() + ": " + what);
}

struct Cancelled {};  // unwinds the other cores after a fault

}  // namespace twin
