#include "engine/weights/weights.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "engine/checkpoint/checkpoint_spec.h"
#include "engine/checkpoint/tensor_values.h"
#include "engine/weights/linear_pieces.h"
#include "engine/weights/weight_stream.h"

namespace sigmoe {
namespace {

class Loader {
 public:
  Loader(const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend, const LoadOptions& options,
         WeightStream& stream)
      : config_(config), checkpoint_(checkpoint), backend_(backend), options_(options), stream_(stream) {}

  // Queues what this rank wants of the checkpoint.
  void queue() {
    heads_ = shard_heads(config_, options_.rank, options_.world);
    const int64_t D = config_.hidden_size;
    embedding();
    out_.layers.resize(config_.n_layers);
    for (int64_t i = 0; i < config_.n_layers; ++i) decoder_layer(layer_prefix(i), config_.is_dense(i), out_.layers[i]);
    if (options_.with_mtp) mtp_layers();
    vector(out_.final_norm, "model.norm.weight", D);
    head();
  }

  // After everything queued has been read.
  ModelWeights finish() {
    for (auto& [builder, target] : builders_) {
      *target = builder->finish();
      builder.reset();
      out_.bytes += (*target)->bytes();
    }
    for (LayerWeights& layer : out_.layers) link_experts(layer);
    for (MtpWeights& mtp : out_.mtp) link_experts(mtp.layer);
    return std::move(out_);
  }

 private:
  const TensorEntry& entry(const std::string& name) const {
    const TensorEntry* found = checkpoint_.find(name);
    SIGMOE_CHECK(found, "check_tensors let pass a checkpoint without " + name);
    return *found;
  }

  DeviceBuffer alloc(size_t bytes, const char* what) {
    out_.bytes += bytes;
    return backend_.alloc(bytes, what);
  }

  // A small tensor as float32, whole on every rank.
  void vector(DeviceBuffer& target, const std::string& name, int64_t size) {
    target = alloc(static_cast<size_t>(size) * 4, "norms");
    const TensorEntry& tensor = entry(name);
    const size_t width = dtype_bytes(tensor.dtype);
    stream_.add({tensor.file, tensor.offset, size, width, width,
                 [this, &tensor, device = target.as<float>()](int64_t row, int64_t n, const std::byte* data, Scratch& scratch) {
                   scratch.resize(static_cast<size_t>(n));
                   to_f32(tensor, data, n, scratch.data());
                   backend_.upload(device + row, scratch.data(), static_cast<size_t>(n) * 4);
                 }});
  }

  void embedding() {
    const TensorEntry& table = entry("model.word_embeddings.weight");
    const size_t row_bytes = static_cast<size_t>(config_.hidden_size) * dtype_bytes(table.dtype);
    out_.embedding_dtype = table.dtype;
    out_.embedding = alloc(static_cast<size_t>(config_.vocab_size) * row_bytes, "embedding table");
    stream_.add({table.file, table.offset, config_.vocab_size, row_bytes, row_bytes,
                 [this, &table, row_bytes, device = out_.embedding.as<std::byte>()](int64_t row, int64_t n,
                                                                                    const std::byte* data, Scratch&) {
                   if (!all_finite(table.dtype, data, static_cast<size_t>(n) * row_bytes)) bad_value(table.name);
                   backend_.upload(device + static_cast<size_t>(row) * row_bytes, data, static_cast<size_t>(n) * row_bytes);
                 }});
  }

  void decoder_layer(const std::string& at, bool dense, LayerWeights& layer) {
    const int64_t D = config_.hidden_size, Dh = config_.head_dim, H = config_.n_heads, G = config_.n_kv_heads;
    layer.dense = dense;
    vector(layer.input_norm, at + "input_layernorm.weight", D);
    vector(layer.post_attention_norm, at + "post_attention_layernorm.weight", D);
    const StoredLinear qkv = stored(at + "attention.query_key_value", (H + 2 * G) * Dh, D, LinearRole::body);
    const auto head_rows = [&](int64_t first, const Shard& heads) {
      return Shard{(first + heads.begin) * Dh, (first + heads.end) * Dh};
    };
    if (heads_.q.size() > 0) {
      linear(layer.qkv, {{qkv, head_rows(0, heads_.q)}, {qkv, head_rows(H, heads_.kv)}, {qkv, head_rows(H + G, heads_.kv)}},
             {0, D});
      linear(layer.attn_out, {{stored(at + "attention.dense", D, H * Dh, LinearRole::body), {0, D}}}, head_rows(0, heads_.q));
    }
    if (config_.qk_norm) {
      vector(layer.q_norm, at + "attention.query_layernorm.weight", Dh);
      vector(layer.k_norm, at + "attention.key_layernorm.weight", Dh);
    }
    if (dense) return mlp(layer.shared_gate_up, layer.shared_down, at + "mlp.", config_.dense_width, options_.world);
    const int64_t E = config_.n_experts;
    linear(layer.router, {{stored(at + "mlp.gate", E, D, LinearRole::router), {0, E}}}, {0, D}, false, false,
           LinearUse::router);
    if (config_.expert_bias)
      vector(layer.router_bias, at + "mlp.gate.expert_bias", E);
    else
      layer.router_bias = alloc(static_cast<size_t>(E) * 4, "router bias");
    layer.gate_up.resize(E);
    layer.down.resize(E);
    const Shard own = options_.expert_parallel ? shard_range(E, 1, options_.rank, options_.world) : Shard{0, E};
    for (int64_t e = own.begin; e < own.end; ++e)
      mlp(layer.gate_up[e], layer.down[e], at + "mlp.experts." + std::to_string(e) + ".", config_.expert_width,
          options_.expert_parallel ? 1 : options_.world);
    if (config_.shared_width > 0)
      mlp(layer.shared_gate_up, layer.shared_down, at + "mlp.shared_experts.", config_.shared_width, options_.world);
  }

