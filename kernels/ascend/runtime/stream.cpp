#include <exception>

#include "ascend/runtime/runtime.h"

namespace sigmoe::ascend::runtime {

void Context::break_with(Status status, const std::string& why) {
  const std::lock_guard lock(mutex);
  if (broken != kOk) return;
  broken = status;
  message = why;
}

int32_t Context::status() {
  const std::lock_guard lock(mutex);
  return broken == kOk ? kOk : fail(broken, message);
}

Stream::Stream(Context& context) : context_(context), thread_([this] { loop(); }) {}

Stream::~Stream() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

int32_t Stream::enqueue(Task task) {
  if (const int32_t status = context_.status()) return status;
  {
    const std::lock_guard lock(mutex_);
    if (capturing_) {
      capturing_->push_back(std::move(task));
      return kOk;
    }
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
  return kOk;
}

int32_t Stream::synchronize() {
  {
    std::unique_lock lock(mutex_);
    if (capturing_) return fail(kStreamCaptured, "a stream that is being captured was waited for");
    changed_.wait(lock, [&] { return tasks_.empty() && !busy_; });
  }
  return context_.status();
}

int32_t Stream::begin_capture() {
  if (const int32_t status = context_.status()) return status;
  if (fault_now("capture")) return fail(kCaptureRefused, "capture refused, as a test asked for");
  const std::lock_guard lock(mutex_);
  if (capturing_) return fail(kStreamCaptured, "the stream is being captured already");
  capturing_ = std::make_unique<Graph>();
  return kOk;
}

int32_t Stream::end_capture(Graph*& graph) {
  const std::lock_guard lock(mutex_);
  graph = capturing_.release();
  return graph ? kOk : fail(kStreamNotCaptured, "the stream is not being captured");
}

void Stream::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const Task task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    lock.unlock();
    try {
      if (context_.status() == kOk) task();
    } catch (const std::exception& error) {
      context_.break_with(kKernelFailed, error.what());
    }
    lock.lock();
    busy_ = false;
    if (tasks_.empty()) changed_.notify_all();
  }
}

}  // namespace sigmoe::ascend::runtime
