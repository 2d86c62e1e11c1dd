// Cores as cooperative threads: each has a stack of its own and runs until it waits for another core or ends. One runs at a
// time, in an order that a seed decides, so a run can be repeated, needs no locks, and a wait that nobody can end is known at
// once instead of after a timeout.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace twin {

class Stack {
 public:
  static constexpr std::size_t kBytes = 256 << 10, kGuard = 4096;
  Stack()
      : memory_(mmap(nullptr, kBytes + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, kGuard, PROT_NONE);  // a kernel that recurses ends here, not in its neighbour
  }
  ~Stack() { munmap(memory_, kBytes + kGuard); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  void* base() const { return static_cast<char*>(memory_) + kGuard; }

 private:
  void* memory_;
};

class Fiber {
 public:
  // `body` must not throw.
  void start(Stack& stack, std::function<void()> body) {
    body_ = std::move(body);
    ended_ = false;
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack.base();
    own_.uc_stack.ss_size = Stack::kBytes;
    own_.uc_link = &caller_;
    const auto address = reinterpret_cast<std::uintptr_t>(this);
    makecontext(&own_, reinterpret_cast<void (*)()>(&Fiber::enter), 2, static_cast<unsigned>(address),
                static_cast<unsigned>(static_cast<std::uint64_t>(address) >> 32));
  }
  void resume() { swapcontext(&caller_, &own_); }  // until it yields or ends
  void yield() { swapcontext(&own_, &caller_); }
  bool ended() const { return ended_; }

 private:
  static void enter(unsigned low, unsigned high) {
    auto* fiber = reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>(low | static_cast<std::uint64_t>(high) << 32));
    fiber->body_();
    fiber->ended_ = true;
  }
  ucontext_t own_{}, caller_{};
  std::function<void()> body_;
  bool ended_ = true;
};

}  // namespace twin
