// One launch of a kernel: its cores, what they share, and the loop that runs them.
#pragma once

#include <cstring>
#include <exception>
#include <random>

#include "ascend/twin/machine.h"

namespace twin {

constexpr int kCrossFlags = 11;      // flag ids 0..10 are a kernel's; the rest belong to SyncAll and libraries
constexpr int kCrossFlagDepth = 15;  // how often a flag may be set ahead of its waits

// A queue that allocates nothing while it is empty: a launch makes thousands and uses few.
class Messages {
 public:
  bool empty() const { return messages_.empty(); }
  std::size_t size() const { return messages_.size(); }
  const Message& front() const { return messages_.front(); }
  void push_back(Message message) { messages_.push_back(std::move(message)); }
  void pop_front() { messages_.erase(messages_.begin()); }

 private:
  std::vector<Message> messages_;
};

// Flags between cores. `pending`: set by a core, not yet by all whose set the receivers need; `arrived`: ready to be waited
// for.
struct CrossFlags {
  std::array<Messages, kCrossFlags> pending, arrived;
};

class GmShadow {  // who touched a byte of global memory last
 public:
  static constexpr std::uintptr_t kPage = 4096;
  struct Page {
    std::array<std::uint32_t, kPage> writer, reader;  // ids of the log; a reader above kSet is a set of them
  };
  static constexpr std::uint32_t kSet = 0x80000000u;
  std::vector<std::vector<std::uint32_t>> sets;
  struct Dirty {
    int core;
    Where where;
  };
  std::unordered_map<std::uintptr_t, Dirty> dirty;  // 64-byte lines with a scalar write still in a core's cache

  Page& page(std::uintptr_t address) {
    const std::uintptr_t number = address / kPage;
    if (number == last_number_) return *last_;
    std::unique_ptr<Page>& found = pages_[number];
    if (!found) {
      if (spare().empty()) {
        found = std::make_unique<Page>();
      } else {
        found = std::move(spare().back());
        spare().pop_back();
      }
      found->writer.fill(0);
      found->reader.fill(0);
    }
    last_number_ = number;
    return *(last_ = found.get());
  }
  ~GmShadow() {
    for (auto& [number, page] : pages_)
      if (spare().size() < 1024) spare().push_back(std::move(page));
  }

 private:
  static std::vector<std::unique_ptr<Page>>& spare() {
    static thread_local std::vector<std::unique_ptr<Page>> pages;
    return pages;
  }
  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  std::uintptr_t last_number_ = ~std::uintptr_t{0};
  Page* last_ = nullptr;
};

class Launch {
 public:
  Launch(Kind kind, std::uint32_t blocks) : kind(kind), blocks(static_cast<int>(blocks)), checked(checking()) {
    constexpr int kMaxVector = 48, kMaxCube = 24;
    if (blocks == 0 || static_cast<int>(blocks) > (kind == Kind::aiv ? kMaxVector : kMaxCube))
      throw Fault("a launch of " + std::to_string(blocks) + " blocks: a 910B has at most " + std::to_string(kMaxCube) +
                  " cube cores and twice as many vector cores");
    const int n = kind == Kind::mix ? 3 * this->blocks : this->blocks;
    log.push_back({{"", 0}, "", 0, 0, PIPE_S, false});
    if (checked) gm = gm_registry().ranges();
    flags_.resize(3 * static_cast<std::size_t>(n));
    for (int i = 0; i < n; ++i) {
      Core& core = cores.emplace_back();
      core.launch = this;
      core.index = i;
      core.memory = memory(i);
      core.foreign.assign(checked ? n : 0, Clock{});
      core.events.resize(checked ? 64 : 0);
      core.group = kind == Kind::mix ? i / 3 : i;
      core.cube = kind == Kind::aic || (kind == Kind::mix && i % 3 == 0);
      core.sub = kind == Kind::mix && !core.cube ? i % 3 - 1 : 0;
      core.block = kind == Kind::mix && !core.cube ? 2 * core.group + core.sub : core.group;
    }
  }

