#include "engine/speculation/draft_model.h"

#include <algorithm>

#include "engine/forward/bucket.h"
#include "engine/forward/packer.h"
#include "engine/speculation/draft_pass.h"

namespace sigmoe {

ModelDrafter::ModelDrafter(RankRunner& target, const DrafterLimits& limits, int64_t vocab_size, int64_t width)
    : target_(target),
      backend_(target.backend()),
      limits_(limits),
      most_tasks_(target.records_steps() ? bucket_of(limits.max_seqs) : limits.max_seqs),
      vocab_size_(vocab_size),
      width_(width) {
  hidden_ = backend_.alloc(sizeof(float) * most_tasks_ * width, "draft hidden states");
  if (target.records_steps()) chain_ = backend_.alloc(sizeof(int32_t) * kMaxDraftDepth * most_tasks_, "drafted tokens");
  const size_t rows = std::min(kDraftHeadRows, most_tasks_);
  logits_ = backend_.alloc(sizeof(float) * rows * vocab_size, "draft logits");
  constexpr size_t kSampledBytes = (2 + 2 * kMaxLogprobs) * 4;  // a token and, unused, what the sampler reports with it
  tokens_ = backend_.alloc(rows * kSampledBytes, "drafted tokens");
  SampleRow greedy;
  greedy.slot = -1;
  greedy.temperature = 0;
  const std::vector<SampleRow> all(rows, greedy);
  greedy_rows_ = backend_.alloc(rows * sizeof(SampleRow), "drafted tokens");
  backend_.upload(greedy_rows_.data(), all.data(), rows * sizeof(SampleRow));
}

void ModelDrafter::draft_by_passes(std::vector<DraftTask>& tasks, DraftTrace* trace) {
  // Those that go deepest first: every pass is over the first few.
  std::stable_sort(tasks.begin(), tasks.end(), [](const DraftTask& a, const DraftTask& b) { return a.depth > b.depth; });
  for (size_t first = 0; first < tasks.size();) first = take_in(tasks, first, trace);
  const auto n_deeper = [&](int depth) {
    return static_cast<size_t>(
        std::count_if(tasks.begin(), tasks.end(), [&](const DraftTask& task) { return task.depth > depth; }));
  };
  const int width = static_cast<int>(width_);
  size_t n = n_deeper(1);
  backend_.copy_rows(hidden_.as<float>(), nullptr, width_, state(), nullptr, width_, static_cast<int>(n), width);
  for (int depth = 1; (n = n_deeper(depth)) > 0; ++depth) {
    const std::span<DraftTask> going_on(tasks.data(), n);
    Pass next;
    for (const DraftTask& task : going_on) {
      next.add(task.end - 1 + depth, task.drafts.back());
      next.seq_offsets.push_back(static_cast<int32_t>(next.positions.size()));
    }
    next.add_tables(going_on);
    run_pass(next, false, trace);
    append_drafts(going_on, nullptr, trace);
  }
}

// The true features of as many tasks from `first` on as fit a pass, and the first draft of those that want any; returns the
// first task that did not fit. hidden_ then holds the hidden states behind which the second draft is made, by task.
size_t ModelDrafter::take_in(std::vector<DraftTask>& tasks, size_t first, DraftTrace* trace) {
  Pass pass;
  size_t end = first, n_drafting = 0;
  for (; end < tasks.size(); ++end) {
    const DraftTask& task = tasks[end];
    const auto n_rows = static_cast<int64_t>(pass.positions.size()) + task.end - task.begin;
    if (n_rows > limits_.max_rows && end > first) break;
    SIGMOE_CHECK(n_rows <= limits_.max_rows, "a drafting pass of too many rows");
    for (int64_t p = task.begin; p < task.end; ++p) {
      pass.add(p, task.sequence->tokens[p + 1]);
      pass.feature_rows.push_back(task.feature_row(p));
    }
    pass.seq_offsets.push_back(static_cast<int32_t>(pass.positions.size()));
    if (task.depth == 0) continue;
    pass.last_rows.push_back(pass.seq_offsets.back() - 1);
    ++n_drafting;
  }
  if (pass.positions.empty()) return end;
  pass.add_tables(std::span(tasks).subspan(first, end - first));
  run_pass(pass, true, trace);
  if (n_drafting == 0) return end;
  const auto* last_rows = reinterpret_cast<const int32_t*>(input_.as<std::byte>() + last_rows_at_);
  append_drafts(std::span(tasks).subspan(first, n_drafting), last_rows, trace);
  backend_.copy_rows(state(), last_rows, width_, hidden_.as<float>() + first * width_, nullptr, width_,
                     static_cast<int>(n_drafting), static_cast<int>(width_));
  return end;
}

void ModelDrafter::run_pass(const Pass& pass, bool takes_features, DraftTrace* trace) {
  Packer packer(staging_);
  const size_t next_ids = packer.put(pass.next_ids), positions = packer.put(pass.positions),
               seq_offsets = packer.put(pass.seq_offsets), page_tables = packer.put(pass.page_tables),
               feature_rows = packer.put(pass.feature_rows);
  last_rows_at_ = packer.put(pass.last_rows);
  if (input_.bytes() < staging_.size()) input_ = backend_.alloc(staging_.size() * 2, "draft inputs");
  backend_.upload(input_.data(), staging_.data(), staging_.size());
  const auto at = [&](size_t offset) { return reinterpret_cast<const int32_t*>(input_.as<std::byte>() + offset); };
  const int n_rows = static_cast<int>(pass.positions.size());
  const BatchView batch{n_rows,         static_cast<int>(pass.seq_offsets.size()) - 1,
                        pass.max_pages, at(next_ids),
                        at(positions),  at(seq_offsets),
                        at(page_tables)};
  if (takes_features) take_features(at(feature_rows), n_rows);
  if (takes_features && trace) {
    trace->fused.resize(n_rows * width_);
    backend_.download(trace->fused.data(), state(), trace->fused.size() * sizeof(float));
  }
  forward(batch, at(next_ids));
}

// Of the first rows of logits_.
SampleArgs ModelDrafter::most_likely(int n_rows) const {
  const int at_once = std::min(kDraftHeadRows, most_tasks_);
  SampleArgs args;
  args.logits = logits_.as<float>();
  args.n_rows = n_rows;
  args.vocab_size = static_cast<int>(vocab_size_);
  args.rows = greedy_rows_.as<SampleRow>();
  args.tokens = tokens_.as<int32_t>();
  args.logprobs = tokens_.as<float>() + at_once;
  args.top_ids = tokens_.as<int32_t>() + 2 * at_once;
  args.top_logprobs = tokens_.as<float>() + (2 + kMaxLogprobs) * at_once;
  return args;
}

// The most likely token of each task; its row of the pass is row_ids[task], or the task's own number.
void ModelDrafter::append_drafts(std::span<DraftTask> tasks, const int32_t* row_ids, DraftTrace* trace) {
  const int at_once = std::min(kDraftHeadRows, most_tasks_), n_tasks = static_cast<int>(tasks.size());
  drafted_.resize(n_tasks);
  if (trace) trace->logits.emplace_back(n_tasks * vocab_size_);
  for (int first = 0; first < n_tasks; first += at_once) {
    const int n = std::min(at_once, n_tasks - first);
    const float* rows = row_ids ? normed() : normed() + first * width_;
    head_logits(rows, row_ids ? row_ids + first : nullptr, n, logits_.as<float>());
    if (trace)
      backend_.download(trace->logits.back().data() + first * vocab_size_, logits_.data(), n * vocab_size_ * sizeof(float));
    const SampleArgs args = most_likely(n);
    backend_.sample(args);
    backend_.download(drafted_.data() + first, args.tokens, n * sizeof(int32_t));
  }
  for (int b = 0; b < n_tasks; ++b) tasks[b].drafts.push_back(target_id(drafted_[b]));
}

}  // namespace sigmoe
