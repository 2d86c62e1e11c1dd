// The scheduler without tensors: random arrivals, lengths, aborts and pool sizes; invariants after every plan.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "doctest/doctest.h"
#include "engine/schedule/scheduler.h"

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
  std::set<int32_t> written, read;
  std::set<int> slots;
  for (const Chunk& chunk : chunks) {
    const Sequence& sequence = *chunk.sequence;
    n_tokens += chunk.n;
    CHECK(chunk.n > 0);
    CHECK(chunk.begin == sequence.n_computed);
    const int64_t end = chunk.begin + chunk.n - chunk.n_drafts;
    CHECK(end <= sequence.length());
    CHECK(chunk.reaches_end == (end == sequence.length()));
    CHECK(chunk.n_drafts <= (chunk.reaches_end ? static_cast<int64_t>(sequence.drafts.size()) : 0));
    CHECK(static_cast<int64_t>(sequence.pages.size()) * kPageTokens >= chunk.begin + chunk.n);
    CHECK(sequences.insert(&sequence).second);
    CHECK(sequence.slot >= 0);
    CHECK(slots.insert(sequence.slot).second);
    const std::set<int32_t> own(sequence.pages.begin(), sequence.pages.end());
    CHECK(own.size() == sequence.pages.size());
    // A page is written by one sequence alone: what a chunk's tokens go into is nobody else's in this step.
    for (int64_t i = chunk.begin / kPageTokens; i < static_cast<int64_t>(sequence.pages.size()); ++i)
      CHECK(written.insert(sequence.pages[i]).second);
    for (int64_t i = 0; i < chunk.begin / kPageTokens; ++i) read.insert(sequence.pages[i]);
  }
  for (const int32_t page : read) CHECK_FALSE(written.contains(page));
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

TEST_CASE("page pool: a prefix is found by its tokens, its beginning and its salt") {
  PagePool pool(8);
  std::vector<int32_t> tokens(3 * kPageTokens + 5);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i % 7);
  std::vector<int32_t> pages;
  REQUIRE(pool.acquire(pages, 4));
  const std::vector<int32_t> first = pages;
  PagePool::Chain chain{{1, 2}};
  pool.remember(tokens, 3 * kPageTokens + 5, pages, chain);
  CHECK(chain.n_pages == 3);
  pool.release(pages);
  CHECK(pool.cached() == 3);
  CHECK(pool.free() == 5);

  const auto found = [&](const std::vector<int32_t>& wanted, const CacheSalt& salt, int64_t n_most) {
    std::vector<int32_t> got;
    PagePool::Chain from{salt};
    pool.find(wanted, n_most, got, from);
    const std::vector<int32_t> copy = got;
    pool.release(got);
    return copy;
  };
  CHECK(found(tokens, {1, 2}, 3) == std::vector<int32_t>(first.begin(), first.begin() + 3));
  CHECK(found(tokens, {1, 2}, 2).size() == 2);
  CHECK(found(tokens, {1, 3}, 3).empty());
  CHECK(found(tokens, {2, 2}, 3).empty());
  std::vector<int32_t> other = tokens;
  other[kPageTokens] ^= 1;  // the second page differs: the third, equal in itself, is behind another beginning
  CHECK(found(other, {1, 2}, 3).size() == 1);
  other = tokens;
  other[0] ^= 1;
  CHECK(found(other, {1, 2}, 3).empty());
}

TEST_CASE("page pool: the page unused longest goes first, the end of a prefix before its beginning") {
  PagePool pool(4);
  const auto run = [&](int32_t token) {
    const std::vector<int32_t> tokens(2 * kPageTokens, token);
    std::vector<int32_t> pages;
    PagePool::Chain chain;
    pool.find(tokens, 2, pages, chain);
    const int64_t n_found = chain.n_pages;
    REQUIRE(pool.acquire(pages, 2 - n_found));
    pool.remember(tokens, 2 * kPageTokens, pages, chain);
    pool.release(pages);
    return n_found;
  };
  CHECK(run(1) == 0);
  CHECK(run(2) == 0);
  CHECK(run(1) == 2);  // used again: 2 is the older one now
  std::vector<int32_t> one;
  REQUIRE(pool.acquire(one, 1));
  pool.release(one);
  CHECK(run(2) == 1);  // lost its end
  CHECK(run(1) == 2);
}

