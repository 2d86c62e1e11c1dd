// Who a core is, and how pipes and cores wait for each other.
#pragma once

#include "ascend/twin/pipe.h"

// The kind of kernel a source says it is; a launch of another kind is a fault.
#define KERNEL_TYPE_AIV_ONLY ::twin::Kind::aiv
#define KERNEL_TYPE_AIC_ONLY ::twin::Kind::aic
#define KERNEL_TYPE_MIX_AIC_1_2 ::twin::Kind::mix
#define KERNEL_TASK_TYPE_DEFAULT(kind) ::twin::enter_kernel(kind, __func__, ::twin::Where::here())
#define ASCEND_IS_AIC (::twin::self->cube)
#define ASCEND_IS_AIV (!::twin::self->cube)

namespace twin {

inline void enter_kernel(Kind kind, const char* name, Where where) {
  self->kernel = name;
  if (kind != self->launch->kind) fail(where, "launched as another kind of kernel than it is");
}

// Everything core `core` has issued, and all it knows.
inline Message message_of(const Core& core, pipe_t pipe) {
  Message message;
  if (!checking()) return message;
  message.known = core.foreign;
  message.known[core.index] = clock_after(core, pipe);
  return message;
}

inline void join(std::vector<Clock>& known, const std::vector<Clock>& other) {
  for (std::size_t i = 0; i < other.size(); ++i) join(known[i], other[i]);
}

inline void barrier_all(Core& core) {
  for (Clock& known : core.known) known = core.issued;
}

// A flag that came from another core: the scalar unit waits, so whatever is issued later starts after it.
inline void receive(Core& core, const Message& message) {
  if (!checking()) return;
  join(core.foreign, message.known);
  learn(core, PIPE_S, message.known[core.index]);
}

}  // namespace twin

namespace AscendC {

inline std::int64_t GetBlockIdx() { return twin::self->block; }
inline std::int64_t GetBlockNum() { return twin::self->launch->blocks; }
inline std::int64_t GetSubBlockIdx() { return twin::self->sub; }
inline std::int64_t GetSubBlockNum() { return twin::self->launch->kind == twin::Kind::mix && !twin::self->cube ? 2 : 1; }
inline std::int64_t GetTaskRation() { return GetSubBlockNum(); }

// Later instructions of the pipe start after all earlier ones of it.
template <pipe_t pipe>
void PipeBarrier() {
  if (!twin::checking()) return;
  twin::Core& core = *twin::self;
  if constexpr (pipe == PIPE_ALL)
    twin::barrier_all(core);
  else
    core.known[pipe][pipe] = core.issued[pipe];
}

template <HardEvent type>
void SetFlag(std::int32_t id, TWIN_WHERE) {
  if (!twin::checking()) return;
  if (id < 0 || id > 7) twin::fail(where, "SetFlag: event id " + std::to_string(id) + " of 0 to 7");
  twin::Event& event = twin::self->events[static_cast<int>(type)][id];
  if (event.set)
    twin::fail(where, event.by_queue ? "SetFlag: a queue holds this event id" : "SetFlag: set already and not waited for");
  event.set = true;
  event.where = where;
  event.clock = twin::clock_after(*twin::self, static_cast<pipe_t>(static_cast<int>(type) / 8));
}

template <HardEvent type>
void WaitFlag(std::int32_t id, TWIN_WHERE) {
  if (!twin::checking()) return;
  if (id < 0 || id > 7) twin::fail(where, "WaitFlag: event id " + std::to_string(id) + " of 0 to 7");
  twin::Event& event = twin::self->events[static_cast<int>(type)][id];
  if (!event.set || event.by_queue) twin::fail(where, "WaitFlag: nothing set this flag: the core would hang");
  event.set = false;
  twin::learn(*twin::self, static_cast<pipe_t>(static_cast<int>(type) % 8), event.clock);
}

// All vector cores of the launch, or all cores: everything before it on any of them is complete after it on all.
template <bool vector_only = true>
void SyncAll(TWIN_WHERE) {
  twin::Core& core = *twin::self;
  twin::Launch& launch = *core.launch;
  if (vector_only && core.cube && launch.kind != twin::Kind::aic) twin::fail(where, "SyncAll: a cube core in SyncAll<true>");
  const int expected = launch.kind == twin::Kind::mix ? (vector_only ? 2 : 3) * launch.blocks : launch.blocks;
  auto& barrier = launch.barriers[vector_only ? 0 : 1];
  if (launch.checked) {
    twin::barrier_all(core);
    if (barrier.arrived == 0) barrier.known.assign(launch.cores.size(), twin::Clock{});
    twin::join(barrier.known, core.foreign);
    barrier.known[core.index] = core.issued;
  }
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    const int generation = barrier.generation;
    core.wait_until([&barrier, generation] { return barrier.generation != generation; },
                    "SyncAll at " + where.text() + ", which needs all " + std::to_string(expected) + " of its cores");
  }
  if (launch.checked) twin::join(core.foreign, barrier.known);
}

