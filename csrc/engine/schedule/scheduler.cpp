#include "engine/schedule/scheduler.h"

#include <algorithm>

namespace sigmoe {

Scheduler::Scheduler(const SchedulerLimits& limits, PagePool& pool) : limits_(limits), pool_(pool) {
  for (int slot = limits.max_num_seqs; slot-- > 0;) free_slots_.push_back(slot);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  const Rank rank = rank_of(*sequence);
  waiting_.emplace(rank, std::move(sequence));
}

std::unique_ptr<Sequence> Scheduler::remove(uint64_t id) {
  std::unique_ptr<Sequence> found;
  const auto same = [id](const auto& sequence) { return sequence->id == id; };
  if (const auto at = std::find_if(running_.begin(), running_.end(), same); at != running_.end()) {
    found = std::move(*at);
    running_.erase(at);
    give_back(*found);
    return found;
  }
  const auto queued = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& entry) { return same(entry.second); });
  if (queued == waiting_.end()) return found;
  found = std::move(queued->second);
  waiting_.erase(queued);
  return found;
}

Sequence* Scheduler::find(uint64_t id) const {
  for (const auto& sequence : running_)
    if (sequence->id == id) return sequence.get();
  for (const auto& [rank, sequence] : waiting_)
    if (rank.second == id) return sequence.get();
  return nullptr;
}

void Scheduler::give_back(Sequence& sequence) {
  pool_.release(sequence.pages);
  if (sequence.slot >= 0) free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
  sequence.n_computed = 0;
  sequence.drafts.clear();
  sequence.chain.last = 0;
  sequence.chain.n_pages = 0;
}

void Scheduler::preempt_last(std::vector<Chunk>& chunks) {
  std::unique_ptr<Sequence> victim = std::move(running_.back());
  running_.pop_back();
  give_back(*victim);
  std::erase_if(chunks, [&](const Chunk& chunk) { return chunk.sequence == victim.get(); });
  std::erase(admitted_, victim.get());
  add(std::move(victim));
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
  make_room_for_priority();
  int64_t budget = limits_.max_batched_tokens;
  int64_t draft_budget = budget_for_drafts();

  const auto schedule = [&](Sequence& sequence) {
    const int64_t wanted = sequence.n_pending() - (sequence.samples && !sequence.may_sample ? 1 : 0);
    const int64_t n = std::min(wanted, budget), end = sequence.n_computed + n;
    if (n <= 0 || !reserve(sequence, end, chunks)) return;
    Chunk chunk{&sequence, sequence.n_computed, n, n == sequence.n_pending()};
    if (chunk.reaches_end) {
      const int64_t room = static_cast<int64_t>(sequence.pages.size()) * kPageTokens - end;
      chunk.n_drafts = std::min({static_cast<int64_t>(sequence.drafts.size()), draft_budget, room});
      chunk.n += chunk.n_drafts;
      draft_budget -= chunk.n_drafts;
    }
    chunks.push_back(chunk);
    budget -= chunk.n;
  };

  // running_ may lose its tail inside schedule(), never an element before the current one.
  for (const bool decoding : {true, false})
    for (size_t i = 0; i < running_.size() && budget > 0; ++i)
      if ((running_[i]->n_pending() == 1) == decoding) schedule(*running_[i]);

  while (budget > 0 && admit_next()) schedule(*admitted_.back());
  return chunks;
}

// What is left once every running answer has its row; half of that while prompts wait to be computed.
int64_t Scheduler::budget_for_drafts() const {
  const auto n_decoding =
      std::count_if(running_.begin(), running_.end(), [](const auto& sequence) { return sequence->n_pending() == 1; });
  const int64_t left = std::max<int64_t>(0, limits_.max_batched_tokens - n_decoding);
  const bool prompts_wait = n_decoding < n_running() || !waiting_.empty();
  return prompts_wait ? left / 2 : left;
}

int64_t Scheduler::make_room_behind(Sequence& sequence, int64_t n) {
  const int64_t missing = pages_for(sequence.length() + n) - static_cast<int64_t>(sequence.pages.size());
  if (missing <= 0 || pool_.acquire(sequence.pages, missing)) return n;
  return std::max<int64_t>(0, static_cast<int64_t>(sequence.pages.size()) * kPageTokens - sequence.length());
}

bool Scheduler::only_goes_on_with(int64_t n_sequences) const {
  if (n_running() != n_sequences || n_sequences > limits_.max_batched_tokens) return false;
  return waiting_.empty() || (free_slots_.empty() && running_.back()->priority <= waiting_.begin()->second->priority);
}

// A waiting sequence that outranks running ones takes the place of the last of them, if it lacks a slot or pages.
void Scheduler::make_room_for_priority() {
  if (waiting_.empty()) return;
  std::vector<Chunk> none;
  const Sequence& next = *waiting_.begin()->second;
  while (!running_.empty() && running_.back()->priority > next.priority &&
         (free_slots_.empty() || pages_for(next.length()) > pool_.available()))
    preempt_last(none);
}

// The first waiting sequence gets a slot and what the pool remembers of it. False when there is none or no room.
bool Scheduler::admit_next() {
  if (waiting_.empty() || free_slots_.empty()) return false;
  Sequence& next = *waiting_.begin()->second;
  if (!find_prefix(next)) return false;
  std::unique_ptr<Sequence> owned = std::move(waiting_.begin()->second);
  waiting_.erase(waiting_.begin());
  next.slot = free_slots_.back();
  free_slots_.pop_back();
  const auto place =
      std::find_if(running_.begin(), running_.end(), [&](const auto& other) { return rank_of(next) < rank_of(*other); });
  running_.insert(place, std::move(owned));
  admitted_.push_back(&next);
  return true;
}

// At least the last token is computed: its logits are wanted. False when what is left to compute has no room, unless nothing
// runs: admission alone never preempts anybody.
bool Scheduler::find_prefix(Sequence& sequence) {
  if (!sequence.needs_all_rows)
    pool_.find(sequence.tokens, (sequence.length() - 1) / kPageTokens, sequence.pages, sequence.chain);
  const int64_t n_found = static_cast<int64_t>(sequence.pages.size());
  if (!running_.empty() && pages_for(sequence.length()) - n_found > pool_.available()) {
    give_back(sequence);
    return false;
  }
  sequence.n_computed = n_found * kPageTokens;
  if (sequence.was_admitted) return true;
  sequence.was_admitted = true;
  sequence.n_found = sequence.n_computed;
  n_queried_tokens_ += static_cast<uint64_t>(sequence.length());
  n_found_tokens_ += static_cast<uint64_t>(sequence.n_found);
  return true;
}

void Scheduler::commit(const Chunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  // The last token sampled has not been through the model yet; all before it have.
  sequence.n_computed = chunk.n_drafts > 0 ? sequence.length() - 1 : chunk.begin + chunk.n;
  if (chunk.reaches_end) sequence.drafts.clear();
  pool_.remember(sequence.tokens, sequence.n_computed, sequence.pages, sequence.chain);
}

std::vector<uint64_t> Scheduler::ids() const {
  std::vector<uint64_t> ids;
  for (const auto& sequence : running_) ids.push_back(sequence->id);
  for (const auto& [rank, sequence] : waiting_) ids.push_back(sequence->id);
  return ids;
}

}  // namespace sigmoe
