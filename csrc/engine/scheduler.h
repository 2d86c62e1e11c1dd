// What the next step computes. Plain data: no tensors, no threads, no clock, so that tests can drive it directly.
//
// Continuous batching under a token budget: decode rows of all running sequences first (a running answer never waits for
// somebody's prompt), then prefill chunks in order of arrival, then new arrivals while pages and slots last. When pages run
// out, the sequence admitted last gives its pages back and is computed again later from its tokens; the one admitted first
// always advances, so every request ends.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/kv_cache.h"

namespace sigmoe {

struct Sequence {
  uint64_t id = 0;
  std::vector<int32_t> tokens;  // prompt, then generated
  int64_t n_prompt = 0;
  int64_t n_computed = 0;      // tokens [0, n_computed) are in the KV cache
  std::vector<int32_t> pages;  // cover at least n_computed tokens
  int slot = -1;               // row of the sampler's counts table while running
  bool samples = true;         // false: a teacher-forced request that only wants logits

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t n_generated() const { return length() - n_prompt; }
  int64_t n_pending() const { return length() - n_computed; }

  virtual ~Sequence() = default;
};

// Tokens [begin, begin + n) of a sequence enter the step; `reaches_end` when the last of them is the sequence's last.
struct Chunk {
  Sequence* sequence = nullptr;
  int64_t begin = 0, n = 0;
  bool reaches_end = false;
};

struct SchedulerLimits {
  int64_t max_batched_tokens = 512;
  int max_num_seqs = 32;
};

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, PagePool& pool);

  void add(std::unique_ptr<Sequence> sequence);
  // Takes a sequence out and gives its pages and slot back; null when the id is unknown.
  std::unique_ptr<Sequence> remove(uint64_t id);

  // The next step's chunks, with pages acquired for all of them. Empty when nothing is left to do. Sequences that were
  // given a slot by this call are listed in admitted().
  std::vector<Chunk> plan();
  const std::vector<Sequence*>& admitted() const { return admitted_; }
  // After the step ran: the chunk's tokens are in the cache.
  static void commit(const Chunk& chunk) { chunk.sequence->n_computed = chunk.begin + chunk.n; }

  std::vector<uint64_t> ids() const;
  int64_t n_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t n_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  uint64_t n_preemptions() const { return n_preemptions_; }

 private:
  bool reserve(Sequence& sequence, int64_t n_tokens, std::vector<Chunk>& chunks);
  void preempt_last(std::vector<Chunk>& chunks);
  void give_back(Sequence& sequence);

  SchedulerLimits limits_;
  PagePool& pool_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<Sequence*> admitted_;
  std::vector<int> free_slots_;
  uint64_t n_preemptions_ = 0;
};

}  // namespace sigmoe