  void mtp_layers() {
    const int64_t D = config_.hidden_size;
    out_.mtp.resize(config_.n_mtp_layers);
    for (int64_t i = 0; i < config_.n_mtp_layers; ++i) {
      const std::string at = layer_prefix(config_.n_layers + i);
      if (!layer_is_stored(checkpoint_, config_.n_layers + i))
        throw EngineError(ErrorCode::not_found, "MTP layers asked for: the checkpoint has no " + at + "*",
                          "load without MTP, or fetch the base model, which has them");
      MtpWeights& mtp = out_.mtp[i];
      vector(mtp.embedding_norm, at + "enorm.weight", D);
      vector(mtp.hidden_norm, at + "hnorm.weight", D);
      vector(mtp.final_norm, at + "final_layernorm.weight", D);
      linear(mtp.join, {{stored(at + "eh_proj", D, 2 * D, LinearRole::edge), {0, D}}}, {0, 2 * D}, false, false,
             LinearUse::edge);
      decoder_layer(at, false, mtp.layer);
    }
  }

  // down(silu(gate x) * up x), over n_ranks ranks: both sides of the inner width are cut alike. Nothing is read for an empty
  // share.
  void mlp(std::unique_ptr<LinearWeight>& gate_up, std::unique_ptr<LinearWeight>& down, const std::string& at, int64_t width,
           int n_ranks) {
    const int64_t D = config_.hidden_size;
    const StoredLinear stored_down = stored(at + "down_proj", D, width, LinearRole::body);
    const Shard share = shard_width(config_.quant, stored_down, n_ranks > 1 ? options_.rank : 0, n_ranks);
    if (share.size() == 0) return;
    linear(gate_up,
           {{stored(at + "gate_proj", width, D, LinearRole::body), share},
            {stored(at + "up_proj", width, D, LinearRole::body), share}},
           {0, D}, true);
    linear(down, {{stored_down, {0, D}}}, share);
  }

  void head() {
    const int64_t V = config_.vocab_size, D = config_.hidden_size;
    for (int rank = 0; rank < options_.world; ++rank)
      out_.vocab_widths.push_back(shard_range(V, kVocabUnit, rank, options_.world).size());
    if (out_.vocab_widths.back() == 0)
      throw EngineError(ErrorCode::unsupported,
                        "a vocabulary of " + std::to_string(V) + " over " + std::to_string(options_.world) + " ranks",
                        "lower tensorParallelSize");
    const StoredLinear head = stored(config_.tied_embeddings ? "model.word_embeddings" : "lm_head", V, D,
                                     config_.tied_embeddings ? LinearRole::router : LinearRole::edge);
    if (config_.normalise_head) normalise_columns(head);
    linear(out_.lm_head, {{head, shard_range(V, kVocabUnit, options_.rank, options_.world)}}, {0, D}, false,
           config_.normalise_head, LinearUse::edge);
  }

