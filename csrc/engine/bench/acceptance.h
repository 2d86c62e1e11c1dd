// Published acceptance, replayed: how many drafts of a chain come true is drawn from a histogram, whatever the model says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sigmoe::bench {

class Acceptance {
 public:
  // `text` is the mean number of tokens a step gives, such as 3.1, for which every draft behind an accepted one comes true with
  // the same chance; or the shares of steps that give 1, 2, ..., depth + 1 tokens, such as 0.2,0.2,0.2,0.4. Throws
  // invalid_argument for what no chain of this depth gives.
  Acceptance(const std::string& text, int depth);

  double mean_tokens() const;
  const std::vector<double>& shares() const { return shares_; }
  // Of a chain of n_drafts of this sequence at this position: the same whenever it is asked.
  static uint64_t random(uint64_t sequence, int64_t position);
  int64_t draw(uint64_t sequence, int64_t position, int64_t n_drafts) const;

 private:
  std::vector<double> shares_;  // (depth + 1) of steps by tokens, from 1 on
};

}  // namespace sigmoe::bench
