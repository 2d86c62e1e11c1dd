#include "engine/nodes/step_codec.h"

#include <algorithm>
#include <cstring>

#include "engine/schedule/page_pool.h"
#include "engine/speculation/depth_control.h"

namespace sigmoe {
namespace {

using Ids = std::vector<int32_t>;

void put(std::string& out, const Ids& values) {
  const uint64_t n = values.size();
  out.append(reinterpret_cast<const char*>(&n), sizeof n);
  out.append(reinterpret_cast<const char*>(values.data()), n * sizeof(int32_t));
}

void require(bool condition, const char* what) {
  if (!condition)
    throw EngineError(ErrorCode::device, std::string("the leader sent a step that cannot be run here: ") + what,
                      "start all nodes with the same version, model and flags");
}

void require_all(const Ids& values, int64_t low, int64_t end, const char* what) {
  for (const int32_t value : values) require(value >= low && value < end, what);
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes.substr(1)) {}

  Ids ids(size_t most, const char* what) {
    uint64_t n = 0;
    require(left_.size() >= sizeof n, "it ends too early");
    std::memcpy(&n, left_.data(), sizeof n);
    left_.remove_prefix(sizeof n);
    require(n <= most && n * sizeof(int32_t) <= left_.size(), what);
    Ids values(n);
    if (n > 0) std::memcpy(values.data(), left_.data(), n * sizeof(int32_t));
    left_.remove_prefix(n * sizeof(int32_t));
    return values;
  }
  void end() const { require(left_.empty(), "it goes on behind its end"); }
  bool at_end() const { return left_.empty(); }

 private:
  std::string_view left_;
};

int64_t most_pages(const CommandLimits& limits) { return limits.runner.n_pages + 64; }  // tables come in steps of a few pages

}  // namespace

std::string encode_step(const StepInputs& inputs) {
  SIGMOE_CHECK(inputs.drafted.empty(), "drafts of a world of several nodes are on the host");
  std::string out(1, static_cast<char>(NodeCommand::step));
  for (const Ids* ids : {&inputs.token_ids, &inputs.positions, &inputs.seq_offsets, &inputs.page_tables, &inputs.feature_rows,
                         &inputs.next_ids, &inputs.sample_row_ids, &inputs.logits_row_ids, &inputs.mtp_row_ids})
    put(out, *ids);
  Ids behind_drafts;  // rows that no block of logits begins with
  for (size_t row = 0; row < inputs.sample_rows.size(); ++row)
    if (inputs.sample_rows[row].if_previous >= 0) behind_drafts.push_back(static_cast<int32_t>(row));
  put(out, behind_drafts);
  put(out, {inputs.max_pages});
  return out;
}

NodeCommand command_of(std::string_view bytes) {
  require(
      !bytes.empty() && (bytes[0] == static_cast<char>(NodeCommand::step) || bytes[0] == static_cast<char>(NodeCommand::draft)),
      "it is of no known kind");
  return static_cast<NodeCommand>(bytes[0]);
}

StepInputs decode_step(std::string_view bytes, const CommandLimits& limits) {
  const auto most_rows = static_cast<size_t>(limits.runner.max_tokens);
  Reader in(bytes);
  StepInputs step;
  step.token_ids = in.ids(most_rows, "it has more tokens than a step takes");
  const size_t n_rows = step.token_ids.size();
  step.positions = in.ids(n_rows, "it has more positions than tokens");
  step.seq_offsets = in.ids(n_rows + 1, "it has more sequences than tokens");
  step.page_tables = in.ids(n_rows * static_cast<size_t>(most_pages(limits)), "its page tables are too large");
  step.feature_rows = in.ids(n_rows, "it has more feature rows than tokens");
  step.next_ids = in.ids(n_rows, "it has more next tokens than tokens");
  step.sample_row_ids = in.ids(n_rows, "it samples more rows than it has");
  step.logits_row_ids = in.ids(n_rows, "it wants more logits than it has rows");
  step.mtp_row_ids = in.ids(n_rows, "it wants more MTP logits than it has rows");
  const Ids behind_drafts = in.ids(step.sample_row_ids.size(), "it has more drafts than rows to sample");
  const Ids max_pages = in.ids(1, "it has several widths");
  in.end();

  require(n_rows > 0 && step.positions.size() == n_rows && step.seq_offsets.size() >= 2 && max_pages.size() == 1 &&
              (step.feature_rows.empty() || step.feature_rows.size() == n_rows) &&
              (step.next_ids.empty() || step.next_ids.size() == n_rows),
          "its parts are of different sizes");
  const auto rows = static_cast<int64_t>(n_rows);
  require_all(step.token_ids, 0, limits.vocab_size, "a token is outside the vocabulary");
  require_all(step.next_ids, 0, limits.vocab_size, "a token is outside the vocabulary");
  require_all(step.positions, 0, limits.runner.n_positions, "a position is outside the context");
  require_all(step.page_tables, 0, limits.runner.n_pages, "a page is outside the cache");
  require_all(step.feature_rows, 0, limits.runner.features.n_rows, "a feature row is outside its memory");
  for (const Ids* ids : {&step.sample_row_ids, &step.logits_row_ids, &step.mtp_row_ids})
    require_all(*ids, 0, rows, "a row is not of the step");
  require(step.mtp_row_ids.empty() || (limits.runner.mtp && !step.next_ids.empty()),
          "it wants MTP logits, and no MTP layer is loaded");
  require(step.next_ids.empty() || limits.runner.mtp, "it wants MTP logits, and no MTP layer is loaded");
  step.max_pages = max_pages[0];
  require(step.max_pages > 0 && step.page_tables.size() == static_cast<size_t>(step.n_seqs()) * step.max_pages,
          "its page tables are of another size");
  require(step.seq_offsets.front() == 0 && step.seq_offsets.back() == rows, "its sequences do not cover its rows");
  for (int b = 0; b < step.n_seqs(); ++b) {
    require(step.seq_offsets[b] <= step.seq_offsets[b + 1], "its sequences are out of order");
    for (int32_t row = step.seq_offsets[b]; row < step.seq_offsets[b + 1]; ++row) {
      require(step.positions[row] / kPageTokens < step.max_pages, "a position is on no page");
      require(row == step.seq_offsets[b] || step.positions[row] >= step.positions[row - 1], "positions are out of order");
    }
  }
  step.sample_rows.resize(step.sample_row_ids.size());
  for (const int32_t row : behind_drafts) {
    require(row >= 0 && row < static_cast<int64_t>(step.sample_rows.size()), "a draft is of no row");
    step.sample_rows[row].if_previous = 0;
  }
  int chain = 0;  // a block of logits must begin somewhere
  for (const SampleRow& row : step.sample_rows) {
    chain = row.if_previous < 0 ? 0 : chain + 1;
    require(chain <= kMaxDraftDepth, "a chain of drafts is too long");
  }
  require(step.sample_rows.empty() || step.sample_rows[0].if_previous < 0, "a chain of drafts has no first row");
  return step;
}