  void run(const std::function<void()>& body) {
    if (self) throw Fault("a kernel launched another");
    std::vector<int> order(cores.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    const std::uint64_t seed = schedule_seed.load(std::memory_order_relaxed);
    std::mt19937_64 random(seed);
    std::size_t alive = cores.size();
    while (alive > 0 && !error_) {
      if (seed) std::shuffle(order.begin(), order.end(), random);
      bool progress = false;
      for (const int i : order) {
        Core& core = cores[i];
        if (core.ended || (core.ready && !core.ready())) continue;
        progress = true;
        resume(core, body);
        alive -= core.ended;
        if (error_) break;
      }
      if (!progress) error_ = std::make_exception_ptr(Fault(deadlock()));
    }
    cancelled_ = true;
    for (Core& core : cores)
      if (core.started && !core.ended) resume(core, body);
    if (error_) std::rethrow_exception(error_);
    if (checked) check_flags();
  }

  bool cancelled() const { return cancelled_; }

  const Kind kind;
  const int blocks;
  const bool checked;
  std::deque<Core> cores;
  std::vector<Access> log;
  std::map<std::uintptr_t, std::uintptr_t> gm;
  GmShadow shadow;
  // What a core has set in one mode; what has arrived at it, in whichever mode, is with mode 0.
  CrossFlags& flags_of(int mode, int core) {
    std::unique_ptr<CrossFlags>& flags = flags_[static_cast<std::size_t>(mode) * cores.size() + core];
    if (!flags) flags = std::make_unique<CrossFlags>();
    return *flags;
  }
  struct Barrier {
    int arrived = 0, generation = 0;
    std::vector<Clock> known;
  };
  std::array<Barrier, 2> barriers;  // SyncAll of the vector cores; of all cores

 private:
  // The memory of core i of this thread's machine, kept from launch to launch.
  static Memory* memory(int i) {
    static thread_local std::deque<Memory> memories;
    while (static_cast<int>(memories.size()) <= i) memories.emplace_back();
    return &memories[i];
  }

  void resume(Core& core, const std::function<void()>& body) {
    core.ready = nullptr;
    self = &core;
    if (!core.started) {
      core.started = true;
      core.fiber.start(core.memory->stack, [this, &core, &body] { program(core, body); });
    }
    core.fiber.resume();
    self = nullptr;
    core.ended = core.fiber.ended();
  }

  void program(Core& core, const std::function<void()>& body) {
    try {
      body();
      if (checked) check_end(core);
    } catch (const Cancelled&) {
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
  }

  // What a kernel must have put in order when it returns.
  void check_end(const Core& core) const {
    for (const Buffer& buffer : core.buffers)
      if (buffer.state != Buffer::free && buffer.state != Buffer::always)
        fail(buffer.taken, std::string("the kernel ended with this tensor ") +
                               (buffer.state == Buffer::queued ? "enqueued and never dequeued" : "never given to FreeTensor"));
    for (std::size_t type = 0; type < core.events.size(); ++type)
      for (const Event& event : core.events[type])
        if (event.set && !event.by_queue)
          fail(event.where, std::string("the kernel ended with this flag ") + name_of(static_cast<pipe_t>(type / 8)) + "_" +
                                name_of(static_cast<pipe_t>(type % 8)) + " set and never waited for");
    for (const auto& [line, dirty] : shadow.dirty)
      if (dirty.core == core.index)
        fail(dirty.where, "the kernel ended with a scalar write to GM still in the cache: DataCacheCleanAndInvalid is missing");
  }

  void check_flags() const {
    for (const std::unique_ptr<CrossFlags>& flags : flags_)
      for (int id = 0; flags && id < kCrossFlags; ++id)
        if (!flags->pending[id].empty() || !flags->arrived[id].empty())
          throw Fault(std::string(cores.front().kernel) + ": cross-core flag " + std::to_string(id) +
                      " was set more often than it was waited for");
  }

  std::string deadlock() const {
    std::string waiting;
    int ended = 0, shown = 0;
    for (const Core& core : cores) {
      ended += core.ended;
      if (!core.ended && ++shown <= 4) waiting += "\n  " + core.label() + " waits for " + core.waits_for;
    }
    return std::string(cores.front().kernel) + ": no core can go on (" + std::to_string(ended) + " of " +
           std::to_string(cores.size()) + " have ended):" + waiting;
  }

  std::vector<std::unique_ptr<CrossFlags>> flags_;  // most kernels use none
  std::exception_ptr error_;
  bool cancelled_ = false;
};

inline void Core::wait_until(std::function<bool()> condition, std::string what) {
  if (condition()) return;
  ready = std::move(condition);
  waits_for = std::move(what);
  fiber.yield();
  if (launch->cancelled()) throw Cancelled{};
}

// Runs body once on every core of the launch; throws the first core's Fault.
template <typename F>
void launch(Kind kind, std::uint32_t blocks, F&& body) {
  Launch(kind, blocks).run(body);
}

}  // namespace twin
