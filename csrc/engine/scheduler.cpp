#include "engine/scheduler.h"

#include <algorithm>

namespace sigmoe {

Scheduler::Scheduler(const SchedulerLimits& limits, PagePool& pool) : limits_(limits), pool_(pool) {
  for (int slot = limits.max_num_seqs; slot-- > 0;) free_slots_.push_back(slot);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }

std::unique_ptr<Sequence> Scheduler::remove(uint64_t id) {
  const auto same = [id](const std::unique_ptr<Sequence>& sequence) { return sequence->id == id; };
  std::unique_ptr<Sequence> found;
  if (const auto at = std::find_if(running_.begin(), running_.end(), same); at != running_.end()) {
    found = std::move(*at);
    running_.erase(at);
    give_back(*found);
  } else if (const auto queued = std::find_if(waiting_.begin(), waiting_.end(), same); queued != waiting_.end()) {
    found = std::move(*queued);
    waiting_.erase(queued);
  }
  return found;
}

void Scheduler::give_back(Sequence& sequence) {
  pool_.release(sequence.pages);
  if (sequence.slot >= 0) free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
  sequence.n_computed = 0;
}

void Scheduler::preempt_last(std::vector<Chunk>& chunks) {
  std::unique_ptr<Sequence> victim = std::move(running_.back());
  running_.pop_back();
  give_back(*victim);
  std::erase_if(chunks, [&](const Chunk& chunk) { return chunk.sequence == victim.get(); });
  std::erase(admitted_, victim.get());
  waiting_.push_front(std::move(victim));
  ++n_preemptions_;
}

// Pages for tokens [0, n_tokens); preempts later sequences for it. False when the sequence itself had to go.
bool Scheduler::reserve(Sequence& sequence, int64_t n_tokens, std::vector<Chunk>& chunks) {
  for (;;) {
    const int64_t missing = pages_for(n_tokens) - static_cast<int64_t>(sequence.pages.size());
    if (missing <= 0 || pool_.acquire(sequence.pages, missing)) return true;
    const bool itself = running_.back().get() == &sequence;
    preempt_last(chunks);
    if (itself) return false;
  }
}

std::vector<Chunk> Scheduler::plan() {
  std::vector<Chunk> chunks;
  admitted_.clear();
  int64_t budget = limits_.max_batched_tokens;

  const auto schedule = [&](Sequence& sequence) {
    const int64_t n = std::min(sequence.n_pending(), budget);
    if (n == 0 || !reserve(sequence, sequence.n_computed + n, chunks)) return;
    chunks.push_back({&sequence, sequence.n_computed, n, n == sequence.n_pending()});
    budget -= n;
  };

  // running_ may lose its tail inside schedule(), never an element before the current one.
  for (const bool decoding : {true, false})
    for (size_t i = 0; i < running_.size() && budget > 0; ++i)
      if ((running_[i]->n_pending() == 1) == decoding) schedule(*running_[i]);

  while (budget > 0 && !waiting_.empty() && !free_slots_.empty()) {
    Sequence& next = *waiting_.front();
    // Room for everything it has so far, so that admission alone never preempts anybody.
    if (!running_.empty() && pages_for(next.length()) > pool_.free()) break;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    next.slot = free_slots_.back();
    free_slots_.pop_back();
    admitted_.push_back(&next);
    schedule(next);
  }
  return chunks;
}

std::vector<uint64_t> Scheduler::ids() const {
  std::vector<uint64_t> ids;
  for (const auto& sequence : running_) ids.push_back(sequence->id);
  for (const auto& sequence : waiting_) ids.push_back(sequence->id);
  return ids;
}

}  // namespace sigmoe
