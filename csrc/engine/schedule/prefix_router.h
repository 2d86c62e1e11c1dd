// Which of several replicas takes a request: the one that holds most of its prompt in its prefix cache, unless that one is much
// busier than another. Plain data, no engine: the caller says what was sent where and what has ended.
//
// What a replica holds is followed, not asked: the hash chains of the full pages of what it was given and has answered, as many
// as its cache has pages, those used longest ago forgotten first. A wrong guess costs time, never a wrong answer.
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "engine/schedule/page_pool.h"

namespace sigmoe {

class PrefixRouter {
 public:
  // n_pages: of each replica's cache. Up to `slack` requests more than the least busy replica has do not matter.
  PrefixRouter(int n_replicas, int64_t n_pages, int64_t slack);

  // All replicas, the one to try first in front.
  std::vector<int> order(const std::vector<int32_t>& prompt, const CacheSalt& salt);
  void sent(int replica, const std::vector<int32_t>& tokens, const CacheSalt& salt);
  // `tokens`: prompt and answer; empty where they do not stay in the cache.
  void ended(int replica, const std::vector<int32_t>& tokens, const CacheSalt& salt);

  int64_t load(int replica) const { return replicas_[replica].n_requests; }

 private:
  struct Replica {
    std::list<uint64_t> used;  // hashes, the one used longest ago first
    std::unordered_map<uint64_t, std::list<uint64_t>::iterator> pages;
    int64_t n_requests = 0;  // sent and not ended
    uint64_t n_sent = 0;
  };
  static std::vector<uint64_t> chain(const std::vector<int32_t>& tokens, const CacheSalt& salt);
  void note(Replica& replica, const std::vector<uint64_t>& hashes);

  std::vector<Replica> replicas_;
  int64_t n_pages_, slack_;
};

}  // namespace sigmoe
