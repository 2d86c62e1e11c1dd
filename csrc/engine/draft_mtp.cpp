// The checkpoint's own MTP layer as a draft: reads the final hidden states, shares embeddings and head, and is run again on
// its own output for every further token; reference/model.md 3.3.
#include "engine/draft_model.h"

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
  const LinearWeight& head() const override { return *target_.weights().lm_head; }

  void take_features(const int32_t* feature_rows, int n_rows) override {
    const int64_t width = target_.config().hidden_size;
    backend_.copy_rows(target_.features(), feature_rows, width, state(), nullptr, width, n_rows, static_cast<int>(width));
  }

  void forward(const BatchView& batch, const int32_t* next_ids) override { target_.graph().forward_mtp(batch, next_ids); }
};

}  // namespace

std::unique_ptr<Drafter> make_mtp_drafter(RankRunner& target, const DrafterLimits& limits) {
  return std::make_unique<MtpDrafter>(target, limits);
}

}  // namespace sigmoe
