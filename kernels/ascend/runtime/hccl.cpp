// Collectives of ranks that are threads of one process: a collective is a task on every rank's stream, and the last to come
// does the work for all.
#include <chrono>
#include <cstring>
#include <map>
#include <stdexcept>

#include "ascend/runtime/runtime.h"

extern "C" {
#define HCCL_FUNCTION(name, result, parameters) result name parameters;
#include "ascend/host/hccl_functions.def"
#undef HCCL_FUNCTION
}

namespace sigmoe::ascend::runtime {
namespace {

constexpr std::chrono::seconds kPatience{60};  // a rank that failed never comes

struct Group {
  std::mutex mutex;
  std::condition_variable changed;
  uint32_t n_ranks = 0, n_joined = 0, n_arrived = 0;
  uint64_t generation = 0;
  std::vector<float*> sent, received;
};

struct Member {
  std::shared_ptr<Group> group;
  uint32_t rank = 0;
};

struct Groups {
  std::mutex mutex;
  std::map<uint64_t, std::weak_ptr<Group>> by_id;
  uint64_t last_id = 0;
};
Groups& groups() {
  static Groups groups;
  return groups;
}

// Waits for all ranks; the last one runs `work` before they go on.
void meet(Group& group, uint32_t rank, float* sent, float* received, const std::function<void(Group&)>& work) {
  std::unique_lock lock(group.mutex);
  group.sent[rank] = sent;
  group.received[rank] = received;
  const uint64_t generation = group.generation;
  if (++group.n_arrived == group.n_ranks) {
    work(group);
    group.n_arrived = 0;
    ++group.generation;
    group.changed.notify_all();
    return;
  }
  if (!group.changed.wait_for(lock, kPatience, [&] { return group.generation != generation; }))
    throw std::runtime_error("a collective waited for a rank that did not come");
}

int32_t enqueue(void* comm, void* stream, void* send, void* receive, std::function<void(Group&)> work) {
  const Member member = *static_cast<Member*>(comm);
  return static_cast<Stream*>(stream)->enqueue([member, send, receive, work = std::move(work)] {
    meet(*member.group, member.rank, static_cast<float*>(send), static_cast<float*>(receive), work);
  });
}

}  // namespace
}  // namespace sigmoe::ascend::runtime

using namespace sigmoe::ascend::runtime;

extern "C" {

int32_t HcclGetRootInfo(void* root_info) {
  const std::lock_guard lock(groups().mutex);
  const uint64_t id = ++groups().last_id;
  std::memcpy(root_info, &id, sizeof id);
  return 0;
}

int32_t HcclCommInitRootInfo(uint32_t n_ranks, const void* root_info, uint32_t rank, void** comm) {
  uint64_t id = 0;
  std::memcpy(&id, root_info, sizeof id);
  std::shared_ptr<Group> group;
  {
    const std::lock_guard lock(groups().mutex);
    group = groups().by_id[id].lock();
    if (!group) {
      group = std::make_shared<Group>();
      group->n_ranks = n_ranks;
      group->sent.resize(n_ranks);
      group->received.resize(n_ranks);
      groups().by_id[id] = group;
    }
  }
  std::unique_lock lock(group->mutex);
  ++group->n_joined;
  group->changed.notify_all();
  if (!group->changed.wait_for(lock, kPatience, [&] { return group->n_joined == n_ranks; }))
    return fail(kInvalidArgument, "not every rank joined the group");
  *comm = new Member{group, rank};
  return 0;
}

int32_t HcclCommDestroy(void* comm) {
  delete static_cast<Member*>(comm);
  return 0;
}

int32_t HcclAllReduce(void* send, void* receive, uint64_t count, int32_t, int32_t, void* comm, void* stream) {
  return enqueue(comm, stream, send, receive, [count](Group& group) {
    std::vector<float> sum(count);
    for (const float* part : group.sent)  // in rank order: the same bits every time
      for (uint64_t i = 0; i < count; ++i) sum[i] += part[i];
    for (float* target : group.received) std::memcpy(target, sum.data(), count * sizeof(float));
  });
}

int32_t HcclAllGather(void* send, void* receive, uint64_t count, int32_t, void* comm, void* stream) {
  return enqueue(comm, stream, send, receive, [count](Group& group) {
    for (float* target : group.received)
      for (size_t rank = 0; rank < group.sent.size(); ++rank)
        std::memcpy(target + rank * count, group.sent[rank], count * sizeof(float));
  });
}

}  // extern "C"
