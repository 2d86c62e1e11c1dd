// The checkpoint's own MTP layer as a draft: reads the final hidden states, shares embeddings and head, and is run again on
// its own output for every further token; reference/model.md 3.3. Its weights are sharded like the target's, so every rank runs
// it.
#include "engine/nodes/step_codec.h"
#include "engine/speculation/draft_model.h"

namespace sigmoe {
namespace {

class MtpDrafter : public ModelDrafter {
 public:
  MtpDrafter(RankRunner& target, const DrafterLimits& limits)
      : ModelDrafter(target, limits, target.config().vocab_size, target.config().hidden_size) {}

 protected:
  // Between steps nothing of the target's lives in its workspace.
  float* state() override { return target_.workspace().normed.as<float>(); }
  const float* normed() const override { return target_.workspace().normed.as<float>(); }
  void head_logits(const float* rows, const int32_t* row_ids, int n_rows, float* logits) override {
    const ModelWeights& weights = target_.weights();
    backend_.head_logits(rows, row_ids, n_rows, *weights.lm_head, target_.comm(), weights.vocab_widths, logits);
  }

  void take_features(const int32_t* feature_rows, int n_rows) override {
    const int64_t width = target_.config().hidden_size;
    backend_.copy_rows(target_.features(), feature_rows, width, state(), nullptr, width, n_rows, static_cast<int>(width));
  }

  void forward(const BatchView& batch, const int32_t* next_ids) override { target_.graph().forward_mtp(batch, next_ids); }
};

// Every rank drafts the same, each with its part of the weights: they meet in the sums and gathers.
class ShardedMtpDrafter : public Drafter {
 public:
  ShardedMtpDrafter(World& world, const DrafterLimits& limits) : world_(world) {
    for (int rank = 0; rank < world.size(); ++rank) ranks_.push_back(make_mtp_drafter(world.rank(rank), limits));
  }
  bool reads_features() const override { return true; }
  uint64_t bytes() const override {
    uint64_t total = 0;
    for (const auto& rank : ranks_) total += rank->bytes();
    return total;
  }
  void draft(std::vector<DraftTask>& tasks, DraftTrace* trace) override {
    world_.tell_nodes([&] { return encode_drafts(tasks); });
    std::vector<std::vector<DraftTask>> copies(ranks_.size() - 1, tasks);
    world_.on_every_rank([&](int rank) {
      if (rank == 0)
        ranks_[0]->draft(tasks, trace);
      else
        ranks_[rank]->draft(copies[rank - 1]);
    });
  }

 private:
  World& world_;
  std::vector<std::unique_ptr<Drafter>> ranks_;
};

}  // namespace

std::unique_ptr<Drafter> make_mtp_drafter(RankRunner& target, const DrafterLimits& limits) {
  return std::make_unique<MtpDrafter>(target, limits);
}

std::unique_ptr<Drafter> make_mtp_drafter(World& world, const DrafterLimits& limits) {
  if (world.size() == 1 && !world.node()) return make_mtp_drafter(world.rank(0), limits);
  return std::make_unique<ShardedMtpDrafter>(world, limits);
}

}  // namespace sigmoe
