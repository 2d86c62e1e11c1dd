#include "engine/forward/runner.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <initializer_list>
#include <utility>

#include "engine/forward/bucket.h"
#include "engine/forward/packer.h"
#include "engine/forward/sampled_block.h"

namespace sigmoe {
namespace {

// Logits exist for a block of rows at a time: 157,184 floats a row add up. A batch larger than a block reads the head again.
// A chain of drafts never straddles blocks, and is shorter than the smallest.
constexpr int kLeastHeadRows = 32, kMostHeadRows = 128;
constexpr int kMostRecordedRows = 256;  // of a step whose head is recorded with it: all rows are one block

int head_rows(const Backend& backend, const RunnerLimits& limits) {
  if (!backend.records_steps()) return std::clamp(limits.max_seqs, kLeastHeadRows, kMostHeadRows);
  return std::clamp(bucket_of(limits.max_seqs * limits.rows_per_seq), kLeastHeadRows, kMostRecordedRows);
}

// A size that changes with the requests, rounded up so that it changes rarely.
size_t room_for(size_t n) { return std::bit_ceil(std::max<size_t>(n, 64)); }

// Marks of a step on the device; a drafting run has others.
constexpr int kStepBegins = 0, kStepEnds = 1;

// Tells apart steps whose kernels take other arguments.
uint64_t step_key(const BatchView& batch, const int32_t* feature_rows) {
  uint64_t key = reinterpret_cast<uintptr_t>(batch.token_ids) ^ reinterpret_cast<uintptr_t>(feature_rows) << 1;
  for (const int size : {batch.n_tokens, batch.max_pages}) key = (key ^ static_cast<uint64_t>(size)) * 0x9e3779b97f4a7c15ull;
  return key;
}

uint64_t hash_of(std::initializer_list<uint64_t> values) {
  uint64_t hash = 14695981039346656037u;
  for (const uint64_t value : values) hash = (hash ^ value) * 0x9e3779b97f4a7c15ull, hash ^= hash >> 29;
  return hash;
}

}  // namespace

struct RankRunner::DeviceStep {
  BatchView batch;
  const int32_t* feature_rows;  // null: no features are wanted
  const int32_t* next_ids;
  const int32_t* sample_row_ids;
  const int32_t* logits_row_ids;
  const int32_t* mtp_row_ids;
  const int32_t *drafted_from, *drafted_to;  // (n_drafted) of inputs.chain, and words of the upload
  const int32_t* chain;
  int n_drafted;
  SampleArgs sample;
  uint64_t layout;  // where in the upload everything lies
};

RankRunner::RankRunner(const ModelConfig& config, std::unique_ptr<Backend> backend, ModelWeights weights, Comm* comm, int rank,
                       int world, const RunnerLimits& limits)
    : config_(config),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      comm_(comm),
      rank_(rank),
      limits_(limits),
      head_rows_(head_rows(*backend_, limits)),
      heads_(shard_heads(config, rank, world)),
      // A recorded chain of drafts goes as deep for all sequences: one page takes what has no room of its own.
      kv_(*backend_, config.n_layers + (limits.mtp ? 1 : 0), limits.n_pages + (limits.mtp && backend_->records_steps() ? 1 : 0),
          heads_.kv.size(), config.head_dim),
      workspace_(config, heads_, *backend_, limits.max_tokens, limits.n_positions, limits.mtp),
      graph_(config_, weights_, heads_, *backend_, comm, kv_, workspace_),
      logits_(backend_->alloc(sizeof(float) * head_rows_ * config.vocab_size, "logits")),
      step_output_(backend_->alloc(head_rows_ * SampledBlock::kRowBytes, "sampled tokens")) {
  const FeatureTap& tap = limits.features;
  if (tap.n_rows > 0) features_ = backend_->alloc(sizeof(float) * tap.n_rows * tap.width(config.hidden_size), "draft features");
  if (rank == 0) counts_ = backend_->alloc(sizeof(uint32_t) * limits.max_seqs * config.vocab_size, "token counts");
}

uint64_t RankRunner::workspace_bytes() const {
  return workspace_.bytes() + features_.bytes() + logits_.bytes() + counts_.bytes() + step_input_.bytes() +
         step_output_.bytes();
}

RankRunner::DeviceStep RankRunner::upload(const StepInputs& inputs) {
  Packer packer(staging_);
  const size_t token_ids = packer.put(inputs.token_ids), positions = packer.put(inputs.positions),
               seq_offsets = packer.put(inputs.seq_offsets), page_tables = packer.put(inputs.page_tables),
               feature_rows = packer.put(inputs.feature_rows), next_ids = packer.put(inputs.next_ids),
               sample_row_ids = packer.put(inputs.sample_row_ids), sample_rows = packer.put(inputs.sample_rows),
               bias_ids = packer.put(inputs.bias_ids, room_for(inputs.bias_ids.size())),
               bias_values = packer.put(inputs.bias_values, room_for(inputs.bias_values.size())),
               ban_ids = packer.put(inputs.ban_ids, room_for(inputs.ban_ids.size()));
  // Values from the device, by words of this upload. The first one again and again where there are fewer than a step
  // of so many rows can have.
  std::vector<int32_t> drafted_from, drafted_to;
  const auto word_of = [&](const DraftedValue& value) {
    constexpr size_t kRowWords = sizeof(SampleRow) / 4, kIfPrevious = offsetof(SampleRow, if_previous) / 4;
    return value.use == DraftedValue::Use::token ? token_ids / 4 + value.at
                                                 : sample_rows / 4 + value.at * kRowWords + kIfPrevious;
  };
  for (const DraftedValue& value : inputs.drafted) {
    drafted_from.push_back(value.chain_index);
    drafted_to.push_back(static_cast<int32_t>(word_of(value)));
  }
  if (!drafted_from.empty()) {
    const size_t n = 2 * static_cast<size_t>(inputs.n_tokens());  // a row has one as its token and one before it
    drafted_from.resize(n, drafted_from[0]);
    drafted_to.resize(n, drafted_to[0]);
  }
  const size_t from_at = packer.put(drafted_from), to_at = packer.put(drafted_to), masks = packer.put(inputs.masks),
               logits_row_ids = packer.put(inputs.logits_row_ids), mtp_row_ids = packer.put(inputs.mtp_row_ids);
  packer.end();
  if (step_input_.bytes() < staging_.size()) step_input_ = backend_->alloc(staging_.size() * 2, "step inputs");
  backend_->upload(step_input_.data(), staging_.data(), staging_.size());

  const auto at = [&]<typename T>(size_t offset, const T*) {
    return reinterpret_cast<const T*>(step_input_.as<std::byte>() + offset);
  };
  const int32_t* i32 = nullptr;
  DeviceStep step;
  step.batch = {inputs.n_tokens(),  inputs.n_seqs(),      inputs.max_pages,    at(token_ids, i32),
                at(positions, i32), at(seq_offsets, i32), at(page_tables, i32)};
  step.feature_rows = inputs.feature_rows.empty() ? nullptr : at(feature_rows, i32);
  step.next_ids = at(next_ids, i32);
  step.sample_row_ids = at(sample_row_ids, i32);
  step.logits_row_ids = at(logits_row_ids, i32);
  step.mtp_row_ids = at(mtp_row_ids, i32);
  step.drafted_from = at(from_at, i32);
  step.drafted_to = at(to_at, i32);
  step.n_drafted = static_cast<int>(drafted_from.size());
  step.chain = inputs.chain;
  step.sample.vocab_size = static_cast<int>(config_.vocab_size);
  step.sample.rows = at(sample_rows, static_cast<const SampleRow*>(nullptr));
  step.sample.bias_ids = at(bias_ids, i32);
  step.sample.bias_values = at(bias_values, static_cast<const float*>(nullptr));
  step.sample.ban_ids = at(ban_ids, i32);
  step.sample.masks = at(masks, static_cast<const uint32_t*>(nullptr));
  step.sample.counts = counts_.as<uint32_t>();
  step.layout = hash_of({feature_rows, next_ids, sample_row_ids, sample_rows, bias_ids, bias_values, ban_ids, from_at, to_at,
                         masks, reinterpret_cast<uintptr_t>(inputs.chain)});
  return step;
}

void RankRunner::shape(StepInputs& inputs) const {
  if (records_steps() && samples_every_row(inputs)) pad_to_bucket(inputs, limits_.max_tokens);
}

void RankRunner::run(const StepInputs& inputs, StepOutputs& outputs, Trace* trace) {
  launch(inputs, outputs, trace);
  finish(outputs);
}

void RankRunner::launch(const StepInputs& inputs, StepOutputs& outputs, Trace* trace) {
  if (rank_ == 0)
    for (const SlotReset& reset : inputs.resets)
      backend_->reset_counts(counts_.as<uint32_t>() + reset.slot * config_.vocab_size, static_cast<int>(config_.vocab_size),
                             reset.prompt.data(), static_cast<int>(reset.prompt.size()), reset.generated.data(),
                             static_cast<int>(reset.generated.size()));
  const DeviceStep step = upload(inputs);
  const FeatureSink sink{limits_.features, features_.as<float>(), step.feature_rows};
  const FeatureSink* features = step.feature_rows ? &sink : nullptr;
  const int n_rows = static_cast<int>(inputs.sample_rows.size());
  if (records_steps() && !trace && n_rows > 0 && n_rows <= head_rows_ && samples_every_row(inputs))
    return run_whole(inputs, step, features, outputs);

  // A pure decode step enqueues the same work whenever its sizes and addresses are the same: the batch's arrays come first in
  // the upload, so their sizes fix their places.
  if (inputs.timed) backend_->mark(kStepBegins);
  place_drafted(step);
  const bool decode = inputs.n_tokens() == inputs.n_seqs();
  if (decode && !trace)
    backend_->run_recorded(step_key(step.batch, step.feature_rows), [&] { graph_.forward(step.batch, nullptr, features); });
  else
    graph_.forward(step.batch, trace, features);
  sample(inputs, step, outputs);
  download_logits(step.logits_row_ids, static_cast<int>(inputs.logits_row_ids.size()), outputs.logits);
  if (!inputs.next_ids.empty()) {
    graph_.forward_mtp(step.batch, step.next_ids, trace);
    download_logits(step.mtp_row_ids, static_cast<int>(inputs.mtp_row_ids.size()), outputs.mtp_logits);
  }
  outputs.ms = inputs.timed && rank_ == 0 && n_rows > 0 ? backend_->ms_between(kStepBegins, kStepEnds) : 0;
}

// From the tokens to what is sampled behind each of them, as one recording.
void RankRunner::run_whole(const StepInputs& inputs, const DeviceStep& step, const FeatureSink* features,
                           StepOutputs& outputs) {
  const int n_rows = static_cast<int>(inputs.sample_rows.size());
  const uint64_t key = hash_of({step_key(step.batch, step.feature_rows), step.layout, static_cast<uint64_t>(step.batch.n_seqs),
                                static_cast<uint64_t>(step.n_drafted)});
  const bool replays = backend_->would_replay(key);
  if (inputs.timed) backend_->mark(kStepBegins);
  backend_->run_recorded(key, [&] {
    place_drafted(step);
    graph_.forward(step.batch, nullptr, features);
    backend_->head_logits(workspace_.normed.as<float>(), step.sample_row_ids, n_rows, *weights_.lm_head, nullptr,
                          weights_.vocab_widths, logits_.as<float>());
    backend_->sample(sample_args(step, 0, n_rows));
  });
  if (inputs.timed) backend_->mark(kStepEnds);
  resize_samples(outputs, n_rows);
  outputs.timed = inputs.timed && replays;
  outputs.with_logprobs = wants_logprobs(inputs);
  outputs.landing = n_launched_++ % Backend::kDownloads;
  backend_->start_download(outputs.landing, step_output_.data(),
                           outputs.with_logprobs ? step_output_.bytes() : n_rows * sizeof(int32_t));
}

void RankRunner::finish(StepOutputs& outputs) {
  if (outputs.landing < 0) return;
  std::byte* block = backend_->finish_download(std::exchange(outputs.landing, -1));
  take_samples(block, head_rows_, outputs.with_logprobs, 0, static_cast<int>(outputs.tokens.size()), outputs);
  outputs.ms = outputs.timed ? backend_->ms_between(kStepBegins, kStepEnds) : 0;
}

// Token ids are 32-bit words like floats, and copied like them.
void RankRunner::place_drafted(const DeviceStep& step) {
  if (step.n_drafted > 0)
    backend_->copy_rows(reinterpret_cast<const float*>(step.chain), step.drafted_from, 1, step_input_.as<float>(),
                        step.drafted_to, 1, step.n_drafted, 1);
}

// Final hidden states to logits, a block of rows at a time: with_logits(first, n) finds rows [first, first + n) in logits_.
// No block begins at a row for which begins_block is false.
void RankRunner::head(const int32_t* row_ids, int n_rows, const std::function<bool(int row)>& begins_block,
                      const std::function<void(int, int)>& with_logits) {
  for (int first = 0, n = 0; first < n_rows; first += n) {
    n = std::min(head_rows_, n_rows - first);
    while (first + n < n_rows && !begins_block(first + n)) --n;
    backend_->head_logits(workspace_.normed.as<float>(), row_ids + first, n, *weights_.lm_head, comm_, weights_.vocab_widths,
                          logits_.as<float>());
    if (rank_ == 0) with_logits(first, n);
  }
}

SampleArgs RankRunner::sample_args(const DeviceStep& step, int first, int n) const {
  SampleArgs args = step.sample;
  const SampledBlock on_device(step_output_.as<std::byte>(), head_rows_);
  args.logits = logits_.as<float>();
  args.tokens = on_device.tokens;
  args.logprobs = on_device.logprobs;
  args.top_ids = on_device.top_ids;
  args.top_logprobs = on_device.top_logprobs;
  args.rows = step.sample.rows + first;
  args.n_rows = n;
  return args;
}

void RankRunner::sample(const StepInputs& inputs, const DeviceStep& step, StepOutputs& outputs) {
  const int n_rows = static_cast<int>(inputs.sample_rows.size());
  resize_samples(outputs, n_rows);
  const auto begins_chain = [&](int row) { return inputs.sample_rows[row].if_previous < 0; };
  head(step.sample_row_ids, n_rows, begins_chain, [&](int first, int n) {
    backend_->sample(sample_args(step, first, n));
    if (inputs.timed) backend_->mark(kStepEnds);
    download_samples(inputs, first, n, outputs);
  });
}

// What the sampler has just found for rows [first, first + n).
void RankRunner::download_samples(const StepInputs& inputs, int first, int n, StepOutputs& outputs) {
  const bool logprobs = wants_logprobs(inputs);
  staging_.resize(logprobs ? step_output_.bytes() : n * sizeof(int32_t));
  backend_->download(staging_.data(), step_output_.data(), staging_.size());
  take_samples(staging_.data(), head_rows_, logprobs, first, n, outputs);
}

void RankRunner::download_logits(const int32_t* row_ids, int n_rows, std::vector<float>& out) {
  const size_t vocab = config_.vocab_size;
  out.resize(rank_ == 0 ? n_rows * vocab : 0);
  head(
      row_ids, n_rows, [](int) { return true; },
      [&](int first, int n) { backend_->download(out.data() + first * vocab, logits_.data(), n * vocab * sizeof(float)); });
}

}  // namespace sigmoe