std::string encode_drafts(const std::vector<DraftTask>& tasks) {
  std::string out(1, static_cast<char>(NodeCommand::draft));
  for (const DraftTask& task : tasks) {
    put(out, {static_cast<int32_t>(task.begin), static_cast<int32_t>(task.end), task.first_feature_row, task.feature_rows,
              task.ring_row, task.depth});
    const std::vector<int32_t>& tokens = task.sequence->tokens;
    put(out, Ids(tokens.begin() + task.begin, tokens.begin() + task.end + 1));
    put(out, task.sequence->pages);
  }
  return out;
}

DecodedDrafts decode_drafts(std::string_view bytes, const CommandLimits& limits) {
  const auto most_rows = static_cast<size_t>(limits.runner.max_tokens);
  require(limits.runner.mtp, "it drafts, and no MTP layer is loaded");
  DecodedDrafts out;
  for (Reader in(bytes); !in.at_end();) {
    require(out.tasks.size() < static_cast<size_t>(limits.runner.max_seqs), "it drafts for more sequences than there are");
    const Ids facts = in.ids(6, "it says too much of a sequence");
    require(facts.size() == 6, "it says too little of a sequence");
    auto sequence = std::make_unique<Sequence>();
    DraftTask task;
    task.sequence = sequence.get();
    task.begin = facts[0];
    task.end = facts[1];
    task.first_feature_row = facts[2];
    task.feature_rows = facts[3];
    task.ring_row = facts[4];
    task.depth = facts[5];
    require(task.begin >= 0 && task.end >= task.begin && task.end - task.begin <= limits.runner.max_tokens && task.depth >= 0 &&
                task.depth <= kMaxDraftDepth && task.end + task.depth <= limits.runner.n_positions,
            "a sequence to draft for is outside the context");
    require(task.depth == 0 || task.end > task.begin, "a sequence to draft for has no new token");
    const Ids tokens = in.ids(most_rows + 1, "a sequence has too many new tokens");
    require(static_cast<int64_t>(tokens.size()) == task.end - task.begin + 1, "tokens and positions are of different sizes");
    require_all(tokens, 0, limits.vocab_size, "a token is outside the vocabulary");
    sequence->tokens.resize(task.begin);
    sequence->tokens.insert(sequence->tokens.end(), tokens.begin(), tokens.end());
    sequence->pages = in.ids(static_cast<size_t>(limits.runner.n_pages), "a sequence has more pages than there are");
    require_all(sequence->pages, 0, limits.runner.n_pages, "a page is outside the cache");
    require(static_cast<int64_t>(sequence->pages.size()) * kPageTokens >= task.end + std::max(0, task.depth - 1),
            "a sequence to draft for lacks pages");
    const auto known = [&](int32_t row) { return row >= 0 && row < limits.runner.features.n_rows; };
    require(task.feature_rows >= 0 && known(task.feature_rows > 0 ? task.ring_row : task.first_feature_row),
            "a feature row is outside its memory");
    for (int64_t p = task.begin; p < task.end; ++p)
      require(task.feature_row(p) >= 0 && task.feature_row(p) < limits.runner.features.n_rows,
              "a feature row is outside its memory");
    out.sequences.push_back(std::move(sequence));
    out.tasks.push_back(std::move(task));
  }
  return out;
}

}  // namespace sigmoe
