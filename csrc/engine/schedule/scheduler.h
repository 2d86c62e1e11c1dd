// What the next step computes. Plain data: no tensors, no threads, no clock, so that tests can drive it directly.
//
// Continuous batching under a token budget: decode rows of all running sequences first (a running answer never waits for
// somebody's prompt), each with the drafts it wants checked while there is room for them, then prefill chunks, then new
// arrivals while pages and slots last. A new arrival starts behind the pages of its prompt that the pool remembers. Order is by
// priority (lower first), then by arrival. When pages or slots run out, the last in that order gives its own back and is
// computed again later from its tokens; the first always advances, so among equal priorities every request ends.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/schedule/page_pool.h"

namespace sigmoe {

struct Sequence {
  uint64_t id = 0;  // rises with arrival
  int32_t priority = 0;
  std::vector<int32_t> tokens;  // prompt, then generated
  // Guesses of the tokens that follow; the next step that samples checks and clears them. One that is negative lies on the
  // device still: ~draft is its place in the chain there (Drafter::chain()).
  std::vector<int32_t> drafts;
  int64_t n_prompt = 0;
  int64_t n_computed = 0;       // tokens [0, n_computed) are in the KV cache
  int64_t n_found = 0;          // of these, how many the pool remembered when the sequence was first admitted
  std::vector<int32_t> pages;   // cover at least n_computed tokens
  PagePool::Chain chain;        // chain.salt is the sequence's own
  int slot = -1;                // row of the sampler's counts table while running
  bool samples = true;          // false: a teacher-forced request that only wants logits
  bool needs_all_rows = false;  // something is wanted of every prompt row, so none may come from the pool
  bool may_sample = true;       // false while its grammar's mask is late: it may compute all but its last token
  bool was_admitted = false;

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t n_generated() const { return length() - n_prompt; }
  int64_t n_pending() const { return length() - n_computed; }

  virtual ~Sequence() = default;
};

// Tokens [begin, begin + n) of a sequence enter the step, of which the last n_drafts are drafts; `reaches_end` when the
// sequence's own last token is among them.
struct Chunk {
  Sequence* sequence = nullptr;
  int64_t begin = 0, n = 0;
  bool reaches_end = false;
  int64_t n_drafts = 0;
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
  Sequence* find(uint64_t id) const;  // null when unknown

  // The next step's chunks, with pages acquired for all of them. Empty when nothing can be done: no sequence is left, or
  // every one that has its turn waits for its mask. Sequences that were given a slot by this call are listed in admitted().
  std::vector<Chunk> plan();
  const std::vector<Sequence*>& admitted() const { return admitted_; }
  // After the step ran and what it sampled was appended: the chunk's tokens are in the cache, of its drafts those that became
  // tokens. What the others left there lies behind the sequence's end and is overwritten by the tokens that come instead.
  void commit(const Chunk& chunk);
  // Takes pages for n tokens behind a running sequence's last, drafts or ones to come, as far as some are left: they never
  // preempt anybody. Returns how many have room.
  int64_t make_room_behind(Sequence& sequence, int64_t n);
  // Whether plan() could do no more than go on with the sequences that run, all n_sequences of them: nobody who waits could
  // have a place.
  bool only_goes_on_with(int64_t n_sequences) const;

  std::vector<uint64_t> ids() const;
  int64_t n_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t n_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  uint64_t n_preemptions() const { return n_preemptions_; }
  uint64_t n_queried_tokens() const { return n_queried_tokens_; }  // of prompts looked up in the pool
  uint64_t n_found_tokens() const { return n_found_tokens_; }      // and found there

 private:
  using Rank = std::pair<int32_t, uint64_t>;  // priority, arrival
  static Rank rank_of(const Sequence& sequence) { return {sequence.priority, sequence.id}; }

  bool reserve(Sequence& sequence, int64_t n_tokens, std::vector<Chunk>& chunks);
  void make_room_for_priority();
  int64_t budget_for_drafts() const;
  bool admit_next();
  bool find_prefix(Sequence& sequence);
  void preempt_last(std::vector<Chunk>& chunks);
  void give_back(Sequence& sequence);

  SchedulerLimits limits_;
  PagePool& pool_;
  std::vector<std::unique_ptr<Sequence>> running_;  // by rank
  std::map<Rank, std::unique_ptr<Sequence>> waiting_;
  std::vector<Sequence*> admitted_;
  std::vector<int> free_slots_;
  uint64_t n_preemptions_ = 0, n_queried_tokens_ = 0, n_found_tokens_ = 0;
};

}  // namespace sigmoe
