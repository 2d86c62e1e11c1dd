// The nodes of one model: what they must agree on before they load it, and the life of one that does not lead.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "backend/sha256.h"
#include "engine/model_folder.h"
#include "engine/nodes/step_codec.h"

namespace sigmoe {
namespace {

// Everything the files say of the model, but of the weights themselves only the beginning of some: reading all of them takes
// minutes.
std::string model_digest(const ModelFolder& model) {
  constexpr size_t kLooks = 32, kLookBytes = 4096;
  std::ostringstream text;
  const ModelConfig& c = model.config;
  text << c.architecture << ' ' << c.rms_eps << ' ' << c.routed_scaling << ' ' << c.rotary_dim << ' ' << c.n_active << ' '
       << c.n_groups << ' ' << c.n_groups_kept << ' ' << c.normalise_topk << ' ' << c.context << '\n';
  text << quant_method_name(c.quant.method) << ' ' << c.rope_theta << ' ' << c.normalise_head << '\n';
  const size_t each = model.checkpoint.tensors().size() / kLooks + 1;
  size_t at = 0;
  for (const auto& [name, tensor] : model.checkpoint.tensors()) {
    text << name << ' ' << dtype_name(tensor.dtype);
    for (const int64_t size : tensor.shape) text << ' ' << size;
    text << '\n';
    if (at++ % each != 0) continue;
    std::string look(std::min<uint64_t>(kLookBytes, tensor.bytes), '\0');
    tensor.file->read(tensor.offset, look.data(), look.size());
    text << look;
  }
  return hex(sha256(text.str())).substr(0, 16);
}

std::string facts_of(const ModelFolder& model, const EngineOptions& options) {
  std::string reason;
  std::ostringstream text;
  text << "version: " << SIGMOE_VERSION << "\nnodes: " << options.node.count << "\nmodel: " << model_digest(model)
       << "\ntensorParallelSize: " << options.tensor_parallel << "\nenableExpertParallel: " << options.expert_parallel
       << "\ndevice: " << resolve_device(options.device, reason) << "\ncompute: " << options.compute
       << "\nprefillAttention: " << options.prefill_attention << "\nkvCacheDtype: " << options.kv_cache_dtype
       << "\ndeterministic: " << options.deterministic << "\nmaxModelLen: " << options.max_model_len
       << "\nmaxNumSeqs: " << options.max_num_seqs << "\nmaxBatchedTokens: " << options.max_batched_tokens
       << "\nkvCacheTokens: " << options.kv_cache_tokens << "\nmtp: " << options.with_mtp
       << "\nspeculation: " << options.speculation << (options.draft.empty() ? "" : " with a draft")
       << "\nmaxDraft: " << options.max_draft << '\n';
  return text.str();
}

}  // namespace

std::shared_ptr<Node> join_nodes(const ModelFolder& model, const EngineOptions& options, const std::atomic<bool>* cancelled) {
  if (options.node.count == 1) return nullptr;
  return std::make_shared<Node>(options.node, options.tensor_parallel / options.node.count, facts_of(model, options),
                                cancelled);
}

int64_t agree_on_capacity(Node& node, int64_t kv_cache_tokens) {
  const auto number = [](const std::string& bytes) {
    int64_t value = 0;
    if (bytes.size() != sizeof value)
      throw EngineError(ErrorCode::device, "nodes met with other things than the room they have");
    std::memcpy(&value, bytes.data(), sizeof value);
    if (value < kPageTokens || value % kPageTokens != 0)
      throw EngineError(ErrorCode::device, "a node has room for " + std::to_string(value) + " tokens, which are no pages");
    return value;
  };
  const std::string own(reinterpret_cast<const char*>(&kv_cache_tokens), sizeof kv_cache_tokens);
  return number(node.meet(own, [&](const std::vector<std::string>& all) {
    std::string least = all[0];
    for (const std::string& one : all)
      if (number(one) < number(least)) least = one;
    return least;
  }));
}

void follow(const std::string& folder, const EngineOptions& options, const Engine::ProgressFn& on_progress,
            const std::function<void(const EngineInfo&)>& on_ready, const std::atomic<bool>* cancelled) {
  if (options.node.index == 0)
    throw EngineError(ErrorCode::invalid_argument, "the node of rank 0 leads: it follows no other", "load the model instead");
  LoadedModel model = load_model(folder, options, on_progress, cancelled);
  const CommandLimits limits{model.world->rank(0).limits(), model.info.vocab_size};
  Node& node = *model.node;
  bool ready = false;
  try {
    while (const std::optional<std::string> command = node.next(cancelled)) {
      if (command_of(*command) == NodeCommand::step) {
        StepOutputs ignored;
        model.world->run(decode_step(*command, limits), ignored);
      } else {
        DecodedDrafts drafts = decode_drafts(*command, limits);
        model.drafter->draft(drafts.tasks);
      }
      if (!ready && on_ready) on_ready(model.info);  // the leader's first step, which nobody asked for, went well
      ready = true;
    }
  } catch (const EngineError& error) {
    node.fail(EngineError(error.code(), node.name_of(node.index()) + " failed: " + error.what()));
    throw;
  }
}

}  // namespace sigmoe
