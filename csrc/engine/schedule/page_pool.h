// Which page of the KV cache belongs to whom, and which pages remember a prefix. Plain data: no device memory.
//
// Life of a page: free [content meaningless] -> held [by one sequence or, when they share a prefix, by several] -> free, or
// cached [nobody's, its content remembered for the next prompt that begins alike] -> held again, or evicted, the page unused
// longest first. At any time free + cached + held = total; when no sequence exists, held = 0.
//
// A remembered page is found by its 128 tokens and by the page before it, back to a salt: a chain, so that equal tokens
// behind different beginnings are different pages. Lookups compare the tokens and the salt themselves, not only their hash:
// no collision can show one request another's content.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"

namespace sigmoe {

constexpr int64_t pages_for(int64_t n_tokens) { return (n_tokens + kPageTokens - 1) / kPageTokens; }

using CacheSalt = std::array<uint64_t, 2>;

class PagePool {
 public:
  explicit PagePool(int64_t n_pages, bool remembers = true);

  int64_t total() const { return static_cast<int64_t>(pages_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t cached() const { return static_cast<int64_t>(unused_.size()); }
  int64_t held() const { return total() - free() - cached(); }
  int64_t available() const { return free() + cached(); }  // what acquire() can hand out

  // Appends n pages, or appends none and returns false.
  bool acquire(std::vector<int32_t>& pages, int64_t n);
  // Gives all of them back and empties the list.
  void release(std::vector<int32_t>& pages);

  // Where a sequence's chain of remembered pages stands.
  struct Chain {
    CacheSalt salt{};
    uint64_t last = 0;    // identity of the last page's content; 0 before the first
    int64_t n_pages = 0;  // remembered or found so far
  };
  // Appends the remembered pages that the first tokens match, at most n_most, and advances the chain.
  void find(const std::vector<int32_t>& tokens, int64_t n_most, std::vector<int32_t>& pages, Chain& chain);
  // Remembers the pages of the sequence's first n_tokens tokens, as far as they are full; pages[i] holds them.
  void remember(const std::vector<int32_t>& tokens, int64_t n_tokens, const std::vector<int32_t>& pages, Chain& chain);

 private:
  struct Content {
    CacheSalt salt{};
    uint64_t before = 0, identity = 0;  // identity 0: nothing remembered
    std::array<int32_t, kPageTokens> tokens{};
  };
  struct Page {
    int32_t n_holders = 0;
    std::list<int32_t>::iterator unused;  // its place in unused_ while cached
    Content content;
  };
  static uint64_t hash(const CacheSalt& salt, uint64_t before, const int32_t* tokens);
  int32_t lookup(const Chain& chain, const int32_t* tokens) const;  // -1: not remembered
  void forget(int32_t page);

  bool remembers_;
  std::vector<Page> pages_;
  std::vector<int32_t> free_;  // taken from the back: pages used last are warm in cache
  std::list<int32_t> unused_;  // cached pages, the next to evict first
  std::unordered_multimap<uint64_t, int32_t> by_hash_;
  uint64_t last_identity_ = 0;
};

}  // namespace sigmoe
