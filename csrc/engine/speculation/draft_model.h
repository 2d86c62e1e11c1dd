// A draft model of one layer on the target's pages: takes in the target's features of new tokens, then runs ahead on its own
// hidden states, a pass per draft over all sequences. What EAGLE3 and MTP differ in is their layer.
#pragma once

#include <span>
#include <vector>

#include "engine/speculation/depth_control.h"
#include "engine/speculation/drafter.h"

namespace sigmoe {

class ModelDrafter : public Drafter {
 public:
  bool reads_features() const override { return true; }
  void draft(std::vector<DraftTask>& tasks, DraftTrace* trace = nullptr) override;
  const int32_t* chain() const override { return chain_.as<int32_t>(); }
  void fetch(std::vector<DraftTask>& tasks) override;
  double device_ms() const override;

 protected:
  // vocab_size of its head, width of its hidden states.
  ModelDrafter(RankRunner& target, const DrafterLimits& limits, int64_t vocab_size, int64_t width);

  // Hidden states of a pass: one row per token, what goes in and then what comes out.
  virtual float* state() = 0;
  // state (n, D) = the hidden states that features (n rows, picked by feature_rows on the device) stand for.
  virtual void take_features(const int32_t* feature_rows, int n_rows) = 0;
  // One pass: row t sees its own token's hidden state and the token after it, next_ids (T) on the device.
  virtual void forward(const BatchView& batch, const int32_t* next_ids) = 0;
  virtual const float* normed() const = 0;  // (T, D) after forward(): what the head reads
  // logits (n, V) of rows of normed(), picked by row_ids on the device (null: the first n of `rows`).
  virtual void head_logits(const float* rows, const int32_t* row_ids, int n_rows, float* logits) = 0;
  virtual int32_t target_id(int32_t draft_id) const { return draft_id; }
  virtual const int32_t* target_ids() const { return nullptr; }  // target_id() of all draft ids, on the device; null: the same

  RankRunner& target_;
  Backend& backend_;

 private:
  struct Pass;
  void draft_by_passes(std::vector<DraftTask>& tasks, DraftTrace* trace);
  void run_pass(const Pass& pass, bool takes_features, DraftTrace* trace);
  size_t take_in(std::vector<DraftTask>& tasks, size_t first, DraftTrace* trace);
  void append_drafts(std::span<DraftTask> tasks, const int32_t* row_ids, DraftTrace* trace);
  SampleArgs most_likely(int n_rows) const;

  struct Chain;
  bool may_record(const std::vector<DraftTask>& tasks) const;
  Chain upload_chain(const std::vector<DraftTask>& tasks);
  void run_chain(const Chain& chain);
  void draft_on_device(const int32_t* row_ids, int n, int32_t* drafts);

  DrafterLimits limits_;
  int most_tasks_;  // of a chain, padding included
  int64_t vocab_size_, width_;
  DeviceBuffer hidden_;  // (sequences, D) behind which the second draft is made
  DeviceBuffer logits_, tokens_, greedy_rows_;
  DeviceBuffer input_;       // what a pass uploads, in one piece
  size_t last_rows_at_ = 0;  // bytes into it
  DeviceBuffer chain_;       // (kMaxDraftDepth, most_tasks_) drafts that recorded passes left, where passes are recorded
  bool replayed_ = false;    // by the last draft()
  std::vector<std::byte> staging_;
  std::vector<int32_t> drafted_;
};

}  // namespace sigmoe
