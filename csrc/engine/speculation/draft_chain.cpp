// All passes of a draft model as one recording, whose drafts stay on the device: a pass reads its tokens where the one before
// left them, and so does the step that checks them.
#include <algorithm>

#include "engine/forward/bucket.h"
#include "engine/forward/packer.h"
#include "engine/speculation/draft_pass.h"

namespace sigmoe {
namespace {

constexpr int kDraftingBegins = 2, kDraftingEnds = 3;  // marks on the device; a step has others

}  // namespace

// All passes of a draft(), on the device. Rows of the first pass are padded with repeats of a last row, tasks with repeats of
// the first task, and every task goes as deep as the deepest: what that costs is less than knowing better.
struct ModelDrafter::Chain {
  BatchView first, next;  // the passes behind the first differ in their positions
  const int32_t *next_ids, *feature_rows, *last_rows;
  const int32_t* positions;  // (depth - 1, n_tasks)
  int depth, n_tasks;
  uint64_t key;
};

void ModelDrafter::draft(std::vector<DraftTask>& tasks, DraftTrace* trace) {
  replayed_ = false;
  if (trace || !may_record(tasks)) return draft_by_passes(tasks, trace);
  const Chain chain = upload_chain(tasks);
  replayed_ = backend_.would_replay(chain.key);
  backend_.mark(kDraftingBegins);
  backend_.run_recorded(chain.key, [&] { run_chain(chain); });
  backend_.mark(kDraftingEnds);
  for (size_t b = 0; b < tasks.size(); ++b)
    for (int i = 0; i < tasks[b].depth; ++i) tasks[b].drafts.push_back(~(i * most_tasks_ + static_cast<int32_t>(b)));
}

// Prompts are taken in as they come: their sizes are not seen twice.
bool ModelDrafter::may_record(const std::vector<DraftTask>& tasks) const {
  if (!target_.records_steps()) return false;
  int64_t n_rows = 0;
  for (const DraftTask& task : tasks) {
    if (task.depth == 0 || task.end == task.begin || task.end - task.begin > kMaxDraftDepth + 1) return false;
    n_rows += task.end - task.begin;
  }
  return coarse_bucket_of(static_cast<int>(n_rows)) <= limits_.max_rows && static_cast<int>(tasks.size()) <= limits_.max_seqs;
}

ModelDrafter::Chain ModelDrafter::upload_chain(const std::vector<DraftTask>& tasks) {
  Chain chain{};
  for (const DraftTask& task : tasks) chain.depth = std::max(chain.depth, task.depth);
  Pass pass;
  for (const DraftTask& task : tasks) {
    for (int64_t p = task.begin; p < task.end; ++p) {
      pass.add(p, task.sequence->tokens[p + 1]);
      pass.feature_rows.push_back(task.feature_row(p));
    }
    pass.seq_offsets.push_back(static_cast<int32_t>(pass.positions.size()));
    pass.last_rows.push_back(pass.seq_offsets.back() - 1);
  }
  const int n_rows = coarse_bucket_of(static_cast<int>(pass.positions.size()));
  chain.n_tasks = bucket_of(static_cast<int>(tasks.size()));
  pass.last_rows.resize(chain.n_tasks, pass.last_rows[0]);
  while (static_cast<int>(pass.positions.size()) < n_rows) {
    const int32_t repeated = pass.last_rows[0];
    pass.add(pass.positions[repeated], pass.next_ids[repeated]);
    pass.feature_rows.push_back(pass.feature_rows[repeated]);
    pass.seq_offsets.push_back(static_cast<int32_t>(pass.positions.size()));
  }
  // The last sequences have no rows. As many as rows only where each has one.
  const int n_given = static_cast<int>(pass.seq_offsets.size()) - 1;
  const int n_seqs = n_given == n_rows ? n_rows : std::min(coarse_bucket_of(n_given), n_rows - 1);
  pass.seq_offsets.resize(n_seqs + 1, n_rows);

  // Where a task has no pages of its own for the deepest draft, the page behind the last one takes it.
  int64_t longest = 0;
  for (const DraftTask& task : tasks) longest = std::max(longest, task.end + chain.depth);
  pass.max_pages = static_cast<int>(pages_for(std::min(longest, limits_.n_positions)));
  pass.max_pages = std::max(pass.max_pages, most_pages(tasks));
  pass.max_pages = (pass.max_pages + kDraftTableStep - 1) / kDraftTableStep * kDraftTableStep;
  pass.page_tables.assign(static_cast<size_t>(n_rows) * pass.max_pages, static_cast<int32_t>(limits_.n_pages));
  for (int b = 0; b < n_rows; ++b) {
    const std::vector<int32_t>& pages = tasks[b < static_cast<int>(tasks.size()) ? b : 0].sequence->pages;
    std::copy(pages.begin(), pages.end(), pass.page_tables.begin() + static_cast<int64_t>(b) * pass.max_pages);
  }
  std::vector<int32_t> positions, offsets;
  for (int depth = 1; depth < chain.depth; ++depth)
    for (int b = 0; b < chain.n_tasks; ++b) {
      const DraftTask& task = tasks[b < static_cast<int>(tasks.size()) ? b : 0];
      positions.push_back(static_cast<int32_t>(std::min(task.end - 1 + depth, limits_.n_positions - 1)));
    }
  for (int b = 0; b <= chain.n_tasks; ++b) offsets.push_back(b);

  Packer packer(staging_);
  const size_t next_ids = packer.put(pass.next_ids), first_positions = packer.put(pass.positions),
               seq_offsets = packer.put(pass.seq_offsets), feature_rows = packer.put(pass.feature_rows),
               last_rows = packer.put(pass.last_rows), next_offsets = packer.put(offsets),
               page_tables = packer.put(pass.page_tables), next_positions = packer.put(positions);
  packer.end();
  if (input_.bytes() < staging_.size()) input_ = backend_.alloc(staging_.size() * 2, "draft inputs");
  backend_.upload(input_.data(), staging_.data(), staging_.size());
  const auto at = [&](size_t offset) { return reinterpret_cast<const int32_t*>(input_.as<std::byte>() + offset); };
  chain.first = {n_rows, n_seqs, pass.max_pages, at(next_ids), at(first_positions), at(seq_offsets), at(page_tables)};
  chain.next = {chain.n_tasks, chain.n_tasks, pass.max_pages, nullptr, nullptr, at(next_offsets), at(page_tables)};
  chain.next_ids = at(next_ids);
  chain.feature_rows = at(feature_rows);
  chain.last_rows = at(last_rows);
  chain.positions = at(next_positions);
  chain.key = reinterpret_cast<uintptr_t>(this) ^ reinterpret_cast<uintptr_t>(input_.data()) << 1;
  for (const int size : {n_rows, n_seqs, chain.n_tasks, chain.depth, pass.max_pages})
    chain.key = (chain.key ^ static_cast<uint64_t>(size)) * 0x9e3779b97f4a7c15ull, chain.key ^= chain.key >> 31;
  return chain;
}

// A pass reads its tokens where the one before left them.
void ModelDrafter::run_chain(const Chain& chain) {
  const int width = static_cast<int>(width_);
  int32_t* drafts = chain_.as<int32_t>();
  take_features(chain.feature_rows, chain.first.n_tokens);
  forward(chain.first, chain.next_ids);
  draft_on_device(chain.last_rows, chain.n_tasks, drafts);
  if (chain.depth == 1) return;
  backend_.copy_rows(state(), chain.last_rows, width_, hidden_.as<float>(), nullptr, width_, chain.n_tasks, width);
  backend_.copy_rows(hidden_.as<float>(), nullptr, width_, state(), nullptr, width_, chain.n_tasks, width);
  for (int depth = 1; depth < chain.depth; ++depth, drafts += most_tasks_) {
    BatchView batch = chain.next;
    batch.token_ids = drafts;
    batch.positions = chain.positions + static_cast<int64_t>(depth - 1) * chain.n_tasks;
    forward(batch, drafts);
    draft_on_device(nullptr, chain.n_tasks, drafts + most_tasks_);
  }
}

void ModelDrafter::draft_on_device(const int32_t* row_ids, int n, int32_t* drafts) {
  const int at_once = std::min(kDraftHeadRows, most_tasks_);
  for (int first = 0; first < n; first += at_once) {
    const int n_rows = std::min(at_once, n - first);
    const float* rows = row_ids ? normed() : normed() + first * width_;
    head_logits(rows, row_ids ? row_ids + first : nullptr, n_rows, logits_.as<float>());
    const SampleArgs args = most_likely(n_rows);
    backend_.sample(args);
    // Ids are 32-bit words like floats, and copied like them.
    const int32_t *from = target_ids() ? target_ids() : args.tokens, *from_ids = target_ids() ? args.tokens : nullptr;
    backend_.copy_rows(reinterpret_cast<const float*>(from), from_ids, 1, reinterpret_cast<float*>(drafts + first), nullptr, 1,
                       n_rows, 1);
  }
}

void ModelDrafter::fetch(std::vector<DraftTask>& tasks) {
  drafted_.resize(static_cast<size_t>(kMaxDraftDepth) * most_tasks_);
  backend_.download(drafted_.data(), chain_.data(), drafted_.size() * sizeof(int32_t));
  for (DraftTask& task : tasks)
    for (int32_t& draft : task.drafts)
      if (draft < 0) draft = drafted_[~draft];
}

double ModelDrafter::device_ms() const { return replayed_ ? backend_.ms_between(kDraftingBegins, kDraftingEnds) : 0; }

}  // namespace sigmoe
