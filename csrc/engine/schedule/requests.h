// The sequences the engine runs: a generation with its sampling state, and a teacher-forced scoring run. What submit()
// checks, and what of a request changes from token to token: bad words, the thinking budget, masks.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "engine/engine.h"
#include "engine/schedule/scheduler.h"
#include "engine/speculation/depth_control.h"

namespace sigmoe {

// Throw invalid_argument for a request no run could satisfy.
void check_request(const GenerateRequest& request, const EngineInfo& info);
void check_request(const LogitsRequest& request, const EngineInfo& info, bool has_mtp);

struct Generation : Sequence {
  // The request's prompt becomes the sequence's tokens.
  Generation(GenerateRequest request, const EngineInfo& info);

  // The token that must come next whatever the logits say, or -1.
  int32_t forced_token() const { return thinking_.forced.empty() ? -1 : thinking_.forced[thinking_.n_forced]; }
  // Whether what may be sampled depends on the token before it, by rules that the host keeps.
  bool is_steered() const { return request.masked || !request.bad_words.empty() || request.thinking.budget >= 0; }
  // Appends the ids that a bad word would be completed by now, and the stop ids while the answer is too short.
  void append_bans(std::vector<int32_t>& bans) const;
  // Appends the words of what may be sampled now and returns true, or returns false when everything may.
  bool append_mask(std::vector<uint32_t>& masks) const;
  // Masks of token number `position` and of those behind each of its drafts that may come true; drafts beyond go.
  void set_masks(int64_t position, std::vector<uint32_t> masks);
  // Takes a sampled token; says whether the sequence ends with it.
  FinishReason take(int32_t token, int64_t context);

  GenerateRequest request;
  std::chrono::steady_clock::time_point submitted{}, started{};
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  int64_t n_prompt_scored = 1;               // prompt tokens whose log-probabilities were reported; the first has none
  bool needs_reset = false;                  // its slot's counts are another sequence's
  FinishReason finish = FinishReason::none;  // set with its last token

  // What speculation knows of it; speculation.h.
  struct Drafting {
    bool followed = false;      // a draft model sees its tokens
    int64_t n_seen = 0;         // tokens whose features it has taken in
    int64_t n_placed_from = 0;  // tokens from here on have theirs in the ring
    int32_t staged_row = -1;    // of the step's first row, when its features are not in the ring
    bool refused = false;       // a mask has cut its drafts short
    DraftRecord record;
  };
  Drafting drafting;

 private:
  friend class DraftPath;
  struct Thinking {
    bool open = false;
    int64_t n_thought = 0;
    std::vector<int32_t> forced;  // end of the reasoning, of which n_forced tokens are out
    size_t n_forced = 0;
  };

  void advance(int32_t token);
  void follow_thinking();
  bool ends_with(const std::vector<int32_t>& ids) const;

  int64_t vocab_size_;
  std::vector<uint32_t> allowed_;  // of allowed_ids; empty: all
  std::vector<uint32_t> masks_;    // of set_masks, one after the other; empty: all
  int64_t mask_position_ = -1;     // of the first of them
  Thinking thinking_;
};

// A generation as it will be when drafts have come true: takes them one by one, and takes all of them back at its end.
class DraftPath {
 public:
  explicit DraftPath(Generation& generation)
      : generation_(generation), length_(generation.length()), thinking_(generation.thinking_) {}
  ~DraftPath() {
    generation_.tokens.resize(length_);
    generation_.thinking_ = std::move(thinking_);
  }
  DraftPath(const DraftPath&) = delete;
  DraftPath& operator=(const DraftPath&) = delete;

  void take(int32_t draft) { generation_.advance(draft); }

 private:
  Generation& generation_;
  int64_t length_;
  Generation::Thinking thinking_;
};

struct Scoring : Sequence {
  explicit Scoring(LogitsRequest request);

  bool mtp = false;
  std::vector<float> values;  // (rows so far, V)
};

}  // namespace sigmoe
