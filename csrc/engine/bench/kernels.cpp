#include <algorithm>

#include "engine/bench/modes.h"
#include "engine/bench/ops.h"

namespace sigmoe::bench {
namespace {

class Kernels {
 public:
  Kernels(BenchModel& model, const Options& options, Meter& meter)
      : model_(model),
        options_(options),
        meter_(meter),
        costs_(costs_of(model, options)),
        config_(model.config),
        on_host_(model.backend->info().device == "cpu") {}

  void run() {
    const auto given = [](const std::vector<int>& asked, std::vector<int> usual) { return asked.empty() ? usual : asked; };
    for (const int batch : given(options_.batches, {1, 8, 32, 128})) decode_ops(batch);
    for (const int n : given(options_.tokens, on_host_ ? std::vector<int>{512} : std::vector<int>{512, 8192})) prompt_ops(n);
    for (const int context : given(options_.contexts, on_host_ ? std::vector<int>{4096} : std::vector<int>{8192, 32768})) {
      decode_attention(1, context);
      decode_attention(8, context);
    }
    if (!on_host_) {
      product(WeightFormat::bf16);
      product(WeightFormat::fp8);
    }
    experts_by_rows(given(options_.rows, on_host_ ? std::vector<int>{1, 8} : std::vector<int>{1, 8, 16, 64, 256, 512}));
  }

 private:
  void add(const std::string& name, const Json& facts, const std::function<void()>& work, const Cost& cost, int n = 1) {
    Json all = {{"phase", "kernels"}, {"part", name}};
    all.update(facts);
    meter_.say_kernels(meter_.add(all, meter_.time_recorded(work), cost, n), work, n);
  }

  void add_layer_op(const LayerOps& ops, const LayerOp& op, const Json& facts) {
    add(
        op.name, facts, [&] { ops.run(op); }, op.cost, ops.count(op));
  }

  void decode_ops(int batch) {
    meter_.say("ops of a decode step of " + std::to_string(batch));
    constexpr int kContext = 1024;
    Step step(model_, batch, 1, kContext, 1);
    step.fill_cache();
    const LayerOps ops(model_, step, costs_, 0);
    const Json facts = {{"batch", batch}, {"context", kContext}};
    for (const LayerOp& op : ops.all()) add_layer_op(ops, op, facts);
    const auto head = [&] { step.head(); };
    const auto sample = [&] { step.sample(); };
    Cost logits;
    logits.bytes = 4.0 * batch * static_cast<double>(config_.vocab_size);
    add("head", facts, head, costs_.head(batch));
    add("sample, greedy", facts, sample, logits);
    step.sample_with(0.6f, 0.95f, 20);
    add("sample, top-k and top-p", facts, sample, logits);
    small_ops(step, facts);
  }

  // Ops of no weights worth naming: their bytes are their rows, in and out.
  void small_ops(Step& step, const Json& facts) {
    Backend& b = *model_.backend;
    Workspace& ws = step.workspace();
    const int n = step.rows(), width = static_cast<int>(config_.hidden_size);
    const double row_bytes = 4.0 * n * width;
    const Tensor table(model_.weights.embedding.data(), model_.weights.embedding_dtype, {config_.vocab_size, width});
    const auto embed = [&] { b.embed(table, step.last().token_ids, n, ws.residual.as<float>()); };
    Cost cost;
    cost.bytes = row_bytes * 1.5;
    add("embed", facts, embed, cost);
    const auto copy = [&] {
      b.copy_rows(ws.residual.as<float>(), nullptr, width, ws.partial.as<float>(), nullptr, width, n, width);
    };
    cost.bytes = row_bytes * 2;
    add("copy rows", facts, copy, cost);
    const float* norm = model_.weights.final_norm.as<float>();
    const auto join = [&] {
      b.join_norms(ws.residual.as<float>(), norm, ws.normed.as<float>(), norm, config_.rms_eps, n, width,
                   ws.partial.as<float>());
    };
    cost.bytes = row_bytes * 4;
    add("join norms", facts, join, cost);
  }

  void prompt_ops(int n_tokens) {
    meter_.say("ops of a prompt of " + std::to_string(n_tokens));
    Step step(model_, 1, n_tokens, n_tokens, n_tokens);
    const LayerOps ops(model_, step, costs_, 0);
    for (const LayerOp& op : ops.all()) add_layer_op(ops, op, {{"rows", n_tokens}, {"context", n_tokens}});
  }

