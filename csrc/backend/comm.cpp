#include "backend/comm.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "backend/error.h"

namespace sigmoe {
namespace {

// What the ranks of one world share: a barrier and the pointer each rank offers to the others.
class ThreadWorld {
 public:
  explicit ThreadWorld(int world) : offered(world), shown(world) {}

  // Returns when every rank has called it; throws on all of them once the world is shut down.
  void wait() {
    std::unique_lock lock(mutex_);
    const uint64_t generation = generation_;
    if (!shut_down_ && ++arrived_ == static_cast<int>(offered.size())) {
      arrived_ = 0;
      ++generation_;
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return shut_down_ || generation_ != generation; });
    if (generation_ == generation)
      throw EngineError(ErrorCode::device, "a collective was waited for: another rank has failed or was shut down",
                        "load the model again");
  }

  void shut_down() {
    std::vector<std::function<void()>> listeners;
    {
      const std::lock_guard lock(mutex_);
      shut_down_ = true;
      listeners.swap(listeners_);
    }
    changed_.notify_all();
    for (const auto& notify : listeners) notify();
  }

  void on_shut_down(std::function<void()> notify) {
    {
      const std::lock_guard lock(mutex_);
      if (!shut_down_) return listeners_.push_back(std::move(notify));
    }
    notify();
  }

  std::vector<const float*> offered;
  std::vector<std::shared_ptr<void>> shown;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> listeners_;
  uint64_t generation_ = 0;
  int arrived_ = 0;
  bool shut_down_ = false;
};

class ThreadComm : public Comm {
 public:
  ThreadComm(std::shared_ptr<ThreadWorld> world, int rank) : world_(std::move(world)), rank_(rank) {}

  int rank() const override { return rank_; }
  int world() const override { return static_cast<int>(world_->offered.size()); }

  void all_reduce_sum(float* data, int64_t n) override {
    sum_.assign(data, data + n);
    world_->offered[rank_] = sum_.data();
    world_->wait();
    std::fill(data, data + n, 0.0f);
    for (const float* part : world_->offered)  // rank order: the same bits on every rank
      for (int64_t i = 0; i < n; ++i) data[i] += part[i];
    world_->wait();  // nobody may touch its offer before all have read it
  }

  void all_gather_columns(const float* part, float* out, int64_t rows, const std::vector<int64_t>& widths) override {
    int64_t total = 0;
    for (const int64_t width : widths) total += width;
    world_->offered[rank_] = part;
    world_->wait();
    int64_t column = 0;
    for (size_t r = 0; r < widths.size(); ++r) {
      for (int64_t row = 0; row < rows; ++row)
        if (widths[r]) std::memcpy(out + row * total + column, world_->offered[r] + row * widths[r], widths[r] * sizeof(float));
      column += widths[r];
    }
    world_->wait();
  }

  std::vector<std::shared_ptr<void>> exchange(std::shared_ptr<void> own) override {
    world_->shown[rank_] = std::move(own);
    world_->wait();
    std::vector<std::shared_ptr<void>> all = world_->shown;
    world_->wait();
    world_->shown[rank_] = nullptr;  // read again only after the next call's first wait
    return all;
  }

  void on_shut_down(std::function<void()> notify) override { world_->on_shut_down(std::move(notify)); }
  void shut_down() override { world_->shut_down(); }

 private:
  std::shared_ptr<ThreadWorld> world_;
  int rank_;
  std::vector<float> sum_;
};

}  // namespace

std::vector<std::unique_ptr<Comm>> make_thread_world(int world) {
  auto shared = std::make_shared<ThreadWorld>(world);
  std::vector<std::unique_ptr<Comm>> ranks;
  for (int rank = 0; rank < world; ++rank) ranks.push_back(std::make_unique<ThreadComm>(shared, rank));
  return ranks;
}

}  // namespace sigmoe
