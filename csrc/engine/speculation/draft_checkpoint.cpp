#include "engine/speculation/draft_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "engine/checkpoint/json_text.h"
#include "engine/checkpoint/tensor_values.h"
#include "engine/model_folder.h"
#include "engine/weights/weight_stream.h"

namespace sigmoe {
namespace {

constexpr int64_t kMostWidth = 1 << 17;

// The residual streams that a draft reads: ids name the layers whose outputs they are.
std::vector<int64_t> parse_feature_layers(const Fields& fields, const ModelConfig& target) {
  const Fields eagle = fields.object("eagle_config");
  Problems& problems = fields.problems();
  constexpr const char* kIds = "eagle_aux_hidden_state_layer_ids";
  const Fields& where = eagle.has(kIds) ? eagle : fields;
  if (!eagle.boolean("use_aux_hidden_state", true))
    problems.unsupported(eagle.path("use_aux_hidden_state") + " is false: an EAGLE draft of an older kind, not EAGLE3");
  std::vector<int64_t> layers;
  for (const int64_t id : where.integers(kIds, 0, target.n_layers - 1)) layers.push_back(id + 1);
  if (layers.empty()) {
    if (target.n_layers < 4)
      problems.wrong(where.path(kIds) + " is absent, and a target of " + std::to_string(target.n_layers) +
                     " layers has no usual ones");
    else
      layers = {2, target.n_layers / 2, target.n_layers - 3};
  }
  const int64_t n = fields.integer("num_aux_hidden_states", 1, 64, static_cast<int64_t>(layers.size()));
  if (n != static_cast<int64_t>(layers.size()))
    problems.wrong(fields.path("num_aux_hidden_states") + " is " + std::to_string(n) + ", but " +
                   std::to_string(layers.size()) + " layers are read");
  return layers;
}

DraftConfig parse_draft_config(const std::string& text, const ModelConfig& target) {
  const nlohmann::json json = parse_json(text, "draft config.json");
  Problems problems;
  if (!json.is_object()) problems.wrong("must be an object");
  const Fields fields(json.is_object() ? &json : nullptr, "", problems);
  constexpr const char* kArchitecture = "LlamaForCausalLMEagle3";
  const std::vector<std::string> found = fields.strings("architectures");
  if (std::find(found.begin(), found.end(), kArchitecture) == found.end())
    problems.unsupported("architectures is " + (found.empty() ? std::string("missing") : "'" + shortened(found[0]) + "'") +
                         ", only " + kArchitecture + " is supported");
  fields.must_be("hidden_act", "silu");
  fields.must_be("num_hidden_layers", 1);
  for (const char* name : {"mlp_bias", "tie_word_embeddings"}) fields.must_be(name, false);

  DraftConfig out;
  out.hidden_size = fields.integer("hidden_size", 1, kMostWidth);
  out.mlp_width = fields.integer("intermediate_size", 1, kMostWidth);
  out.n_heads = fields.integer("num_attention_heads", 1, 4096);
  out.n_kv_heads = fields.integer("num_key_value_heads", 1, 4096, out.n_heads);
  if (out.n_heads > 0 && out.n_kv_heads > 0 && out.n_heads % out.n_kv_heads != 0)
    problems.wrong("num_attention_heads " + std::to_string(out.n_heads) + " is not a multiple of num_key_value_heads " +
                   std::to_string(out.n_kv_heads));
  const bool heads_divide = out.n_heads > 0 && out.hidden_size % out.n_heads == 0;
  out.rope.head_dim =
      fields.integer("head_dim", 2, 1024, heads_divide ? std::optional(out.hidden_size / out.n_heads) : std::nullopt);
  out.rms_eps = static_cast<float>(fields.number("rms_norm_eps", 0.0, 1.0));
  out.norm_before_residual = fields.boolean("norm_before_residual", false);
  out.feature_norms = fields.boolean("fc_norm", false);
  out.norm_output = fields.boolean("norm_output", false);
  out.attention_bias = fields.boolean("attention_bias", false);
  constexpr double kLlamaTheta = 10000.0;
  parse_rope(fields, kLlamaTheta, out.rope);
  const int64_t vocab = fields.integer("vocab_size", 1, 1 << 22, target.vocab_size);
  if (vocab != target.vocab_size)
    problems.wrong("vocab_size is " + std::to_string(vocab) + ", the target's is " + std::to_string(target.vocab_size));
  out.vocab_size = fields.integer("draft_vocab_size", 1, std::max<int64_t>(vocab, 1), vocab);
  const int64_t features = fields.integer("target_hidden_size", 1, kMostWidth, target.hidden_size);
  if (features != target.hidden_size)
    problems.wrong("target_hidden_size is " + std::to_string(features) + ", the target's hidden size is " +
                   std::to_string(target.hidden_size));
  out.feature_layers = parse_feature_layers(fields, target);
  problems.throw_if_any("draft config.json");
  return out;
}

// Finds tensors under any of the names that exporters give them.
class DraftTensors {
 public:
  DraftTensors(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  const TensorEntry* top(const std::string& name) { return find({name, "model." + name}); }
  const TensorEntry* layer(const std::string& name) {
    return find({"midlayer." + name, "layers.0." + name, "model.midlayer." + name, "model.layers.0." + name});
  }
  std::set<std::string> unread() const {
    std::set<std::string> out;
    for (const auto& [name, entry] : checkpoint_.tensors())
      if (!read_.contains(name) && !name.ends_with("t2d") && !name.ends_with(".inv_freq")) out.insert(name);
    return out;
  }

 private:
  const TensorEntry* find(const std::vector<std::string>& names) {
    for (const std::string& name : names)
      if (const TensorEntry* entry = checkpoint_.find(name)) {
        read_.insert(name);
        return entry;
      }
    return nullptr;
  }

  const Checkpoint& checkpoint_;
  std::set<std::string> read_;
};

std::string shape_of(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

// The tensors of a checked draft. Optional ones are null when absent.
struct DraftEntries {
  DraftEntries(const DraftConfig& config, const ModelConfig& target, const Checkpoint& checkpoint) : tensors(checkpoint) {
    const int64_t D = config.hidden_size, Dh = config.rope.head_dim, F = config.mlp_width;
    const int64_t n_features = static_cast<int64_t>(config.feature_layers.size()) * target.hidden_size;
    const bool own_embedding = tensors.top("embed_tokens.weight") != nullptr;
    const bool whole_vocab = config.vocab_size == target.vocab_size;
    fc = need(tensors.top("fc.weight"), "fc.weight", {D, n_features});
    embedding_norm = need(tensors.layer("input_layernorm.weight"), "midlayer.input_layernorm.weight", {D});
    hidden_norm = need(tensors.layer("hidden_norm.weight"), "midlayer.hidden_norm.weight", {D});
    q = need(tensors.layer("self_attn.q_proj.weight"), "midlayer.self_attn.q_proj.weight", {config.n_heads * Dh, 2 * D});
    k = need(tensors.layer("self_attn.k_proj.weight"), "midlayer.self_attn.k_proj.weight", {config.n_kv_heads * Dh, 2 * D});
    v = need(tensors.layer("self_attn.v_proj.weight"), "midlayer.self_attn.v_proj.weight", {config.n_kv_heads * Dh, 2 * D});
    o = need(tensors.layer("self_attn.o_proj.weight"), "midlayer.self_attn.o_proj.weight", {D, config.n_heads * Dh});
    mlp_norm = need(tensors.layer("post_attention_layernorm.weight"), "midlayer.post_attention_layernorm.weight", {D});
    gate = need(tensors.layer("mlp.gate_proj.weight"), "midlayer.mlp.gate_proj.weight", {F, D});
    up = need(tensors.layer("mlp.up_proj.weight"), "midlayer.mlp.up_proj.weight", {F, D});
    down = need(tensors.layer("mlp.down_proj.weight"), "midlayer.mlp.down_proj.weight", {D, F});
    norm = need(tensors.top("norm.weight"), "norm.weight", {D});
    head = tensors.top("lm_head.weight");
    if (head || !whole_vocab) head = need(head, "lm_head.weight", {config.vocab_size, D});
    d2t = tensors.top("d2t");
    if (d2t || !whole_vocab) d2t = need(d2t, "d2t", {config.vocab_size}, true);
    if (own_embedding)
      embedding = need(tensors.top("embed_tokens.weight"), "embed_tokens.weight", {target.vocab_size, D});
    else if (D != target.hidden_size)
      problems.wrong("hidden_size is " + std::to_string(D) + " and the target's " + std::to_string(target.hidden_size) +
                     ": without embed_tokens.weight they must be equal");
    if (!head && D != target.hidden_size) problems.wrong("without lm_head.weight hidden_size must be the target's");
    if (config.feature_norms)
      for (size_t i = 0; i < config.feature_layers.size(); ++i) {
        std::string name = "fc_norm.";
        name.append(std::to_string(i)).append(".weight");
        feature_norms.push_back(need(tensors.top(name), name.c_str(), {target.hidden_size}));
      }
    if (config.attention_bias) {
      const auto bias = [&](const char* name, int64_t n) { return need(tensors.layer(name), name, {n}); };
      q_bias = bias("self_attn.q_proj.bias", config.n_heads * Dh);
      k_bias = bias("self_attn.k_proj.bias", config.n_kv_heads * Dh);
      v_bias = bias("self_attn.v_proj.bias", config.n_kv_heads * Dh);
      o_bias = bias("self_attn.o_proj.bias", D);
    }
    same_type({q, k, v});
    same_type({gate, up});
    const std::set<std::string> unread = tensors.unread();
    if (!unread.empty())
      problems.unsupported(*unread.begin() + " and in all " + std::to_string(unread.size()) +
                           " tensors are of no kind this reader knows");
    problems.throw_if_any("draft");
  }

  const TensorEntry *fc, *embedding_norm, *hidden_norm, *q, *k, *v, *o, *mlp_norm, *gate, *up, *down, *norm, *head, *d2t,
      *embedding = nullptr, *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr, *o_bias = nullptr;
  std::vector<const TensorEntry*> feature_norms;

 private:
  const TensorEntry* need(const TensorEntry* entry, const char* name, const std::vector<int64_t>& shape, bool ids = false) {
    if (!entry) {
      problems.wrong(std::string(name) + " is absent");
      return nullptr;
    }
    if (entry->shape != shape) problems.wrong(entry->name + " is " + shape_of(entry->shape) + ", must be " + shape_of(shape));
    const bool known = ids ? entry->dtype == DType::i64 || entry->dtype == DType::i32
                           : entry->dtype == DType::bf16 || entry->dtype == DType::f32;
    if (!known)
      problems.unsupported(entry->name + " is " + dtype_name(entry->dtype) + ", must be " +
                           (ids ? "I64 or I32" : "BF16 or F32"));
    return entry;
  }
  // Parts of one product.
  void same_type(const std::vector<const TensorEntry*>& parts) {
    for (const TensorEntry* part : parts)
      if (part && parts[0] && part->dtype != parts[0]->dtype)
        problems.unsupported(parts[0]->name + " and " + part->name + " are of different types");
  }

  DraftTensors tensors;
  Problems problems;
};

std::vector<int32_t> read_target_ids(const TensorEntry* d2t, int64_t n, int64_t vocab) {
  std::vector<int32_t> ids(n);
  std::vector<std::byte> raw(d2t ? d2t->bytes : 0);
  if (d2t) d2t->file->read(d2t->offset, raw.data(), raw.size());
  for (int64_t i = 0; i < n; ++i) {
    int64_t offset = 0;
    if (d2t && d2t->dtype == DType::i64) {
      std::memcpy(&offset, raw.data() + 8 * i, 8);
    } else if (d2t) {
      int32_t narrow;
      std::memcpy(&narrow, raw.data() + 4 * i, 4);
      offset = narrow;
    }
    if (offset < -i || offset >= vocab - i)
      throw EngineError(ErrorCode::bad_checkpoint,
                        "draft: d2t[" + std::to_string(i) + "] is " + std::to_string(offset) +
                            ", which leaves the target's vocabulary of " + std::to_string(vocab),
                        "d2t holds offsets: the target's id is the draft's id plus d2t of it");
    ids[i] = static_cast<int32_t>(i + offset);
  }
  return ids;
}

class DraftLoader {
 public:
  explicit DraftLoader(Backend& backend) : backend_(backend) {}

  DraftWeights load(const DraftEntries& from, const DraftConfig& config, const ModelConfig& target, int n_threads,
                    const std::atomic<bool>* cancelled) {
    vectors(out_.embedding_norm, {from.embedding_norm});
    vectors(out_.hidden_norm, {from.hidden_norm});
    vectors(out_.mlp_norm, {from.mlp_norm});
    vectors(out_.final_norm, {from.norm});
    for (const TensorEntry* norm : from.feature_norms) vectors(out_.feature_norms.emplace_back(), {norm});
    if (from.q_bias) {
      vectors(out_.qkv_bias, {from.q_bias, from.k_bias, from.v_bias});
      vectors(out_.attn_out_bias, {from.o_bias});
    }
    linear(out_.fuse, {from.fc});
    linear(out_.qkv, {from.q, from.k, from.v});
    linear(out_.attn_out, {from.o});
    linear(out_.gate_up, {from.gate, from.up}, true);
    linear(out_.down, {from.down});
    if (from.head) linear(out_.lm_head, {from.head});
    if (from.embedding) embedding(*from.embedding);
    out_.target_ids = read_target_ids(from.d2t, config.vocab_size, target.vocab_size);
    stream_.run(n_threads, {}, cancelled);
    for (auto& [builder, weight] : builders_) {
      *weight = builder->finish();
      out_.bytes += (*weight)->bytes();
    }
    out_.mlp.shared_gate_up = out_.gate_up.get();
    out_.mlp.shared_down = out_.down.get();
    return std::move(out_);
  }

 private:
  DeviceBuffer alloc(size_t bytes, const char* what) {
    out_.bytes += bytes;
    return backend_.alloc(bytes, what);
  }

  // Norm weights and biases: one behind the other, in float32.
  void vectors(DeviceBuffer& target, const std::vector<const TensorEntry*>& parts) {
    int64_t n_all = 0, n_at = 0;
    for (const TensorEntry* part : parts) n_all += part->shape[0];
    target = alloc(static_cast<size_t>(n_all) * sizeof(float), "draft norms and biases");
    for (const TensorEntry* part : parts) {
      const int64_t n = part->shape[0];
      stream_.add(
          {part->file, part->offset, 1, part->bytes, part->bytes,
           [this, part, n, device = target.as<float>() + n_at](int64_t, int64_t, const std::byte* data, Scratch& scratch) {
             scratch.resize(static_cast<size_t>(n));
             to_f32(*part, data, n, scratch.data());
             backend_.upload(device, scratch.data(), static_cast<size_t>(n) * sizeof(float));
           }});
      n_at += n;
    }
  }

  void embedding(const TensorEntry& tensor) {
    out_.embedding_dtype = tensor.dtype;
    out_.embedding = alloc(tensor.bytes, "draft embedding table");
    const size_t row_bytes = tensor.bytes / tensor.shape[0];
    stream_.add({tensor.file, tensor.offset, tensor.shape[0], row_bytes, row_bytes,
                 [this, &tensor, row_bytes, device = out_.embedding.as<std::byte>()](int64_t row, int64_t n,
                                                                                     const std::byte* data, Scratch&) {
                   if (!all_finite(tensor.dtype, data, n * row_bytes)) bad_value(tensor.name);
                   backend_.upload(device + row * row_bytes, data, n * row_bytes);
                 }});
  }

  // The parts one under the other.
  void linear(std::unique_ptr<LinearWeight>& target, const std::vector<const TensorEntry*>& parts, bool gate_up = false) {
    LinearDesc desc;
    desc.format = parts[0]->dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16;
    desc.k = parts[0]->shape[1];
    desc.gate_up = gate_up;
    desc.name = parts[0]->name;
    for (const TensorEntry* part : parts) desc.n += part->shape[0];
    builders_.emplace_back(backend_.begin_linear(desc), &target);
    LinearBuilder* builder = builders_.back().first.get();
    int64_t n_at = 0;
    for (const TensorEntry* part : parts) {
      const size_t row_bytes = weight_row_bytes(desc.format, desc.k);
      stream_.add({part->file, part->offset, part->shape[0], row_bytes, row_bytes,
                   [builder, n_at, row_bytes](int64_t row, int64_t n, const std::byte* data, Scratch&) {
                     builder->put_rows(n_at + row, n, data, row_bytes);
                   }});
      n_at += part->shape[0];
    }
  }

  Backend& backend_;
  DraftWeights out_;
  std::vector<std::pair<std::unique_ptr<LinearBuilder>, std::unique_ptr<LinearWeight>*>> builders_;
  WeightStream stream_;
};

}  // namespace

uint64_t draft_kv_bytes_per_token(const DraftConfig& config, DType dtype) {
  return static_cast<uint64_t>(config.n_kv_heads) * kv_head_bytes(dtype, config.rope.head_dim);
}

DraftFolder open_draft_folder(const std::string& folder, const ModelConfig& target) {
  const std::string config = std::filesystem::path(folder) / "config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(config, ignored))
    throw EngineError(ErrorCode::not_found, "draft '" + folder + "': no such folder, or it has no config.json",
                      "pass the path of a folder with config.json and model.safetensors");
  DraftFolder draft{parse_draft_config(read_small_file(config), target), Checkpoint::open(folder)};
  const DraftEntries checked(draft.config, target, draft.checkpoint);
  return draft;
}

bool DraftFolder::brings_head() const { return DraftTensors(checkpoint).top("lm_head.weight") != nullptr; }

DraftWeights load_draft_weights(const DraftFolder& draft, const ModelConfig& target, Backend& backend, int n_threads,
                                const std::atomic<bool>* cancelled) {
  const DraftEntries entries(draft.config, target, draft.checkpoint);
  DraftWeights weights = DraftLoader(backend).load(entries, draft.config, target, n_threads, cancelled);
  draft.checkpoint.check_unchanged();
  return weights;
}

}  // namespace sigmoe
