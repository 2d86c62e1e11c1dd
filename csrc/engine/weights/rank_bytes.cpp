// What each rank keeps of a checkpoint, from names and headers alone: what `sigmoe inspect` shows before anything is loaded.
#include <charconv>

#include "engine/checkpoint/checkpoint_spec.h"
#include "engine/weights/weights.h"

namespace sigmoe {
namespace {

class RankShare {
 public:
  RankShare(const ModelConfig& config, const Checkpoint& checkpoint, int rank, int world, bool expert_parallel)
      : config_(config),
        checkpoint_(checkpoint),
        rank_(rank),
        world_(world),
        expert_parallel_(expert_parallel),
        heads_(shard_heads(config, rank, world)) {}

  // The part of a tensor that this rank keeps.
  double of(const std::string& name) const {
    const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    const double H = static_cast<double>(config_.n_heads), G = static_cast<double>(config_.n_kv_heads);
    if (has(".attention.query_key_value.")) return static_cast<double>(heads_.q.size() + 2 * heads_.kv.size()) / (H + 2 * G);
    if (has(".attention.dense.")) return static_cast<double>(heads_.q.size()) / H;
    if (name.starts_with("lm_head.")) return head();
    if (has(".mlp.gate.") || !has(".mlp.")) return 1;
    static const std::string kExperts = ".mlp.experts.";
    const size_t at = name.find(kExperts);
    if (at != std::string::npos && expert_parallel_) {
      const Shard own = shard_range(config_.n_experts, 1, rank_, world_);
      int64_t expert = 0;
      std::from_chars(name.data() + at + kExperts.size(), name.data() + name.size(), expert);
      return own.begin <= expert && expert < own.end ? 1 : 0;
    }
    const int64_t width = at != std::string::npos       ? config_.expert_width
                          : has(".mlp.shared_experts.") ? config_.shared_width
                                                        : config_.dense_width;
    const std::string module = name.substr(0, name.rfind('.', name.rfind("_proj"))) + ".down_proj";
    const StoredLinear down = stored_linear(config_, checkpoint_, module, config_.hidden_size, width, LinearRole::body);
    return static_cast<double>(shard_width(config_.quant, down, rank_, world_).size()) / static_cast<double>(width);
  }

  double head() const {
    return static_cast<double>(shard_range(config_.vocab_size, kVocabUnit, rank_, world_).size()) /
           static_cast<double>(config_.vocab_size);
  }

 private:
  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  int rank_, world_;
  bool expert_parallel_;
  HeadShard heads_;
};

}  // namespace

uint64_t rank_bytes(const ModelConfig& config, const Checkpoint& checkpoint, int rank, int world, bool expert_parallel) {
  const RankShare share(config, checkpoint, rank, world, expert_parallel);
  double bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    bytes += share.of(name) * static_cast<double>(tensor.bytes);
    if (config.tied_embeddings && name == "model.word_embeddings.weight")
      bytes += share.head() * static_cast<double>(tensor.bytes);
  }
  return static_cast<uint64_t>(bytes);
}

}  // namespace sigmoe
