// Collectives of a world of ranks: one device and one thread each. Every rank must make the same calls in the same
// order. Sums are taken in rank order, so a result does not depend on which rank arrives first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace sigmoe {

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;
  // data (n) f32 on this rank's device <- the sum over ranks.
  virtual void all_reduce_sum(float* data, int64_t n) = 0;
  // out (rows, sum of widths) f32 <- part (rows, widths[rank]) f32 of every rank, side by side in rank order.
  virtual void all_gather_columns(const float* part, float* out, int64_t rows, const std::vector<int64_t>& widths) = 0;
  // What every rank calls it with, in rank order: how the ranks of one process show each other memory of theirs. Returns once
  // all have called it.
  virtual std::vector<std::shared_ptr<void>> exchange(std::shared_ptr<void> own) = 0;
  // `notify` is called when the world is shut down, at once if it has been, by whatever thread does it: for waits that are not
  // calls of this class.
  virtual void on_shut_down(std::function<void()> notify) = 0;
  // Ends every call in progress and every later one with an error, on all ranks: a rank that failed never
  // leaves the others waiting.
  virtual void shut_down() = 0;
};

// A world of threads in one process, for host backends. Element r belongs to rank r.
std::vector<std::unique_ptr<Comm>> make_thread_world(int world);

}  // namespace sigmoe
