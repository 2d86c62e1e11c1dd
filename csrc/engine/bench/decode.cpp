#include <algorithm>
#include <numeric>

#include "engine/bench/modes.h"
#include "engine/bench/ops.h"

namespace sigmoe::bench {
namespace {

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// One batch size at one context.
class DecodePoint {
 public:
  DecodePoint(BenchModel& model, const Options& options, Meter& meter, int batch, int context)
      : model_(model),
        meter_(meter),
        batch_(batch),
        context_(context),
        costs_(costs_of(model, options)),
        step_(model, batch, 1, context, 1) {
    step_.fill_cache();
    touched_ = step_.touched_by_forward();
  }

  void whole() {
    meter_.say("decode, batch " + std::to_string(batch_) + ", context " + std::to_string(context_));
    const Cost trunk = costs_.trunk(batch_, 1, context_, sum(touched_));
    Json facts = this->facts("whole");
    facts["tokens"] = batch_;
    if (!touched_.empty()) facts["distinctExperts"] = sum(touched_) / static_cast<double>(touched_.size());
    const auto step = [&] {
      step_.graph().forward(step_.last());
      step_.head();
      step_.sample();
    };
    Json& row = meter_.add(facts, meter_.time_recorded(step), trunk + costs_.head(batch_));
    meter_.say_kernels(row, step);
    const double n_layers = static_cast<double>(model_.weights.layers.size());
    meter_.add(this->facts("layer, mean"), meter_.time_recorded([&] { step_.graph().forward(step_.last()); }),
               trunk * (1 / n_layers), n_layers);
  }

  void by_op() {
    const LayerOps ops(model_, step_, costs_, 0);
    for (const LayerOp& op : ops.all()) {
      const int n = ops.count(op);
      const auto all_layers = [&] { ops.run(op); };
      Json& row = meter_.add(facts(op.name), meter_.time_recorded(all_layers), op.cost, n);
      meter_.say_kernels(row, all_layers, n);
    }
    meter_.say_kernels(meter_.add(facts("head"), meter_.time_recorded([&] { step_.head(); }), costs_.head(batch_)),
                       [&] { step_.head(); });
    Cost logits;  // read once; what a sampler needs beyond that is its own affair
    logits.bytes = 4.0 * batch_ * static_cast<double>(model_.config.vocab_size);
    meter_.add(facts("sample, greedy"), meter_.time_recorded([&] { step_.sample(); }), logits);
    step_.sample_with(0.6f, 0.95f, 20);
    meter_.add(facts("sample, top-k and top-p"), meter_.time_recorded([&] { step_.sample(); }), logits);
  }

  // The parts of a step, each over all layers.
  void by_block() {
    const LayerOps ops(model_, step_, costs_, 0);
    const double n_layers = static_cast<double>(model_.weights.layers.size());
    const auto add = [&](const char* part, const Cost& cost, const std::function<void()>& work) {
      Json facts = this->facts(part);
      facts["tokens"] = batch_;
      meter_.add(facts, meter_.time_recorded(work), cost);
    };
    add("attention", (costs_.qkv(batch_) + costs_.attention(batch_, 1, context_) + costs_.attention_out(batch_)) * n_layers,
        [&] { ops.attention_blocks(); });
    if (ops.touched() > 0) {
      const double n_moe = static_cast<double>(touched_.size());
      add("experts", (costs_.experts(ops.touched() / n_moe, batch_) + costs_.route(batch_)) * n_moe,
          [&] { ops.expert_blocks(); });
    }
    add("head", costs_.head(batch_), [&] { step_.head(); });
  }

 private:
  Json facts(const std::string& part) const {
    return {{"phase", "decode"}, {"part", part}, {"batch", batch_}, {"context", context_}};
  }

  BenchModel& model_;
  Meter& meter_;
  int batch_, context_;
  Costs costs_;
  Step step_;
  std::vector<double> touched_;  // by a whole step, of each MoE layer
};

template <typename Body>
void for_each_point(const Options& options, Body body) {
  const std::vector<int> batches = options.batches.empty() ? std::vector<int>{1, 8, 32, 128} : options.batches;
  const std::vector<int> contexts = options.contexts.empty() ? std::vector<int>{1024} : options.contexts;
  for (const int context : contexts)
    for (const int batch : batches) body(batch, context);
}

}  // namespace

void measure_decode(BenchModel& model, const Options& options, Meter& meter) {
  for_each_point(options, [&](int batch, int context) {
    DecodePoint point(model, options, meter, batch, context);
    point.whole();
    point.by_op();
  });
}

void measure_decode_steps(BenchModel& model, const Options& options, Meter& meter) {
  for_each_point(options, [&](int batch, int context) { DecodePoint(model, options, meter, batch, context).whole(); });
}

void measure_model(BenchModel& model, const Options& options, Meter& meter) {
  Options prompt = options;
  prompt.tokens = {options.prefill};
  if (options.prefill > 0) measure_prefill(model, prompt, meter);
  DecodePoint point(model, options, meter, 1, options.contexts.empty() ? 128 : options.contexts[0]);
  point.whole();
  point.by_block();
}

}  // namespace sigmoe::bench