  void decode_attention(int batch, int context) {
    meter_.say("attention of " + std::to_string(batch) + " over " + std::to_string(context));
    Step step(model_, batch, 1, context, 1);
    step.fill_cache();
    const LayerOps ops(model_, step, costs_, 0);
    add_layer_op(ops, ops.op("attention"), {{"batch", batch}, {"context", context}});
  }

  // The usual yardstick of matrix libraries: (8192, 8192) times (8192, 8192).
  void product(WeightFormat format) {
    constexpr int kSize = 8192;
    LinearDesc desc;
    desc.format = format;
    desc.n = desc.k = kSize;
    if (format == WeightFormat::fp8)
      for (int at = 0; at <= kSize; at += 128) desc.k_bounds.push_back(at);
    desc.name = "random weight";
    const auto weight = model_.device->random_linear(desc, 99);
    if (!weight) return;
    meter_.say(std::string("a product of 8192 in ") + weight_format_name(format));
    constexpr size_t kElements = size_t{kSize} * kSize;
    Backend& b = *model_.backend;
    const DeviceBuffer x = b.alloc(kElements * sizeof(float), "a factor"), y = b.alloc(kElements * sizeof(float), "a product");
    model_.device->fill(x.data(), DType::f32, kElements, 1.7f, 5);
    Cost cost;
    cost.bytes = static_cast<double>(weight->bytes());
    (format == WeightFormat::fp8 ? cost.flop_fp8 : cost.flop) = 2.0 * kSize * kElements;
    const auto work = [&] { b.linear(x.as<float>(), *weight, kSize, y.as<float>()); };
    add(std::string("product of 8192, ") + weight_format_name(format), {{"rows", kSize}}, work, cost);
  }

  // Every expert gets as many rows as every other, and there is no shared expert: what grouped products of other libraries do.
  void experts_by_rows(const std::vector<int>& rows) {
    if (config_.n_experts == 0) return;
    const auto tokens_of = [&](int n) { return static_cast<int>(n * config_.n_experts / config_.n_active); };
    const int most = tokens_of(*std::max_element(rows.begin(), rows.end()));
    Step step(model_, 1, most, most, most);
    step.use_noise();
    for (const int n : rows) {
      meter_.say("experts of " + std::to_string(n) + " rows each");
      experts_of(step, n, tokens_of(n));
    }
  }

  void experts_of(Step& step, int rows, int n_tokens) {
    Backend& b = *model_.backend;
    const int n_active = static_cast<int>(config_.n_active), n_experts = static_cast<int>(config_.n_experts);
    std::vector<int32_t> ids(static_cast<size_t>(n_tokens) * n_active);
    for (size_t slot = 0; slot < ids.size(); ++slot) ids[slot] = static_cast<int32_t>(slot % n_experts);
    std::vector<ExpertWeights> layers;
    for (const LayerWeights& layer : model_.weights.layers) {
      if (layer.dense) continue;
      layers.push_back(layer.experts);
      layers.back().shared_gate_up = layers.back().shared_down = nullptr;
      if (layers.size() > 1) continue;
      b.route(step.workspace().normed.as<float>(), *layer.router, layer.router_bias.as<float>(), router_shape(config_),
              n_tokens, ids.data(), step.workspace().router_logits.as<float>(), step.routing());
    }
    const auto run = [&](size_t i) {
      b.experts(step.workspace().normed.as<float>(), layers[i], step.routing(), n_active, n_tokens,
                static_cast<int>(config_.hidden_size), step.workspace().partial.as<float>());
    };
    add(
        "experts, none shared", {{"rowsPerExpert", rows}, {"rows", n_tokens}},
        [&] {
          for (size_t i = 0; i < layers.size(); ++i) run(i);
        },
        costs_.experts(n_experts, n_tokens, false), static_cast<int>(layers.size()));
  }

  BenchModel& model_;
  const Options& options_;
  Meter& meter_;
  Costs costs_;
  const ModelConfig& config_;
  bool on_host_;
};

}  // namespace

void measure_kernels(BenchModel& model, const Options& options, Meter& meter) { Kernels(model, options, meter).run(); }

}  // namespace sigmoe::bench
