#include "engine/schedule/prefix_router.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace sigmoe {

PrefixRouter::PrefixRouter(int n_replicas, int64_t n_pages, int64_t slack)
    : replicas_(n_replicas), n_pages_(n_pages), slack_(slack) {}

// A hash per full page, each of everything up to its end. As in the page pool the last token of a prompt is always computed.
std::vector<uint64_t> PrefixRouter::chain(const std::vector<int32_t>& tokens, const CacheSalt& salt) {
  std::vector<uint64_t> out;
  uint64_t state = salt[0] * 0x9e3779b97f4a7c15ull + salt[1];
  for (size_t end = kPageTokens; end <= tokens.size(); end += kPageTokens) {
    for (size_t i = end - kPageTokens; i < end; ++i) {
      state = (state ^ static_cast<uint32_t>(tokens[i])) * 0xff51afd7ed558ccdull;
      state ^= state >> 32;
    }
    out.push_back(state);
  }
  return out;
}

std::vector<int> PrefixRouter::order(const std::vector<int32_t>& prompt, const CacheSalt& salt) {
  const std::vector<uint64_t> hashes = chain(prompt, salt);
  int64_t least = replicas_[0].n_requests;
  for (const Replica& replica : replicas_) least = std::min(least, replica.n_requests);
  // Much busier replicas last; then more of the prompt, fewer requests, fewer requests so far.
  const auto rank = [&](int index) {
    const Replica& replica = replicas_[index];
    const auto known = std::find_if(hashes.begin(), hashes.end(), [&](uint64_t hash) { return !replica.pages.contains(hash); });
    return std::tuple(replica.n_requests > least + slack_, -(known - hashes.begin()), replica.n_requests, replica.n_sent);
  };
  std::vector<int> out(replicas_.size());
  std::iota(out.begin(), out.end(), 0);
  std::stable_sort(out.begin(), out.end(), [&](int a, int b) { return rank(a) < rank(b); });
  return out;
}

void PrefixRouter::sent(int replica, const std::vector<int32_t>& tokens, const CacheSalt& salt) {
  note(replicas_[replica], chain(tokens, salt));
  ++replicas_[replica].n_requests;
  ++replicas_[replica].n_sent;
}

void PrefixRouter::ended(int replica, const std::vector<int32_t>& tokens, const CacheSalt& salt) {
  note(replicas_[replica], chain(tokens, salt));
  --replicas_[replica].n_requests;
}

// The end of a prefix is forgotten before its beginning.
void PrefixRouter::note(Replica& replica, const std::vector<uint64_t>& hashes) {
  for (auto hash = hashes.rbegin(); hash != hashes.rend(); ++hash) {
    if (const auto found = replica.pages.find(*hash); found != replica.pages.end()) replica.used.erase(found->second);
    replica.pages[*hash] = replica.used.insert(replica.used.end(), *hash);
  }
  while (static_cast<int64_t>(replica.used.size()) > n_pages_) {
    replica.pages.erase(replica.used.front());
    replica.used.pop_front();
  }
}

}  // namespace sigmoe
