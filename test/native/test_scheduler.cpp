// The scheduler without tensors: random arrivals, lengths, aborts and pool sizes; invariants after every plan.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "doctest/doctest.h"
#include "engine/scheduler.h"

using namespace sigmoe;

namespace {

std::unique_ptr<Sequence> make_sequence(uint64_t id, int64_t n_prompt, bool samples = true) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->tokens.assign(n_prompt, 1);
  sequence->n_prompt = n_prompt;
  sequence->samples = samples;
  return sequence;
}

void check_plan(const std::vector<Chunk>& chunks, const SchedulerLimits& limits) {
  int64_t n_tokens = 0;
  std::set<const Sequence*> sequences;
  std::set<int32_t> pages;
  std::set<int> slots;
  for (const Chunk& chunk : chunks) {
    const Sequence& sequence = *chunk.sequence;
    n_tokens += chunk.n;
    CHECK(chunk.n > 0);
    CHECK(chunk.begin == sequence.n_computed);
    CHECK(chunk.begin + chunk.n <= sequence.length());
    CHECK(chunk.reaches_end == (chunk.begin + chunk.n == sequence.length()));
    CHECK(static_cast<int64_t>(sequence.pages.size()) * kPageTokens >= chunk.begin + chunk.n);
    CHECK(sequences.insert(&sequence).second);
    CHECK(sequence.slot >= 0);
    CHECK(slots.insert(sequence.slot).second);
    for (const int32_t page : sequence.pages) CHECK(pages.insert(page).second);  // no page has two owners
  }
  CHECK(n_tokens <= limits.max_batched_tokens);
  CHECK(static_cast<int>(chunks.size()) <= limits.max_num_seqs);
}

}  // namespace

TEST_CASE("page pool: acquires all or nothing, refuses a second release") {
  PagePool pool(4);
  std::vector<int32_t> a, b;
  CHECK(pool.acquire(a, 3));
  CHECK_FALSE(pool.acquire(b, 2));
  CHECK(b.empty());
  CHECK(pool.held() == 3);
  std::vector<int32_t> copy = a;
  pool.release(a);
  CHECK(pool.free() == 4);
  CHECK_THROWS_AS(pool.release(copy), EngineError);
}

TEST_CASE("scheduler: decode rows go first, prefill fills the rest of the budget in order") {
  PagePool pool(64);
  const SchedulerLimits limits{100, 8};
  Scheduler scheduler(limits, pool);
  scheduler.add(make_sequence(1, 10));
  for (const Chunk& chunk : scheduler.plan()) {
    Scheduler::commit(chunk);
    chunk.sequence->tokens.push_back(2);
  }
  scheduler.add(make_sequence(2, 250));
  scheduler.add(make_sequence(3, 20));
  const std::vector<Chunk> first = scheduler.plan();
  REQUIRE(first.size() == 2);
  CHECK(first[0].sequence->id == 1);
  CHECK(first[0].n == 1);
  CHECK(first[1].sequence->id == 2);
  CHECK(first[1].n == 99);
  CHECK_FALSE(first[1].reaches_end);
}

TEST_CASE("scheduler: when pages run out the newest sequence gives way and everything still ends") {
  PagePool pool(3);  // 384 tokens for two sequences that want 300 each
  const SchedulerLimits limits{512, 4};
  Scheduler scheduler(limits, pool);
  scheduler.add(make_sequence(1, 100));
  scheduler.add(make_sequence(2, 100));
  std::map<uint64_t, int64_t> finished_at;
  for (int step = 0; step < 2000 && finished_at.size() < 2; ++step) {
    const std::vector<Chunk> chunks = scheduler.plan();
    REQUIRE_FALSE(chunks.empty());
    check_plan(chunks, limits);
    for (const Chunk& chunk : chunks) {
      Scheduler::commit(chunk);
      if (!chunk.reaches_end) continue;
      chunk.sequence->tokens.push_back(2);
      if (chunk.sequence->length() == 300) {
        finished_at[chunk.sequence->id] = step;
        scheduler.remove(chunk.sequence->id);
      }
    }
  }
  CHECK(finished_at.size() == 2);
  CHECK(finished_at[1] < finished_at[2]);
  CHECK(scheduler.n_preemptions() > 0);
  CHECK(pool.held() == 0);
}

TEST_CASE("scheduler: random traffic keeps every invariant and starves nobody") {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    const int64_t longest = pick(130, 700);
    PagePool pool(pages_for(longest) + pick(0, 6));
    const SchedulerLimits limits{pick(1, 300), pick(1, 9)};
    Scheduler scheduler(limits, pool);
    std::map<uint64_t, int64_t> wanted;  // live ids and their final length
    std::set<uint64_t> arrived, ended;
    uint64_t next_id = 1;
    int idle = 0;
    for (int step = 0; step < 200000; ++step) {
      if (next_id <= 40 && pick(0, 9) == 0) {
        const int64_t n_prompt = pick(1, static_cast<int>(longest) - 1);
        const bool samples = pick(0, 4) > 0;
        wanted[next_id] = samples ? pick(static_cast<int>(n_prompt) + 1, static_cast<int>(longest)) : n_prompt;
        arrived.insert(next_id);
        scheduler.add(make_sequence(next_id++, n_prompt, samples));
      }
      if (!wanted.empty() && pick(0, 60) == 0) {
        const uint64_t victim = std::next(wanted.begin(), pick(0, static_cast<int>(wanted.size()) - 1))->first;
        CHECK(scheduler.remove(victim) != nullptr);
        CHECK(scheduler.remove(victim) == nullptr);
        wanted.erase(victim);
        ended.insert(victim);
      }
      const std::vector<Chunk> chunks = scheduler.plan();
      check_plan(chunks, limits);
      CHECK(chunks.empty() == wanted.empty());  // work exists: the step is never empty
      std::vector<uint64_t> done;
      for (const Chunk& chunk : chunks) {
        Scheduler::commit(chunk);
        if (!chunk.reaches_end) continue;
        if (chunk.sequence->samples) chunk.sequence->tokens.push_back(2);
        if (chunk.sequence->length() >= wanted[chunk.sequence->id]) done.push_back(chunk.sequence->id);
      }
      for (const uint64_t id : done) {
        scheduler.remove(id);
        wanted.erase(id);
        ended.insert(id);
      }
      CHECK(pool.free() + pool.held() == pool.total());
      if (wanted.empty()) CHECK(pool.held() == 0);
      if (wanted.empty() && next_id > 40 && ++idle > 3) break;
    }
    CHECK(ended == arrived);
    CHECK(scheduler.n_running() + scheduler.n_waiting() == 0);
  }
}
