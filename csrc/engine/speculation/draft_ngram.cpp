// Prompt lookup: what followed the last time the text stood as it stands now. Needs no weights; answers that quote their
// prompt, code and tables gain from it.
#include <algorithm>

#include "engine/speculation/drafter.h"

namespace sigmoe {
namespace {

constexpr int64_t kLeastMatch = 2, kMostMatch = 8;  // tokens that must agree, and with which the search is content
constexpr int64_t kWindow = 32768;                  // tokens searched, the latest ones

struct Match {
  int64_t next = 0;  // position of the token that followed
  int64_t length = 0;
};

// The longest suffix of the tokens that occurs earlier; of equally long ones the latest.
Match find_match(const std::vector<int32_t>& tokens) {
  const int64_t n = static_cast<int64_t>(tokens.size());
  Match best;
  for (int64_t end = n - 1; end >= std::max(kLeastMatch, n - kWindow) && best.length < kMostMatch; --end) {
    int64_t length = 0;
    while (length < std::min(end, kMostMatch) && tokens[end - 1 - length] == tokens[n - 1 - length]) ++length;
    if (length >= kLeastMatch && length > best.length) best = {end, length};
  }
  return best;
}

class NgramDrafter : public Drafter {
 public:
  bool reads_features() const override { return false; }

  int most(const Sequence& sequence, int wanted) const override {
    const Match match = find_match(sequence.tokens);
    return match.length == 0 ? 0 : static_cast<int>(std::min<int64_t>(wanted, sequence.length() - match.next));
  }

  void draft(std::vector<DraftTask>& tasks, DraftTrace*) override {
    for (DraftTask& task : tasks) {
      if (task.depth == 0) continue;
      const std::vector<int32_t>& tokens = task.sequence->tokens;
      const Match match = find_match(tokens);
      const int64_t n = match.length == 0 ? 0 : std::min<int64_t>(task.depth, task.sequence->length() - match.next);
      task.drafts.assign(tokens.begin() + match.next, tokens.begin() + match.next + n);
    }
  }
};

}  // namespace

std::unique_ptr<Drafter> make_ngram_drafter() { return std::make_unique<NgramDrafter>(); }

}  // namespace sigmoe
