// EAGLE3: a draft layer that reads the target's residual stream at three depths; reference/model.md 5.5. Its head knows a part
// of the vocabulary, and target_ids says which.
#include <algorithm>

#include "engine/forward/kv_cache.h"
#include "engine/speculation/draft_checkpoint.h"
#include "engine/speculation/draft_model.h"

namespace sigmoe {
namespace {

class Eagle3Drafter : public ModelDrafter {
 public:
  Eagle3Drafter(const DraftConfig& config, DraftWeights weights, RankRunner& target, const DrafterLimits& limits)
      : ModelDrafter(target, limits, config.vocab_size, config.hidden_size),
        config_(config),
        weights_(std::move(weights)),
        // A recorded chain goes as deep for all sequences: one page takes what has no room of its own.
        kv_(backend_, 1, limits.n_pages + (target.records_steps() ? 1 : 0), config.n_kv_heads, config.rope.head_dim),
        shape_{static_cast<int>(config.n_heads), static_cast<int>(config.n_kv_heads), static_cast<int>(config.rope.head_dim),
               static_cast<int>(config.rope.rotary_dim)} {
    const int64_t D = config.hidden_size, Dh = config.rope.head_dim, H = config.n_heads, G = config.n_kv_heads;
    const auto floats = [&](int64_t per_row) {
      return backend_.alloc(static_cast<size_t>(limits.max_rows * per_row) * sizeof(float), "draft activations");
    };
    residual_ = floats(D);
    normed_ = floats(D);
    joined_ = floats(2 * D);
    qkv_ = floats((H + 2 * G) * Dh);
    query_ = floats(H * Dh);
    attended_ = floats(H * Dh);
    partial_ = floats(D);
    n_features_ = static_cast<int64_t>(config.feature_layers.size());
    feature_width_ = target.config().hidden_size;
    if (config.feature_norms) {
      feature_part_ = floats(2 * feature_width_);
      features_ = floats(n_features_ * feature_width_);
    }
    if (config.attention_bias) {
      bias_rows_ = floats(std::max((H + 2 * G) * Dh, D));
      first_row_ = backend_.alloc(limits.max_rows * sizeof(int32_t), "draft activations");  // zeros
    }
    if (target.records_steps()) {
      target_ids_ = backend_.alloc(weights_.target_ids.size() * sizeof(int32_t), "draft vocabulary");
      backend_.upload(target_ids_.data(), weights_.target_ids.data(), target_ids_.bytes());
    }
    std::vector<float> cos, sin;
    rope_tables(config.rope, limits.n_positions, cos, sin);
    for (auto [buffer, table] : {std::pair(&rope_cos_, &cos), std::pair(&rope_sin_, &sin)}) {
      *buffer = backend_.alloc(table->size() * sizeof(float), "draft RoPE tables");
      backend_.upload(buffer->data(), table->data(), table->size() * sizeof(float));
    }
  }

  uint64_t kv_bytes() const override { return kv_.bytes(); }
  uint64_t bytes() const override {
    uint64_t total = 0;
    for (const DeviceBuffer* buffer : {&residual_, &normed_, &joined_, &qkv_, &query_, &attended_, &partial_, &rope_cos_,
                                       &rope_sin_, &feature_part_, &features_, &bias_rows_, &first_row_, &target_ids_})
      total += buffer->bytes();
    return total;
  }

 protected:
  float* state() override { return residual_.as<float>(); }
  const float* normed() const override { return normed_.as<float>(); }
  void head_logits(const float* rows, const int32_t* row_ids, int n_rows, float* logits) override {
    const LinearWeight& head = weights_.lm_head ? *weights_.lm_head : *target_.weights().lm_head;
    backend_.head_logits(rows, row_ids, n_rows, head, nullptr, {config_.vocab_size}, logits);
  }
  int32_t target_id(int32_t draft_id) const override { return weights_.target_ids[draft_id]; }
  const int32_t* target_ids() const override { return target_ids_.as<int32_t>(); }

  void take_features(const int32_t* feature_rows, int n_rows) override {
    if (!config_.feature_norms) {  // the head's op is the one that multiplies picked rows
      backend_.head_logits(target_.features(), feature_rows, n_rows, *weights_.fuse, nullptr, {config_.hidden_size}, state());
      return;
    }
    const int64_t stride = n_features_ * feature_width_;
    const int width = static_cast<int>(feature_width_);
    float *part = feature_part_.as<float>(), *normed = part + n_rows * feature_width_;
    for (int64_t i = 0; i < n_features_; ++i) {
      backend_.copy_rows(target_.features() + i * feature_width_, feature_rows, stride, part, nullptr, feature_width_, n_rows,
                         width);
      float* out = features_.as<float>() + i * feature_width_;
      backend_.reduce_add_rms_norm(part, nullptr, 0, nullptr, weights_.feature_norms[i].as<float>(), config_.rms_eps, n_rows,
                                   width, normed);
      backend_.copy_rows(normed, nullptr, feature_width_, out, nullptr, stride, n_rows, width);
    }
    backend_.linear(features_.as<float>(), *weights_.fuse, n_rows, state());
  }

