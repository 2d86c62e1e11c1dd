#include "engine/schedule/step_results.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace sigmoe {
namespace {

void append_logprobs(const StepOutputs& outputs, size_t row, std::vector<float>& logprobs, std::vector<int32_t>& top_ids,
                     std::vector<float>& top_logprobs) {
  const auto first = static_cast<int64_t>(row) * kMaxLogprobs;
  logprobs.push_back(outputs.logprobs[row]);
  top_ids.insert(top_ids.end(), outputs.top_ids.begin() + first, outputs.top_ids.begin() + first + kMaxLogprobs);
  top_logprobs.insert(top_logprobs.end(), outputs.top_logprobs.begin() + first,
                      outputs.top_logprobs.begin() + first + kMaxLogprobs);
}

void take_prompt_score(const SampledRow& from, const StepOutputs& outputs, size_t row, StepEvent& event) {
  Generation& generation = *from.generation;
  if (event.prompt_logprobs.empty() || event.prompt_logprobs.back().request != generation.id)
    event.prompt_logprobs.push_back({generation.id, from.prompt_index, {}, {}, {}});
  StepEvent::PromptLogprobs& to = event.prompt_logprobs.back();
  append_logprobs(outputs, row, to.logprobs, to.top_ids, to.top_logprobs);
  generation.n_prompt_scored = from.prompt_index + 1;
}

}  // namespace

void take_samples(const std::vector<SampledRow>& rows, const StepOutputs& outputs, int64_t context, StepEvent& event) {
  const bool logprobs = std::any_of(rows.begin(), rows.end(), [](const SampledRow& row) {
    return row.generation && row.prompt_index < 0 && row.generation->request.n_logprobs >= 0;
  });
  if (logprobs) {  // ends without a token have no logprobs, but keep their place
    event.logprobs.resize(event.requests.size());
    event.top_ids.resize(event.requests.size() * kMaxLogprobs, -1);
    event.top_logprobs.resize(event.requests.size() * kMaxLogprobs);
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!rows[r].generation) continue;
    if (rows[r].prompt_index >= 0) {
      take_prompt_score(rows[r], outputs, r, event);
      continue;
    }
    Generation& generation = *rows[r].generation;
    const int32_t token = outputs.tokens[r];
    if (token < 0 || generation.finish != FinishReason::none) continue;  // behind the end of a chain
    if (generation.n_generated() == 0)
      event.starts.push_back({generation.id, generation.n_found,
                              std::chrono::duration<double, std::milli>(generation.started - generation.submitted).count()});
    generation.finish = generation.take(token, context);
    event.requests.push_back(generation.id);
    event.tokens.push_back(token);
    event.finish.push_back(generation.finish);
    if (logprobs) append_logprobs(outputs, r, event.logprobs, event.top_ids, event.top_logprobs);
  }
}

void take_logits(const std::vector<Chunk>& chunks, const StepOutputs& outputs, int64_t vocab_size, StepEvent& event) {
  size_t plain_at = 0, mtp_at = 0;
  for (const Chunk& chunk : chunks) {
    if (chunk.sequence->samples) continue;
    auto& scoring = static_cast<Scoring&>(*chunk.sequence);
    const std::vector<float>& source = scoring.mtp ? outputs.mtp_logits : outputs.logits;
    size_t& at = scoring.mtp ? mtp_at : plain_at;
    const int64_t rows = chunk.n - (scoring.mtp && chunk.reaches_end ? 1 : 0);
    const size_t n = static_cast<size_t>(rows) * vocab_size;
    scoring.values.insert(scoring.values.end(), source.begin() + at, source.begin() + at + n);
    at += n;
    if (!chunk.reaches_end) continue;
    const int64_t total_rows = scoring.length() - (scoring.mtp ? 1 : 0);
    event.logits.push_back({scoring.id, total_rows, vocab_size, std::move(scoring.values)});
    add_end(event, scoring.id, FinishReason::stop);
  }
}

void add_end(StepEvent& event, uint64_t id, FinishReason finish) {
  event.requests.push_back(id);
  event.tokens.push_back(-1);
  event.finish.push_back(finish);
  if (event.logprobs.empty()) return;
  event.logprobs.push_back(0.0f);
  event.top_ids.resize(event.top_ids.size() + kMaxLogprobs, -1);
  event.top_logprobs.resize(event.top_logprobs.size() + kMaxLogprobs);
}

}  // namespace sigmoe