TEST_CASE("page pool: shared pages are given back by the last holder; without memory nothing is found") {
  PagePool pool(4);
  const std::vector<int32_t> tokens(kPageTokens, 3);
  std::vector<int32_t> a, b;
  PagePool::Chain chain, again;
  REQUIRE(pool.acquire(a, 1));
  pool.remember(tokens, kPageTokens, a, chain);
  pool.find(tokens, 1, b, again);
  CHECK(a == b);
  CHECK(pool.held() == 1);
  pool.release(a);
  CHECK(pool.held() == 1);
  CHECK(pool.cached() == 0);
  pool.release(b);
  CHECK(pool.cached() == 1);

  PagePool forgetful(4, false);
  PagePool::Chain none;
  REQUIRE(forgetful.acquire(a, 1));
  forgetful.remember(tokens, kPageTokens, a, none);
  forgetful.release(a);
  CHECK(forgetful.free() == 4);
}

TEST_CASE("scheduler: decode rows go first, prefill fills the rest of the budget in order") {
  PagePool pool(64);
  const SchedulerLimits limits{100, 8};
  Scheduler scheduler(limits, pool);
  scheduler.add(make_sequence(1, 10));
  for (const Chunk& chunk : scheduler.plan()) {
    scheduler.commit(chunk);
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
      scheduler.commit(chunk);
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

TEST_CASE("scheduler: lower priority numbers run first, and take the place of higher ones") {
  PagePool pool(16);
  const SchedulerLimits limits{512, 2};
  Scheduler scheduler(limits, pool);
  const auto add = [&](uint64_t id, int32_t priority) {
    auto sequence = make_sequence(id, 10);
    sequence->priority = priority;
    scheduler.add(std::move(sequence));
  };
  const auto planned = [&] {
    std::vector<uint64_t> ids;
    for (const Chunk& chunk : scheduler.plan()) {
      scheduler.commit(chunk);
      if (chunk.reaches_end) chunk.sequence->tokens.push_back(2);
      ids.push_back(chunk.sequence->id);
    }
    return ids;
  };
  add(1, 5);
  add(2, 5);
  add(3, 0);
  CHECK(planned() == std::vector<uint64_t>{3, 1});
  CHECK(planned() == std::vector<uint64_t>{3, 1});
  add(4, -1);  // needs a slot: sequence 1 is the last in rank
  CHECK(planned() == std::vector<uint64_t>{3, 4});
  CHECK(scheduler.n_preemptions() == 1);
  scheduler.remove(3);
  scheduler.remove(4);
  CHECK(planned() == std::vector<uint64_t>{1, 2});
  add(5, 5);  // equal priority never displaces
  CHECK(planned() == std::vector<uint64_t>{1, 2});
}

TEST_CASE("scheduler: who waits for a mask computes all but its last token, and holds up nobody") {
  PagePool pool(16);
  const SchedulerLimits limits{512, 4};
  Scheduler scheduler(limits, pool);
  auto masked = make_sequence(1, 300);
  masked->may_sample = false;
  scheduler.add(std::move(masked));
  std::vector<Chunk> chunks = scheduler.plan();
  REQUIRE(chunks.size() == 1);
  CHECK(chunks[0].n == 299);
  CHECK_FALSE(chunks[0].reaches_end);
  scheduler.commit(chunks[0]);
  CHECK(scheduler.plan().empty());
  scheduler.add(make_sequence(2, 10));
  chunks = scheduler.plan();
  REQUIRE(chunks.size() == 1);
  CHECK(chunks[0].sequence->id == 2);
  scheduler.commit(chunks[0]);
  scheduler.find(1)->may_sample = true;
  chunks = scheduler.plan();
  REQUIRE(chunks.size() == 1);
  CHECK(chunks[0].sequence->id == 1);
  CHECK(chunks[0].n == 1);
  CHECK(chunks[0].reaches_end);
}

TEST_CASE("scheduler: a repeated prompt computes its last page only; one that wants all rows computes them") {
  PagePool pool(64);
  const SchedulerLimits limits{4096, 4};
  Scheduler scheduler(limits, pool);
  const auto computed = [&](uint64_t id, int64_t n_prompt, bool all_rows) {
    auto sequence = make_sequence(id, n_prompt);
    sequence->needs_all_rows = all_rows;
    scheduler.add(std::move(sequence));
    const std::vector<Chunk> chunks = scheduler.plan();
    REQUIRE(chunks.size() == 1);
    scheduler.commit(chunks[0]);
    const int64_t n = chunks[0].n;
    scheduler.remove(id);
    return n;
  };
  CHECK(computed(1, 1500, false) == 1500);
  CHECK(computed(2, 1500, false) == 1500 - 11 * kPageTokens);
  CHECK(computed(3, 12 * kPageTokens, false) == kPageTokens);  // a whole last page has to be computed for its logits
  CHECK(computed(4, 1500, true) == 1500);
  CHECK(scheduler.n_found_tokens() == 22 * kPageTokens);
  CHECK(scheduler.n_queried_tokens() == 2 * 1500 + 12 * kPageTokens + 1500);
}

TEST_CASE("scheduler: drafts take what plain decoding leaves of budget and pages, and only what came true stays") {
  PagePool pool(3);
  const SchedulerLimits limits{8, 4};
  Scheduler scheduler(limits, pool);
  scheduler.add(make_sequence(1, 5));
  scheduler.add(make_sequence(2, 3));
  std::vector<Chunk> chunks = scheduler.plan();
  REQUIRE(chunks.size() == 2);
  for (const Chunk& chunk : chunks) {
    scheduler.commit(chunk);
    chunk.sequence->tokens.push_back(2);
  }
  Sequence &first = *scheduler.find(1), &second = *scheduler.find(2);
  CHECK(scheduler.make_room_behind(first, 4) == 4);
  CHECK(scheduler.make_room_behind(second, 4) == 4);
  first.drafts = {7, 8, 9, 10};
  second.drafts = {7, 8, 9, 10};
  chunks = scheduler.plan();
  check_plan(chunks, limits);
  REQUIRE(chunks.size() == 2);
  CHECK(chunks[0].n_drafts == 4);
  CHECK(chunks[1].n_drafts == 2);                       // 8 rows: one each, and 6 drafts
  first.tokens.insert(first.tokens.end(), {7, 8, 30});  // two drafts came true
  second.tokens.push_back(30);                          // none did
  for (const Chunk& chunk : chunks) scheduler.commit(chunk);
  CHECK(first.n_computed == 8);
  CHECK(first.n_pending() == 1);
  CHECK(second.n_computed == 4);
  CHECK(second.n_pending() == 1);
  CHECK(first.drafts.empty());

  // A prompt that waits gets half of what is left.
  scheduler.add(make_sequence(3, 100));
  first.drafts = {7, 8, 9, 10};
  chunks = scheduler.plan();
  REQUIRE(chunks.size() == 3);
  CHECK(chunks[0].n_drafts == 3);
  CHECK(chunks[2].n == 3);

  // Pages: what is free is taken, nobody gives way.
  CHECK(pool.available() == 0);
  CHECK(scheduler.make_room_behind(first, 500) == kPageTokens - first.length());
  CHECK(scheduler.n_preemptions() == 0);
  CHECK(scheduler.remove(1) != nullptr);
  CHECK(scheduler.make_room_behind(second, 200) == 200);
}

TEST_CASE("scheduler: random traffic keeps every invariant, starves nobody and never shows a page of another prefix") {
  int64_t n_accepted = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    const int64_t longest = pick(130, 700);
    PagePool pool(pages_for(longest) + pick(0, 6));
    const SchedulerLimits limits{pick(1, 300), pick(1, 9)};
    Scheduler scheduler(limits, pool);
    // What a KV cache would hold: the token and salt behind every slot of every page.
    std::vector<std::pair<int32_t, uint64_t>> kv(pool.total() * kPageTokens);
    const auto slot_of = [](const Sequence& sequence, int64_t i) {
      return sequence.pages[i / kPageTokens] * kPageTokens + i % kPageTokens;
    };
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
        auto sequence = make_sequence(next_id++, n_prompt, samples);
        const int parts = pick(1, 3);  // prompts that begin alike and part somewhere
        for (int64_t i = pick(0, static_cast<int>(n_prompt)); i < n_prompt; ++i) sequence->tokens[i] = 10 + parts;
        sequence->chain.salt[0] = pick(0, 1);
        sequence->priority = pick(-1, 1);
        sequence->needs_all_rows = !samples;
        scheduler.add(std::move(sequence));
      }
      if (!wanted.empty() && pick(0, 60) == 0) {
        const uint64_t victim = std::next(wanted.begin(), pick(0, static_cast<int>(wanted.size()) - 1))->first;
        CHECK(scheduler.remove(victim) != nullptr);
        CHECK(scheduler.remove(victim) == nullptr);
        wanted.erase(victim);
        ended.insert(victim);
      }
      const bool masks_late = pick(0, 5) == 0;
      for (const auto& [id, length] : wanted) scheduler.find(id)->may_sample = !masks_late || pick(0, 1) == 0;
      const std::vector<Chunk> chunks = scheduler.plan();
      check_plan(chunks, limits);
      if (!masks_late) CHECK(chunks.empty() == wanted.empty());  // work exists: the step is never empty
      std::vector<uint64_t> done;
      for (const Chunk& chunk : chunks) {
        Sequence& sequence = *chunk.sequence;
        int64_t wrong = 0;
        for (int64_t i = 0; i < chunk.begin; ++i)
          wrong += kv[slot_of(sequence, i)] != std::pair(sequence.tokens[i], sequence.chain.salt[0]);
        CHECK(wrong == 0);
        for (int64_t i = chunk.begin; i < chunk.begin + chunk.n; ++i)
          kv[slot_of(sequence, i)] = {i < sequence.length() ? sequence.tokens[i] : sequence.drafts[i - sequence.length()],
                                      sequence.chain.salt[0]};
      }
      for (const Chunk& chunk : chunks) {
        Sequence& sequence = *chunk.sequence;
        if (chunk.reaches_end && sequence.samples) {
          const int64_t left = wanted[sequence.id] - sequence.length();
          for (int64_t i = std::min<int64_t>(left - 1, pick(0, static_cast<int>(chunk.n_drafts))); i > 0; --i) {
            sequence.tokens.push_back(sequence.drafts.front());  // this draft came true
            sequence.drafts.erase(sequence.drafts.begin());
            ++n_accepted;
          }
          sequence.tokens.push_back(2);
        }
        scheduler.commit(chunk);
        CHECK(sequence.n_computed <= sequence.length());
        if (!chunk.reaches_end) continue;
        CHECK(sequence.drafts.empty());
        if (sequence.samples) CHECK(sequence.n_pending() == 1);
        if (sequence.length() >= wanted[sequence.id])
          done.push_back(sequence.id);
        else if (sequence.samples && pick(0, 2) > 0) {
          const int64_t n = std::min<int64_t>(pick(0, 7), wanted[sequence.id] - sequence.length());
          sequence.drafts.assign(scheduler.make_room_behind(sequence, n), pick(3, 5));
        }
      }
      for (const uint64_t id : done) {
        scheduler.remove(id);
        wanted.erase(id);
        ended.insert(id);
      }
      CHECK(pool.free() + pool.cached() + pool.held() == pool.total());
      if (wanted.empty()) CHECK(pool.held() == 0);
      if (wanted.empty() && next_id > 40 && ++idle > 3) break;
    }
    CHECK(ended == arrived);
    CHECK(scheduler.n_running() + scheduler.n_waiting() == 0);
  }
  CHECK(n_accepted > 1000);
}
