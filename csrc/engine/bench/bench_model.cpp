// Weights that a device makes itself are uniform, of standard deviation 0.02. Routing stays spread out, as trained routers
// spread real text: a token's random embedding outweighs what the layers add to it, so every router sees other directions.
// What a step touched is counted, not assumed.
#include "engine/bench/bench_model.h"

#include "backend/registry.h"
#include "engine/bench/host_device.h"
#include "engine/model_folder.h"
#include "engine/weights/synthetic.h"

namespace sigmoe::bench {
namespace {

WeightFormat format_of(const std::string& name) {
  return name == "fp8" ? WeightFormat::fp8 : name == "int4" ? WeightFormat::int4 : WeightFormat::bf16;
}

class RandomWeights {
 public:
  RandomWeights(BenchModel& model, WeightFormat body, WeightFormat head, bool whole_experts)
      : model_(model),
        config_(model.config),
        body_(body),
        head_(head),
        heads_(shard_heads(model.config, model.rank, model.world)),
        whole_experts_(whole_experts) {}

  ModelWeights make() {
    const int64_t d = config_.hidden_size;
    const size_t n_embedding = static_cast<size_t>(config_.vocab_size) * d;
    weights_.embedding = model_.backend->alloc(n_embedding * 2, "embedding");
    model_.device->fill(weights_.embedding.data(), DType::bf16, n_embedding, 0.0346f, ++seed_);
    weights_.bytes = n_embedding * 2;
    weights_.final_norm = ones(d);
    for (int r = 0; r < model_.world; ++r)
      weights_.vocab_widths.push_back(shard_range(config_.vocab_size, kVocabUnit, r, model_.world).size());
    weights_.lm_head = linear(head_, weights_.vocab_widths[model_.rank], d);
    for (int64_t i = 0; i < config_.n_layers; ++i) weights_.layers.push_back(layer(i));
    model_.backend->synchronize();
    return std::move(weights_);
  }

 private:
  // This rank's part of a width: whole scale blocks, as a checkpoint is cut.
  int64_t part(int64_t width) const { return shard_range(width, 128, model_.rank, model_.world).size(); }

  // Seeds are counted alike on all ranks: what each has whole is the same on all. Null where this rank's part is empty.
  std::unique_ptr<LinearWeight> linear(WeightFormat format, int64_t n, int64_t k, bool gate_up = false) {
    ++seed_;
    if (n == 0 || k == 0) return nullptr;
    LinearDesc desc;
    desc.format = format;
    desc.n = n;
    desc.k = k;
    desc.gate_up = gate_up;
    desc.name = "random weight";
    if (format == WeightFormat::fp8 || format == WeightFormat::int4)
      for (int64_t at = 0; at <= k; at += 128) desc.k_bounds.push_back(std::min(at, k));
    auto made = model_.device->random_linear(desc, seed_ * 0x1000003);
    weights_.bytes += made->bytes();
    return made;
  }

  DeviceBuffer constant(int64_t n, float value) {
    DeviceBuffer buffer = model_.backend->alloc(n * sizeof(float), "norm weights");
    const std::vector<float> values(n, value);
    model_.backend->upload(buffer.data(), values.data(), n * sizeof(float));
    return buffer;
  }
  DeviceBuffer ones(int64_t n) { return constant(n, 1.0f); }

  LayerWeights layer(int64_t index) {
    const int64_t d = config_.hidden_size;
    LayerWeights layer;
    layer.qkv = linear(body_, (heads_.q.size() + 2 * heads_.kv.size()) * config_.head_dim, d);
    layer.attn_out = linear(body_, d, heads_.q.size() * config_.head_dim);
    layer.input_norm = ones(d);
    layer.post_attention_norm = ones(d);
    layer.q_norm = ones(config_.head_dim);
    layer.k_norm = ones(config_.head_dim);
    layer.dense = config_.is_dense(index);
    const int64_t shared = part(layer.dense ? config_.dense_width : config_.shared_width);
    layer.shared_gate_up = linear(body_, 2 * shared, d, true);
    layer.shared_down = linear(body_, d, shared);
    layer.experts.shared_gate_up = layer.shared_gate_up.get();
    layer.experts.shared_down = layer.shared_down.get();
    if (layer.dense) return layer;
    layer.router = linear(WeightFormat::bf16, config_.n_experts, d);
    layer.router_bias = constant(config_.n_experts, 0.0f);
    const Shard own = shard_range(config_.n_experts, 1, model_.rank, model_.world);
    for (int64_t e = 0; e < config_.n_experts; ++e) {
      const bool here = own.begin <= e && e < own.end;
      const int64_t width = !whole_experts_ ? part(config_.expert_width) : here ? config_.expert_width : 0;
      layer.experts.gate_up.push_back(layer.gate_up.emplace_back(linear(body_, 2 * width, d, true)).get());
      layer.experts.down.push_back(layer.down.emplace_back(linear(body_, d, width)).get());
    }
    return layer;
  }

  BenchModel& model_;
  const ModelConfig& config_;
  WeightFormat body_, head_;
  HeadShard heads_;
  bool whole_experts_;
  ModelWeights weights_;
  uint64_t seed_ = 0;
};

bool makes_weights(BenchDevice& device) {
  LinearDesc smallest;
  smallest.n = smallest.k = 128;
  smallest.name = "random weight";
  return device.random_linear(smallest, 1) != nullptr;
}

}  // namespace

void open_device(BenchModel& model, const Options& options) {
  const std::string device = resolve_device(options.engine.device, model.device_reason);
  BackendOptions backend = backend_options(options.engine);
  backend.device_index = model.rank;
  model.backend = create_backend(device, backend);
  model.device = model.backend->bench_device();
  if (!model.device) model.device = make_host_device(*model.backend);
}

BenchModel make_model(const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled) {
  BenchModel model;
  open_device(model, options);
  fill_model(model, options, on_line, cancelled);
  return model;
}

void fill_model(BenchModel& model, const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled) {
  if (!options.model.empty()) {
    on_line("loading " + options.model);
    const ModelFolder folder = open_model_folder(options.model);
    model.config = folder.config;
    LoadOptions load;
    load.n_threads = backend_options(options.engine).n_threads;
    load.cancelled = cancelled;
    load.rank = model.rank;
    load.world = model.world;
    load.expert_parallel = options.engine.expert_parallel;
    model.weights = load_weights(model.config, folder.checkpoint, *model.backend, load);
    return;
  }
  model.config = shape_config(options.shape);
  on_line("making random " + options.dtype + " weights of shape " + options.shape);
  const WeightFormat body = format_of(options.dtype), head = format_of(options.head);
  if (makes_weights(*model.device)) {
    model.weights = RandomWeights(model, body, head, options.engine.expert_parallel).make();
  } else if (model.world > 1) {
    throw EngineError(ErrorCode::unsupported,
                      "random weights in parts asked for on " + model.backend->info().device + ", which makes none itself",
                      "measure several ranks there with a model folder");
  } else {
    if (head != WeightFormat::bf16)
      throw EngineError(ErrorCode::unsupported, "a head in " + options.head + " asked for on " + model.backend->info().device,
                        "use a bf16 head there");
    model.weights = synthetic_weights(model.config, body, *model.backend, 7, model.backend->info().n_threads);
  }
}

}  // namespace sigmoe::bench
