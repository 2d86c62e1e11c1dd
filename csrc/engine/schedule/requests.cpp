#include "engine/schedule/requests.h"

#include <algorithm>
#include <cmath>

namespace sigmoe {
namespace {

// A LogitsRequest answers with one float per token and vocabulary entry; past this the caller should split.
constexpr uint64_t kMaxLogitsBytes = 2ull << 30;

void require(bool condition, const std::string& message, const std::string& hint = {}) {
  if (!condition) throw EngineError(ErrorCode::invalid_argument, message, hint);
}

void check_ids(const std::vector<int32_t>& ids, const char* what, const EngineInfo& info) {
  for (size_t i = 0; i < ids.size(); ++i)
    require(ids[i] >= 0 && ids[i] < info.vocab_size, std::string(what) + "[" + std::to_string(i) + "] is " +
                                                         std::to_string(ids[i]) + ", outside the vocabulary [0, " +
                                                         std::to_string(info.vocab_size) + ")");
}

void check_tokens(const std::vector<int32_t>& tokens, const char* what, const EngineInfo& info) {
  require(!tokens.empty(), std::string(what) + " is empty; at least one token is needed");
  check_ids(tokens, what, info);
}

template <typename T>
void check_range(T value, T low, T high, const char* name) {
  require(value >= low && value <= high, std::string(name) + " is " + std::to_string(value) + ", outside [" +
                                             std::to_string(low) + ", " + std::to_string(high) + "]");
}

}  // namespace

void check_request(const GenerateRequest& request, const EngineInfo& info) {
  check_tokens(request.prompt, "prompt", info);
  require(static_cast<int64_t>(request.prompt.size()) < info.context,
          "prompt has " + std::to_string(request.prompt.size()) + " tokens; this model's context is " +
              std::to_string(info.context) + " and the answer needs at least one",
          "shorten the prompt or raise maxModelLen");
  require(request.max_tokens == -1 || request.max_tokens >= 1,
          "maxTokens is " + std::to_string(request.max_tokens) + ", below 1");
  require(request.min_tokens >= 0, "minTokens is " + std::to_string(request.min_tokens) + ", below 0");
  check_range(request.temperature, 0.0f, 100.0f, "temperature");  // NaN fails every comparison
  check_range(request.top_p, 0.0f, 1.0f, "topP");
  check_range(request.min_p, 0.0f, 1.0f, "minP");
  check_range(request.repetition_penalty, 1e-3f, 100.0f, "repetitionPenalty");
  check_range(request.presence_penalty, -100.0f, 100.0f, "presencePenalty");
  check_range(request.frequency_penalty, -100.0f, 100.0f, "frequencyPenalty");
  require(request.top_k >= 0, "topK is " + std::to_string(request.top_k) + ", below 0");
  check_range(request.n_logprobs, -1, kMaxLogprobs, "logprobs");
  check_range(request.n_prompt_logprobs, -1, kMaxLogprobs, "promptLogprobs");
  for (const auto& [id, bias] : request.logit_bias) {
    require(id >= 0 && id < info.vocab_size, "logitBias names token " + std::to_string(id) + ", outside the vocabulary [0, " +
                                                 std::to_string(info.vocab_size) + ")");
    require(std::isfinite(bias), "logitBias of token " + std::to_string(id) + " is not a finite number");
  }
  check_ids(request.stop_ids, "stopTokenIds", info);
  check_ids(request.allowed_ids, "allowedTokenIds", info);
  for (const std::vector<int32_t>& word : request.bad_words) check_tokens(word, "badWords", info);
  check_range(request.max_draft, -1, kMaxDraftDepth, "speculative.maxDepth");
  check_ids(request.thinking.begin_ids, "thinking", info);
  check_ids(request.thinking.end_ids, "thinking", info);
  require(request.thinking.budget < 0 || !request.thinking.end_ids.empty(),
          "thinkingTokenBudget was given without the ids that end the reasoning");
}

void check_request(const LogitsRequest& request, const EngineInfo& info, bool has_mtp) {
  check_tokens(request.tokens, "tokens", info);
  const auto n = static_cast<int64_t>(request.tokens.size());
  require(n <= info.context, std::to_string(n) + " tokens asked for; this model's context is " + std::to_string(info.context),
          "pass fewer tokens or raise maxModelLen");
  require(!request.mtp || has_mtp, "MTP logits asked for; no MTP layer is loaded",
          "load with { mtp: true } a checkpoint that has num_nextn_predict_layers >= 1");
  require(!request.mtp || n >= 2, "MTP logits asked for one token; row t needs the token after it, so at least two are needed");
  const uint64_t bytes = static_cast<uint64_t>(n) * info.vocab_size * sizeof(float);
  require(bytes <= kMaxLogitsBytes,
          "logits of " + std::to_string(n) + " tokens would take " + std::to_string(bytes >> 20) + " MiB; the limit is " +
              std::to_string(kMaxLogitsBytes >> 20),
          "split the tokens over several calls");
}

Generation::Generation(GenerateRequest from, const EngineInfo& info) : request(std::move(from)), vocab_size_(info.vocab_size) {
  tokens = std::move(request.prompt);
  n_prompt = length();
  priority = request.priority;
  chain.salt = request.cache_salt;
  needs_all_rows = request.n_prompt_logprobs >= 0;
  may_sample = !request.masked;
  submitted = std::chrono::steady_clock::now();
  if (request.deadline_ms >= 0) deadline = submitted + std::chrono::milliseconds(request.deadline_ms);
  if (!request.allowed_ids.empty()) allowed_.resize(mask_words(vocab_size_));
  for (const int32_t id : request.allowed_ids) allowed_[id / 32] |= 1u << (id % 32);
  thinking_.open = request.thinking.open;
  if (thinking_.open && request.thinking.budget == 0) thinking_.forced = request.thinking.end_ids;
}

void Generation::append_bans(std::vector<int32_t>& bans) const {
  if (n_generated() < request.min_tokens) bans.insert(bans.end(), request.stop_ids.begin(), request.stop_ids.end());
  for (const std::vector<int32_t>& word : request.bad_words) {
    const auto n_before = static_cast<int64_t>(word.size()) - 1;
    if (n_before <= n_generated() && std::equal(word.begin(), word.end() - 1, tokens.end() - n_before))
      bans.push_back(word.back());
  }
}

bool Generation::append_mask(std::vector<uint32_t>& masks) const {
  if (allowed_.empty() && masks_.empty()) return false;
  const size_t n_words = mask_words(vocab_size_);
  const uint32_t* mask = masks_.empty() ? nullptr : &masks_[(n_generated() - mask_position_) * n_words];
  for (size_t i = 0; i < n_words; ++i) masks.push_back((allowed_.empty() ? ~0u : allowed_[i]) & (mask ? mask[i] : ~0u));
  return true;
}

void Generation::set_masks(int64_t position, std::vector<uint32_t> masks) {
  if (!request.masked || position != n_generated()) return;  // of a token that is already out
  masks_ = std::move(masks);
  mask_position_ = position;
  may_sample = true;
  const size_t n_behind_drafts = masks_.empty() ? 0 : masks_.size() / mask_words(vocab_size_) - 1;
  drafting.refused = drafts.size() > n_behind_drafts;
  if (drafting.refused) drafts.resize(n_behind_drafts);
}

FinishReason Generation::take(int32_t token, int64_t context) {
  advance(token);
  if (request.masked) may_sample = false;  // the masks there are were of drafts that may have been others
  if (std::find(request.stop_ids.begin(), request.stop_ids.end(), token) != request.stop_ids.end()) return FinishReason::stop;
  if (n_generated() == request.max_tokens || length() >= context) return FinishReason::length;
  return FinishReason::none;
}

void Generation::advance(int32_t token) {
  tokens.push_back(token);
  if (!thinking_.forced.empty() && ++thinking_.n_forced == thinking_.forced.size()) thinking_.forced.clear();
  follow_thinking();
}

void Generation::follow_thinking() {
  const ThinkingLimit& limit = request.thinking;
  if (limit.budget < 0) return;
  if (!thinking_.open) {
    thinking_.open = ends_with(limit.begin_ids);
    thinking_.n_thought = 0;
  } else if (ends_with(limit.end_ids)) {
    thinking_.open = false;
  } else {
    ++thinking_.n_thought;
  }
  if (!thinking_.open || thinking_.n_thought < limit.budget || !thinking_.forced.empty()) return;
  thinking_.forced = limit.end_ids;
  thinking_.n_forced = 0;
}

bool Generation::ends_with(const std::vector<int32_t>& ids) const {
  const auto n = static_cast<int64_t>(ids.size());
  return n > 0 && n <= n_generated() && std::equal(ids.begin(), ids.end(), tokens.end() - n);
}

Scoring::Scoring(LogitsRequest request) : mtp(request.mtp) {
  tokens = std::move(request.tokens);
  n_prompt = length();
  samples = false;
  needs_all_rows = true;
}

}  // namespace sigmoe