  // 1 / |column| of the head over the whole vocabulary. A pass of its own, by one thread, so that the sums have one order.
  void normalise_columns(const StoredLinear& head) {
    if (head.method != QuantMethod::none)
      throw EngineError(ErrorCode::unsupported, "norm_head with a quantised lm_head", "use a checkpoint whose lm_head is BF16");
    const int64_t D = config_.hidden_size;
    const size_t row_bytes = weight_row_bytes(head.format(), D);
    std::vector<double> squares(D);
    WeightStream pass;
    pass.add({head.weight->file, head.weight->offset, head.n, row_bytes, row_bytes,
              [&](int64_t, int64_t n, const std::byte* data, Scratch& scratch) {
                scratch.resize(static_cast<size_t>(n * D));
                to_f32(*head.weight, data, n * D, scratch.data());
                for (int64_t i = 0; i < n; ++i)
                  for (int64_t d = 0; d < D; ++d) squares[d] += static_cast<double>(scratch[i * D + d]) * scratch[i * D + d];
              }});
    pass.run(1, {}, options_.cancelled);
    column_scale_.resize(D);
    for (int64_t d = 0; d < D; ++d) column_scale_[d] = static_cast<float>(1.0 / std::max(std::sqrt(squares[d]), 1e-7));
  }

  StoredLinear stored(const std::string& module, int64_t n, int64_t k, LinearRole role) const {
    return stored_linear(config_, checkpoint_, module, n, k, role);
  }

  // Begins one weight from parts stacked along n, all cut to columns `cols`, and queues its reads.
  void linear(std::unique_ptr<LinearWeight>& target, const std::vector<Part>& parts, const Shard& cols, bool gate_up = false,
              bool scale_columns = false, LinearUse use = LinearUse::body) {
    const StoredLinear& first = parts[0].stored;
    const int64_t block = scale_block(config_.quant, first);
    LinearDesc desc;
    desc.format = first.format();
    desc.k = cols.size();
    desc.gate_up = gate_up;
    desc.use = use;
    desc.name = first.module;
    for (const Part& part : parts) {
      if (part.stored.method != first.method || part.stored.format() != desc.format)
        throw EngineError(ErrorCode::unsupported,
                          first.module + " is stored as " + quant_method_name(first.method) + " " +
                              dtype_name(first.weight->dtype) + " and " + part.stored.module + " as " +
                              quant_method_name(part.stored.method) + " " + dtype_name(part.stored.weight->dtype),
                          "they run as one product; list both or neither in the ignore list of the quantisation config");
      desc.n += part.rows.size();
    }
    if (first.method != QuantMethod::none) {
      for (int64_t at = cols.begin; at < cols.end; at = (at / block + 1) * block) desc.k_bounds.push_back(at - cols.begin);
      desc.k_bounds.push_back(cols.size());
    }
    builders_.emplace_back(backend_.begin_linear(desc), &target);
    LinearBuilder* builder = builders_.back().first.get();
    int64_t n_at = 0;
    for (const Part& part : parts) {
      stream_.add(elements_of(part, cols, *builder, n_at, scale_columns ? &column_scale_ : nullptr));
      if (part.stored.scale) stream_.add(scales_of(config_.quant, part, cols, *builder, n_at));
      if (part.stored.shape) stream_.add(shape_check_of(part.stored));
      n_at += part.rows.size();
    }
  }

  static void link_experts(LayerWeights& layer) {
    for (const auto& weight : layer.gate_up) layer.experts.gate_up.push_back(weight.get());
    for (const auto& weight : layer.down) layer.experts.down.push_back(weight.get());
    layer.experts.shared_gate_up = layer.shared_gate_up.get();
    layer.experts.shared_down = layer.shared_down.get();
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  Backend& backend_;
  const LoadOptions& options_;
  HeadShard heads_;
  ModelWeights out_;
  std::vector<std::pair<std::unique_ptr<LinearBuilder>, std::unique_ptr<LinearWeight>*>> builders_;
  std::vector<float> column_scale_;  // norm_head only
  WeightStream& stream_;
};

}  // namespace

ModelWeights load_weights(const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend,
                          const LoadOptions& options) {
  const int rank = options.rank;
  std::vector<ModelWeights> weights = load_ranks(config, checkpoint, {{rank, &backend}}, options);
  return std::move(weights[0]);
}

std::vector<ModelWeights> load_ranks(const ModelConfig& config, const Checkpoint& checkpoint,
                                     const std::vector<std::pair<int, Backend*>>& ranks, const LoadOptions& options) {
  check_tensors(config, checkpoint);
  WeightStream stream;
  std::vector<LoadOptions> of_rank(ranks.size(), options);
  std::vector<std::unique_ptr<Loader>> loaders;
  for (size_t i = 0; i < ranks.size(); ++i) {
    of_rank[i].rank = ranks[i].first;
    loaders.push_back(std::make_unique<Loader>(config, checkpoint, *ranks[i].second, of_rank[i], stream));
    loaders.back()->queue();
  }
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  stream.run(options.n_threads > 0 ? options.n_threads : cores, options.on_progress, options.cancelled);
  checkpoint.check_unchanged();
  std::vector<ModelWeights> weights;
  for (const auto& loader : loaders) weights.push_back(loader->finish());
  return weights;
}

}  // namespace sigmoe
