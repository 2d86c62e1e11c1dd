// The threads of one backend. The calling thread is worker 0 and takes part in every loop; items are handed out one by
// one, so uneven items balance themselves. No result depends on which worker ran an item.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace sigmoe {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // 0: as many as the cores the process may use
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // body(item, worker) for every item in [0, n_items), worker in [0, size()). Returns when all are done; the first
  // exception is thrown again here, and items not begun by then are left out. One caller at a time, not from a body.
  template <typename Body>
  void parallel_for(int64_t n_items, Body&& body) {
    if (n_items == 1 || threads_.empty()) {
      for (int64_t item = 0; item < n_items; ++item) body(item, 0);
      return;
    }
    Job job(n_items, &body, [](void* target, int64_t item, int worker) {
      (*static_cast<std::remove_reference_t<Body>*>(target))(item, worker);
    });
    if (n_items > 0) run(job);
  }

 private:
  struct Job {
    Job(int64_t n_items, void* body, void (*call)(void*, int64_t, int)) : n_items(n_items), body(body), call(call) {}
    const int64_t n_items;
    void* const body;
    void (*const call)(void*, int64_t, int);
    std::atomic<int64_t> next{0};
    std::mutex error_lock;
    std::exception_ptr error;
  };

  void run(Job& job);
  void work(Job& job, int worker);
  void worker_loop(int worker);
  void stop();

  // A worker joins a job by raising active_ and then looking at job_; the caller ends a job by clearing job_ and then
  // waiting for active_ to reach 0. In that order a worker that slept through a job is never waited for.
  alignas(64) std::atomic<Job*> job_{nullptr};
  alignas(64) std::atomic<int> active_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  // one more per job; workers wait for it to change
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace sigmoe
