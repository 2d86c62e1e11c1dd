#include "engine/schedule/step_builder.h"

#include <algorithm>

namespace sigmoe {

StepBuilder::StepBuilder(const std::vector<Chunk>& chunks, StepInputs& inputs, const Replay* replay)
    : in_(inputs), replay_(replay) {
  in_.seq_offsets.push_back(0);
  for (const Chunk& chunk : chunks) {
    for (int64_t i = 0; replay && i < chunk.n_drafts; ++i)
      chunk.sequence->drafts[i] = replay->token(*chunk.sequence, chunk.sequence->length() + i);
    add(chunk);
  }
  add_tables(chunks);
}

void StepBuilder::add(const Chunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  auto* generation = sequence.samples ? static_cast<Generation*>(&sequence) : nullptr;
  const auto* scoring = sequence.samples ? nullptr : static_cast<const Scoring*>(&sequence);
  for (int64_t i = chunk.begin; i < chunk.begin + chunk.n; ++i) {
    const int32_t row = in_.n_tokens();
    const int32_t token = i < sequence.length() ? sequence.tokens[i] : sequence.drafts[i - sequence.length()];
    if (token < 0) in_.drafted.push_back({~token, DraftedValue::Use::token, row});
    in_.token_ids.push_back(std::max(token, 0));
    in_.positions.push_back(static_cast<int32_t>(i));
    if (scoring && !scoring->mtp) in_.logits_row_ids.push_back(row);
    if (scoring && scoring->mtp && i + 1 < sequence.length()) in_.mtp_row_ids.push_back(row);
    if (generation && generation->request.n_prompt_logprobs >= 0) add_prompt_score(*generation, i + 1);
  }
  in_.seq_offsets.push_back(in_.n_tokens());
  in_.max_pages = std::max(in_.max_pages, static_cast<int>(sequence.pages.size()));
  if (!generation) return;
  if (generation->needs_reset) {
    const auto prompt_end = sequence.tokens.begin() + sequence.n_prompt;
    in_.resets.push_back({sequence.slot, {sequence.tokens.begin(), prompt_end}, {prompt_end, sequence.tokens.end()}});
    generation->needs_reset = false;
  }
  if (chunk.reaches_end) add_samples(*generation, chunk.n_drafts);
}

// The arrays whose width depends on all chunks. Widths come in steps, so that a backend that records a step by its sizes does
// not record it anew for every page.
void StepBuilder::add_tables(const std::vector<Chunk>& chunks) {
  constexpr int kWidthStep = 8;
  in_.max_pages = (in_.max_pages + kWidthStep - 1) / kWidthStep * kWidthStep;
  in_.page_tables.assign(chunks.size() * in_.max_pages, 0);
  for (size_t b = 0; b < chunks.size(); ++b)
    std::copy(chunks[b].sequence->pages.begin(), chunks[b].sequence->pages.end(), in_.page_tables.begin() + b * in_.max_pages);
  if (in_.mtp_row_ids.empty()) return;
  for (const Chunk& chunk : chunks)
    for (int64_t i = chunk.begin + 1; i <= chunk.begin + chunk.n; ++i)
      in_.next_ids.push_back(i < chunk.sequence->length() ? chunk.sequence->tokens[i] : 0);
}

// The row just added scores the prompt's token `index`, unless an earlier computation of it has.
void StepBuilder::add_prompt_score(Generation& generation, int64_t index) {
  if (index >= generation.n_prompt || index < generation.n_prompt_scored) return;
  SampleRow row;
  row.slot = -1;
  row.forced_token = generation.tokens[index];
  row.n_logprobs = generation.request.n_prompt_logprobs;
  in_.sample_rows.push_back(row);
  in_.sample_row_ids.push_back(in_.n_tokens() - 1);
  sampled_rows_.push_back({&generation, index});
}

// A row for the next token, and one behind each draft. What a row depends on is made as if the drafts before it were the
// sequence's own tokens: when the row counts, they are.
void StepBuilder::add_samples(Generation& generation, int64_t n_drafts) {
  const int32_t first_row = in_.n_tokens() - 1 - static_cast<int32_t>(n_drafts);
  DraftPath path(generation);
  const int64_t n_replayed = replay_ && n_drafts > 0 ? replay_->n_accepted(generation, n_drafts) : 0;
  for (int64_t i = 0; i <= n_drafts; ++i) {
    const std::optional<int32_t> before = i > 0 ? std::optional(generation.drafts[i - 1]) : std::nullopt;
    if (before) path.take(*before);
    add_sample(generation, first_row + static_cast<int32_t>(i), before);
    if (replay_ && i < n_drafts) steer(generation.drafts[i], i < n_replayed);
  }
}

// The sampler does all it does, and takes or leaves the draft.
void StepBuilder::steer(int32_t draft, bool accept) {
  constexpr float kSure = 1e6f;
  in_.bias_ids.push_back(draft);
  in_.bias_values.push_back(accept ? kSure : -kSure);
  ++in_.sample_rows.back().bias_end;
}

void StepBuilder::add_sample(Generation& generation, int32_t row_id, std::optional<int32_t> draft_before) {
  const GenerateRequest& request = generation.request;
  SampleRow row;
  row.slot = generation.slot;
  row.position = static_cast<int32_t>(generation.length());
  row.seed = request.seed;
  row.temperature = request.temperature;
  row.top_p = request.top_p;
  row.min_p = request.min_p;
  row.top_k = request.top_k;
  row.repetition_penalty = request.repetition_penalty;
  row.presence_penalty = request.presence_penalty;
  row.frequency_penalty = request.frequency_penalty;
  row.n_logprobs = request.n_logprobs;
  row.forced_token = generation.forced_token();
  if (draft_before) row.if_previous = std::max(*draft_before, 0);
  if (draft_before && *draft_before < 0)
    in_.drafted.push_back({~*draft_before, DraftedValue::Use::if_previous, static_cast<int32_t>(in_.sample_rows.size())});
  row.bias_begin = static_cast<int32_t>(in_.bias_ids.size());
  for (const auto& [id, bias] : request.logit_bias) {
    in_.bias_ids.push_back(id);
    in_.bias_values.push_back(bias);
  }
  row.bias_end = static_cast<int32_t>(in_.bias_ids.size());
  row.ban_begin = static_cast<int32_t>(in_.ban_ids.size());
  generation.append_bans(in_.ban_ids);
  row.ban_end = static_cast<int32_t>(in_.ban_ids.size());
  if (generation.append_mask(in_.masks)) row.mask_row = n_masks_++;
  in_.sample_rows.push_back(row);
  in_.sample_row_ids.push_back(row_id);
  sampled_rows_.push_back({&generation, -1});
}

}  // namespace sigmoe
