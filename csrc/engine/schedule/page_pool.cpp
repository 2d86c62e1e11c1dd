#include "engine/schedule/page_pool.h"

#include <algorithm>

namespace sigmoe {

PagePool::PagePool(int64_t n_pages, bool remembers) : remembers_(remembers), pages_(n_pages) {
  free_.reserve(n_pages);
  for (int64_t page = n_pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
}

bool PagePool::acquire(std::vector<int32_t>& pages, int64_t n) {
  if (n > available()) return false;
  for (int64_t i = 0; i < n; ++i) {
    if (free_.empty()) {
      const int32_t oldest = unused_.front();
      unused_.pop_front();
      forget(oldest);
      free_.push_back(oldest);
    }
    pages_[free_.back()].n_holders = 1;
    pages.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

// The last page first: of one sequence's pages the end is evicted before the beginning, which more prompts share.
void PagePool::release(std::vector<int32_t>& pages) {
  for (size_t i = pages.size(); i-- > 0;) {
    Page& page = pages_[pages[i]];
    SIGMOE_CHECK(page.n_holders > 0, "page " + std::to_string(pages[i]) + " was released twice");
    if (--page.n_holders > 0) continue;
    if (page.content.identity != 0)
      page.unused = unused_.insert(unused_.end(), pages[i]);
    else
      free_.push_back(pages[i]);
  }
  pages.clear();
}

void PagePool::find(const std::vector<int32_t>& tokens, int64_t n_most, std::vector<int32_t>& pages, Chain& chain) {
  while (chain.n_pages < n_most) {
    const int32_t found = lookup(chain, tokens.data() + chain.n_pages * kPageTokens);
    if (found < 0) return;
    Page& page = pages_[found];
    if (page.n_holders++ == 0) unused_.erase(page.unused);
    pages.push_back(found);
    chain.last = page.content.identity;
    ++chain.n_pages;
  }
}

void PagePool::remember(const std::vector<int32_t>& tokens, int64_t n_tokens, const std::vector<int32_t>& pages, Chain& chain) {
  if (!remembers_) return;
  for (; (chain.n_pages + 1) * kPageTokens <= n_tokens; ++chain.n_pages) {
    const int32_t* first = tokens.data() + chain.n_pages * kPageTokens;
    // Two sequences that began alike at the same time hold the same content twice: the chain goes on behind the first.
    const int32_t known = lookup(chain, first);
    if (known >= 0) {
      chain.last = pages_[known].content.identity;
      continue;
    }
    const int32_t page = pages[chain.n_pages];
    Content& content = pages_[page].content;
    SIGMOE_CHECK(content.identity == 0, "page " + std::to_string(page) + " remembers two contents");
    content = {chain.salt, chain.last, ++last_identity_, {}};
    std::copy_n(first, kPageTokens, content.tokens.begin());
    by_hash_.emplace(hash(chain.salt, chain.last, first), page);
    chain.last = content.identity;
  }
}

uint64_t PagePool::hash(const CacheSalt& salt, uint64_t before, const int32_t* tokens) {
  uint64_t value = before ^ salt[0];
  const auto mix = [&](uint64_t word) {
    value = (value ^ word) * 0x9e3779b97f4a7c15ull;
    value ^= value >> 32;
  };
  mix(salt[1]);
  for (int64_t i = 0; i < kPageTokens; ++i) mix(static_cast<uint32_t>(tokens[i]));
  return value;
}

int32_t PagePool::lookup(const Chain& chain, const int32_t* tokens) const {
  const auto [begin, end] = by_hash_.equal_range(hash(chain.salt, chain.last, tokens));
  for (auto at = begin; at != end; ++at) {
    const Content& content = pages_[at->second].content;
    if (content.before == chain.last && content.salt == chain.salt &&
        std::equal(content.tokens.begin(), content.tokens.end(), tokens))
      return at->second;
  }
  return -1;
}

void PagePool::forget(int32_t page) {
  Content& content = pages_[page].content;
  const auto [begin, end] = by_hash_.equal_range(hash(content.salt, content.before, content.tokens.data()));
  by_hash_.erase(std::find_if(begin, end, [page](const auto& entry) { return entry.second == page; }));
  content.identity = 0;
}

}  // namespace sigmoe
