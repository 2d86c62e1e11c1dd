#include "cpu/thread_pool.h"

#include <chrono>
#include <string>
#include <system_error>

#include "backend/error.h"
#include "backend/thread_name.h"
#include "cpu/cpu_features.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sigmoe {
namespace {

// Ops of a step follow each other within microseconds, and waking a sleeper costs some fifty: a worker looks around for
// this long before it sleeps.
constexpr auto kSpin = std::chrono::microseconds(100);

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  if (n_threads <= 0) n_threads = usable_cores();
  try {
    for (int worker = 1; worker < n_threads; ++worker) threads_.emplace_back([this, worker] { worker_loop(worker); });
  } catch (const std::system_error& error) {
    const size_t started = threads_.size() + 1;
    stop();
    throw EngineError(ErrorCode::device,
                      std::to_string(n_threads) + " threads asked for: the system started " + std::to_string(started) + " (" +
                          error.what() + ")",
                      "lower threads");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_ = true;
  ++epoch_;
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void ThreadPool::run(Job& job) {
  job_ = &job;
  ++epoch_;
  epoch_.notify_all();  // no system call unless someone sleeps
  work(job, 0);
  job_ = nullptr;
  while (active_ != 0) pause_briefly();
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::work(Job& job, int worker) {
  try {
    for (int64_t item; (item = job.next.fetch_add(1, std::memory_order_relaxed)) < job.n_items;)
      job.call(job.body, item, worker);
  } catch (...) {
    job.next = job.n_items;
    const std::lock_guard lock(job.error_lock);
    if (!job.error) job.error = std::current_exception();
  }
}

void ThreadPool::worker_loop(int worker) {
  name_this_thread("sigmoe-cpu");
  uint32_t seen = 0;
  while (true) {
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    for (int i = 1; epoch_ == seen; ++i) {
      pause_briefly();
      if (i % 64 == 0 && std::chrono::steady_clock::now() > give_up) break;
    }
    epoch_.wait(seen);  // sleeps unless the epoch has changed
    seen = epoch_;
    if (stopping_) return;
    ++active_;
    if (Job* job = job_) work(*job, worker);
    --active_;
  }
}

}  // namespace sigmoe