// Flags between cores. Mode 0: all cores of the setter's kind; 1: the two vector cores of a group; 2: a group's cube core to
// both its vector cores, or both of them to it. Receivers may go on when all that should set it have.
template <std::uint8_t mode, pipe_t pipe>
void CrossCoreSetFlag(std::uint16_t id, TWIN_WHERE) {
  static_assert(mode <= 2, "mode 4 is another chip's");
  twin::Core& core = *twin::self;
  twin::Launch& launch = *core.launch;
  if (id >= twin::kCrossFlags) twin::fail(where, "CrossCoreSetFlag: flag " + std::to_string(id) + " of 0 to 10");
  if (launch.kind != twin::Kind::mix && mode != 0) twin::fail(where, "CrossCoreSetFlag: modes 1 and 2 need a mixed kernel");
  if (mode == 1 && core.cube) twin::fail(where, "CrossCoreSetFlag: mode 1 is between vector cores");
  auto& sent = launch.flags_of(mode, core.index).pending[id];
  sent.push_back(twin::message_of(core, pipe));
  if (sent.size() > static_cast<std::size_t>(twin::kCrossFlagDepth))
    twin::fail(where, "CrossCoreSetFlag: flag " + std::to_string(id) + " set more than 15 times ahead of its waits");
  std::vector<twin::Core*> senders, receivers;
  for (twin::Core& other : launch.cores) {
    const bool group = mode == 0 || other.group == core.group;
    if (group && other.cube == core.cube) senders.push_back(&other);
    if (group && (other.cube == core.cube) == (mode != 2)) receivers.push_back(&other);
  }
  for (const twin::Core* sender : senders)
    if (launch.flags_of(mode, sender->index).pending[id].empty()) return;
  twin::Message message;
  message.known.assign(launch.checked ? launch.cores.size() : 0, twin::Clock{});
  for (const twin::Core* sender : senders) {
    auto& queue = launch.flags_of(mode, sender->index).pending[id];
    twin::join(message.known, queue.front().known);
    queue.pop_front();
  }
  for (const twin::Core* receiver : receivers) {
    auto& arrived = launch.flags_of(0, receiver->index).arrived[id];
    arrived.push_back(message);
    if (arrived.size() > static_cast<std::size_t>(twin::kCrossFlagDepth))
      twin::fail(where, "CrossCoreSetFlag: flag " + std::to_string(id) + " set more than 15 times ahead of its waits");
  }
}

inline void CrossCoreWaitFlag(std::uint16_t id, TWIN_WHERE) {
  twin::Core& core = *twin::self;
  if (id >= twin::kCrossFlags) twin::fail(where, "CrossCoreWaitFlag: flag " + std::to_string(id) + " of 0 to 10");
  auto& arrived = core.launch->flags_of(0, core.index).arrived[id];
  core.wait_until([&arrived] { return !arrived.empty(); }, "flag " + std::to_string(id) + " at " + where.text());
  if (core.launch->checked) twin::receive(core, arrived.front());
  arrived.pop_front();
}

}  // namespace AscendC