  void forward(const BatchView& batch, const int32_t* next_ids) override {
    const int n = batch.n_tokens, width = static_cast<int>(config_.hidden_size);
    float *residual = residual_.as<float>(), *normed = normed_.as<float>(), *joined = joined_.as<float>(),
          *partial = partial_.as<float>();
    backend_.embed(embedding(), next_ids, n, normed);
    backend_.join_norms(normed, weights_.embedding_norm.as<float>(), residual, weights_.hidden_norm.as<float>(),
                        config_.rms_eps, n, width, joined);
    if (config_.norm_before_residual)
      backend_.copy_rows(joined + width, nullptr, 2 * config_.hidden_size, residual, nullptr, config_.hidden_size, n, width);
    backend_.linear(joined, *weights_.qkv, n, qkv_.as<float>());
    add_bias(weights_.qkv_bias, n, qkv_.as<float>());
    backend_.qk_norm_rope_store(batch, shape_, qkv_.as<float>(), nullptr, nullptr, config_.rms_eps, rope_cos_.as<float>(),
                                rope_sin_.as<float>(), kv_.layer(0), query_.as<float>());
    backend_.attention(batch, shape_, query_.as<float>(), kv_.layer(0), attended_.as<float>());
    backend_.linear(attended_.as<float>(), *weights_.attn_out, n, partial);
    add_bias(weights_.attn_out_bias, n, partial);
    backend_.reduce_add_rms_norm(residual, partial, 1, nullptr, weights_.mlp_norm.as<float>(), config_.rms_eps, n, width,
                                 normed);
    backend_.experts(normed, weights_.mlp, {}, 0, n, width, partial);
    backend_.reduce_add_rms_norm(residual, partial, 1, nullptr, weights_.final_norm.as<float>(), config_.rms_eps, n, width,
                                 normed);
    if (config_.norm_output)
      backend_.copy_rows(normed, nullptr, config_.hidden_size, residual, nullptr, config_.hidden_size, n, width);
  }

 private:
  // rows (T, N) += bias (N): the bias as a table of one row, looked up T times.
  void add_bias(const DeviceBuffer& bias, int n_rows, float* rows) {
    if (bias.bytes() == 0) return;
    const auto width = static_cast<int64_t>(bias.bytes() / sizeof(float));
    backend_.embed(Tensor(bias.data(), DType::f32, {1, width}), first_row_.as<int32_t>(), n_rows, bias_rows_.as<float>());
    backend_.reduce_add_rms_norm(rows, bias_rows_.as<float>(), 1, nullptr, nullptr, config_.rms_eps, n_rows,
                                 static_cast<int>(width), nullptr);
  }

  Tensor embedding() const {
    const ModelWeights& target = target_.weights();
    const bool own = weights_.embedding.bytes() > 0;
    const DeviceBuffer& table = own ? weights_.embedding : target.embedding;
    const DType dtype = own ? weights_.embedding_dtype : target.embedding_dtype;
    const int64_t row_bytes = config_.hidden_size * static_cast<int64_t>(dtype_bytes(dtype));
    return Tensor(table.data(), dtype, {static_cast<int64_t>(table.bytes()) / row_bytes, config_.hidden_size});
  }

  DraftConfig config_;
  DraftWeights weights_;
  KvCache kv_;
  AttentionShape shape_;
  DeviceBuffer residual_, normed_;  // (T, D)
  DeviceBuffer joined_;             // (T, 2D)
  DeviceBuffer qkv_, query_, attended_, partial_;
  DeviceBuffer rope_cos_, rope_sin_;
  DeviceBuffer target_ids_;  // (draft V), where drafts stay on the device
  int64_t n_features_ = 0, feature_width_ = 0;
  DeviceBuffer feature_part_, features_;  // where fc_norm is: the features of one depth before and behind it; all of them
  DeviceBuffer bias_rows_, first_row_;    // where biases are: as many copies as rows; zeros
};

}  // namespace

std::unique_ptr<Drafter> make_eagle3_drafter(const DraftFolder& draft, DraftWeights weights, RankRunner& target,
                                             const DrafterLimits& limits) {
  return std::make_unique<Eagle3Drafter>(draft.config, std::move(weights), target, limits);
}

uint64_t eagle3_bytes_per_row(const DraftConfig& config, int64_t feature_width) {
  const int64_t D = config.hidden_size, Dh = config.rope.head_dim, H = config.n_heads, G = config.n_kv_heads;
  int64_t n_floats = 5 * D + (3 * H + 2 * G) * Dh;
  if (config.feature_norms) n_floats += (2 + static_cast<int64_t>(config.feature_layers.size())) * feature_width;
  if (config.attention_bias) n_floats += std::max((H + 2 * G) * Dh, D) + 1;
  return n_floats * sizeof(float);
}

}  // namespace sigmoe
