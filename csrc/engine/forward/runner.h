// One rank's model: its weights, KV cache, activations and graph, and how a step's host data gets onto the device and its
// results back. World (world.h) runs the same step on every rank.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "engine/forward/graph.h"

namespace sigmoe {

// A sampler slot that gets a new sequence in this step.
struct SlotReset {
  int slot = 0;
  std::vector<int32_t> prompt, generated;
};

// A drafted token that is still on the device (Drafter::chain()), and where in the step it belongs.
struct DraftedValue {
  enum class Use : uint8_t { token, if_previous };
  int32_t chain_index = 0;
  Use use = Use::token;
  int32_t at = 0;  // row of token_ids or of sample_rows
};

// One step, on the host: what Scheduler planned, flattened.
struct StepInputs {
  std::vector<int32_t> token_ids, positions;  // (T)
  std::vector<int32_t> seq_offsets;           // (B + 1)
  std::vector<int32_t> page_tables;           // (B, max_pages)
  int max_pages = 0;
  std::vector<int32_t> feature_rows;  // (T) where each row's features go; empty: none are wanted
  std::vector<int32_t> next_ids;      // (T) each row's next token; empty unless MTP logits are wanted
  std::vector<SlotReset> resets;
  std::vector<int32_t> sample_row_ids;  // (R) rows in [0, T) that get a token
  std::vector<SampleRow> sample_rows;   // (R)
  std::vector<int32_t> bias_ids, ban_ids;
  std::vector<float> bias_values;
  std::vector<uint32_t> masks;          // (mask rows, mask_words(V)): tokens that may be sampled
  std::vector<int32_t> logits_row_ids;  // rows whose logits go back to the host
  std::vector<int32_t> mtp_row_ids;     // rows whose MTP logits go back
  std::vector<DraftedValue> drafted;    // filled in on the device
  const int32_t* chain = nullptr;       // what they are taken from
  bool timed = false;                   // StepOutputs::ms is wanted

  int n_tokens() const { return static_cast<int>(token_ids.size()); }
  int n_seqs() const { return static_cast<int>(seq_offsets.size()) - 1; }
};

struct StepOutputs {
  std::vector<int32_t> tokens;      // (R)
  std::vector<float> logprobs;      // (R)
  std::vector<int32_t> top_ids;     // (R, kMaxLogprobs)
  std::vector<float> top_logprobs;  // (R, kMaxLogprobs)
  std::vector<float> logits;        // (logits_row_ids, V)
  std::vector<float> mtp_logits;    // (mtp_row_ids, V)
  double ms = 0;  // of the device, from the first op to the last sampled token; 0: not measured, or not one to go by
  // A step that was only launched: where its samples land (Backend::start_download). -1: everything above is there.
  int landing = -1;
  bool with_logprobs = false, timed = false;  // of such a step
};

struct RunnerLimits {
  int64_t max_tokens = 512;  // per step
  int max_seqs = 32;         // per step, and sampler slots
  int64_t n_positions = 0;   // RoPE tables: positions [0, n_positions)
  int64_t n_pages = 0;
  bool mtp = false;
  FeatureTap features;   // what a draft model reads of this one
  int rows_per_seq = 1;  // that a step samples at most
};

class RankRunner {
 public:
  RankRunner(const ModelConfig& config, std::unique_ptr<Backend> backend, ModelWeights weights, Comm* comm, int rank, int world,
             const RunnerLimits& limits);

  // `outputs` is filled on the rank that samples (0) and ignored elsewhere.
  void run(const StepInputs& inputs, StepOutputs& outputs, Trace* trace = nullptr);
  // The same in two halves: a recorded step (outputs.landing >= 0) is only enqueued by the first, and one more may be launched
  // before it is finished. That one may take its tokens from sampled_tokens(), with them as its chain.
  void launch(const StepInputs& inputs, StepOutputs& outputs, Trace* trace = nullptr);
  void finish(StepOutputs& outputs);
  // On the device, of the step launched last, by its sampled rows.
  const int32_t* sampled_tokens() const { return step_output_.as<int32_t>(); }

  // Brings a step to a size that recordings exist for, where the device has any.
  void shape(StepInputs& inputs) const;
  bool records_steps() const { return backend_->records_steps() && !comm_; }

  Backend& backend() { return *backend_; }
  Graph& graph() { return graph_; }
  const ModelConfig& config() const { return config_; }
  Comm* comm() const { return comm_; }
  const RunnerLimits& limits() const { return limits_; }
  const ModelWeights& weights() const { return weights_; }
  Workspace& workspace() { return workspace_; }
  const float* features() const { return features_.as<float>(); }  // (limits.features.n_rows, its width)
  uint64_t kv_bytes() const { return kv_.bytes(); }
  uint64_t workspace_bytes() const;

 private:
  struct DeviceStep;
  DeviceStep upload(const StepInputs& inputs);
  void head(const int32_t* row_ids, int n_rows, const std::function<bool(int row)>& begins_block,
            const std::function<void(int first, int n)>& with_logits);
  void run_whole(const StepInputs& inputs, const DeviceStep& step, const FeatureSink* features, StepOutputs& outputs);
  void place_drafted(const DeviceStep& step);
  SampleArgs sample_args(const DeviceStep& step, int first, int n) const;
  void sample(const StepInputs& inputs, const DeviceStep& step, StepOutputs& outputs);
  void download_samples(const StepInputs& inputs, int first, int n, StepOutputs& outputs);
  void download_logits(const int32_t* row_ids, int n_rows, std::vector<float>& out);

  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  Comm* comm_;
  int rank_;
  RunnerLimits limits_;
  int head_rows_;  // of one block of logits
  HeadShard heads_;
  KvCache kv_;
  Workspace workspace_;
  Graph graph_;
  DeviceBuffer features_;     // (feature rows, width) for a draft model
  DeviceBuffer logits_;       // (head_rows, V)
  DeviceBuffer counts_;       // (slots, V) on rank 0
  DeviceBuffer step_input_;   // everything a step uploads, in one piece
  DeviceBuffer step_output_;  // tokens, logprobs and alternatives of a block of sampled rows
  std::vector<std::byte> staging_;
  int n_launched_ = 0;  // recorded steps; their samples land in turns
};

}  // namespace sigmoe
