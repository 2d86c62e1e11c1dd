#include "engine/forward/bucket.h"

#include <algorithm>

namespace sigmoe {
namespace {

// Rows of a sequence whose steps come in few sizes: a token, or a chain of drafts behind one.
constexpr int kMostChainRows = 16;

// Repeats the last n rows of sequence b as a sequence of its own.
void repeat_rows(StepInputs& in, int b, int n) {
  const int32_t first = in.seq_offsets[b + 1] - n, to = in.n_tokens();
  SampleRow unnoticed;
  unnoticed.slot = -1;
  unnoticed.forced_token = 0;
  const size_t n_drafted = in.drafted.size();
  for (int32_t i = 0; i < n; ++i) {
    in.token_ids.push_back(in.token_ids[first + i]);
    in.positions.push_back(in.positions[first + i]);
    if (!in.feature_rows.empty()) in.feature_rows.push_back(in.feature_rows[first + i]);
    in.sample_rows.push_back(unnoticed);
    in.sample_row_ids.push_back(to + i);
  }
  for (size_t d = 0; d < n_drafted; ++d) {
    const DraftedValue from = in.drafted[d];
    if (from.use == DraftedValue::Use::token && from.at >= first && from.at < first + n)
      in.drafted.push_back({from.chain_index, from.use, to + from.at - first});
  }
  in.seq_offsets.push_back(in.n_tokens());
  const auto pages = static_cast<size_t>(b) * in.max_pages;
  for (int page = 0; page < in.max_pages; ++page) in.page_tables.push_back(in.page_tables[pages + page]);
}

}  // namespace

int bucket_of(int n) {
  int step = 1;
  while (n > 8 * step) step *= 2;
  return (n + step - 1) / step * step;
}

int coarse_bucket_of(int n) {
  int octave = 1;
  while (octave < n) octave *= 2;
  return octave >= 4 && n <= octave / 4 * 3 ? octave / 4 * 3 : octave;
}

bool samples_every_row(const StepInputs& inputs) {
  if (!inputs.next_ids.empty() || !inputs.logits_row_ids.empty()) return false;
  if (static_cast<int>(inputs.sample_row_ids.size()) != inputs.n_tokens()) return false;
  for (int row = 0; row < inputs.n_tokens(); ++row)
    if (inputs.sample_row_ids[row] != row) return false;
  for (int b = 0; b < inputs.n_seqs(); ++b)
    if (inputs.seq_offsets[b + 1] - inputs.seq_offsets[b] > kMostChainRows) return false;
  return true;
}

void pad_to_bucket(StepInputs& in, int64_t most_rows) {
  const int n_rows = bucket_of(in.n_tokens());
  if (n_rows > most_rows) return;
  const bool chains = in.n_tokens() > in.n_seqs();
  int longest = 0;
  for (int b = 1; b < in.n_seqs(); ++b)
    if (in.seq_offsets[b + 1] - in.seq_offsets[b] > in.seq_offsets[longest + 1] - in.seq_offsets[longest]) longest = b;
  const int length = in.seq_offsets[longest + 1] - in.seq_offsets[longest];
  while (in.n_tokens() < n_rows) repeat_rows(in, longest, std::min(length, n_rows - in.n_tokens()));
  if (!chains) return;
  // The last sequences have no rows. As many as rows would say that each has one.
  const int n_seqs = std::min(coarse_bucket_of(in.n_seqs()), n_rows - 1);
  in.seq_offsets.resize(n_seqs + 1, in.n_tokens());
  in.page_tables.resize(static_cast<size_t>(n_seqs) * in.max_pages, 0);
}

}  // namespace sigmoe
