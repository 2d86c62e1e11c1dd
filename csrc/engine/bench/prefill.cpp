#include <algorithm>
#include <numeric>

#include "engine/bench/modes.h"
#include "engine/bench/ops.h"

namespace sigmoe::bench {
namespace {

// A host's caches want short chunks; a GPU's matrix units want long ones.
int chunk_of(const BenchModel& model, const Options& options) {
  if (options.chunk > 0) return options.chunk;
  return model.backend->info().device == "cpu" ? 512 : 16384;
}

constexpr int kLongChunks = 4;        // prompts of more take seconds
constexpr int kCountedTokens = 1024;  // up to here not every expert need be touched

void measure_prompt(BenchModel& model, const Options& options, Meter& meter, int n_tokens) {
  const int chunk = std::min(chunk_of(model, options), n_tokens);
  meter.say("prefill of " + std::to_string(n_tokens) + " tokens, " + std::to_string(chunk) + " at once");
  const Costs costs = costs_of(model, options);
  Step step(model, 1, n_tokens, n_tokens, chunk);
  const int last = step.n_chunks() - 1;
  const LayerOps ops(model, step, costs, 0);
  const double n_layers = static_cast<double>(model.weights.layers.size());
  const auto facts = [&](const std::string& part, int tokens) -> Json {
    return {{"phase", "prefill"}, {"part", part}, {"prompt", n_tokens}, {"chunk", chunk}, {"tokens", tokens}};
  };

  // Every chunk of thousands of tokens touches every expert. Those of shorter ones are counted in a pass of their own, for
  // tokens need not spread as the routed noise does.
  double touched = ops.touched();
  if (last == 0 && n_tokens <= kCountedTokens) {
    const std::vector<double> by_layer = step.touched_by_forward();
    touched = std::accumulate(by_layer.begin(), by_layer.end(), 0.0);
  }
  Cost whole = costs.head(1);
  for (int i = 0; i <= last; ++i) whole += costs.trunk(1, step.view(i).n_tokens, step.context_after(i), touched);
  Json all = facts("whole", n_tokens);
  all["distinctExperts"] = touched / std::max(1, touched > 0 ? ops.count(ops.op("route")) : 1);
  const auto prompt = [&](int n_chunks) {
    for (int i = 0; i < n_chunks; ++i) step.graph().forward(step.view(i));
    step.head();
    step.sample();
  };
  const bool takes_seconds = last >= kLongChunks;
  if (takes_seconds) prompt(1);  // one chunk warms up what all of them use
  const auto run = [&] { prompt(last + 1); };
  const Json& row = meter.add(all, takes_seconds ? meter.time_once(run) : meter.time(run), whole);
  const auto tokens_per_second = static_cast<int64_t>(row["tokensPerSecond"].get<double>());
  meter.say("  the whole prompt: " + std::to_string(tokens_per_second) + " tokens/s; now its parts");

  step.use_noise();
  // Parts, of the first chunk where every chunk does the same, of the last one for attention.
  const int rows = step.rows();
  Cost linear = costs.trunk(1, rows, rows, ops.touched());
  linear -= costs.attention(1, rows, rows) * n_layers;
  meter.add(facts("linear layers", rows), meter.time([&] { ops.linear_layers(); }), linear);
  const LayerOps of_last(model, step, costs, last);
  for (const LayerOp& op : of_last.all()) {
    const bool attends = op.name == "attention";
    const LayerOps& used = attends ? of_last : ops;
    const LayerOp& measured = used.op(op.name);
    Json part = facts(op.name, attends ? step.last().n_tokens : rows);
    if (attends) part["context"] = step.context();
    const auto all_layers = [&] { used.run(measured); };
    Json& row = meter.add(part, meter.time(all_layers), measured.cost, used.count(measured));
    row.erase("tokensPerSecond");  // of one layer: it would mislead
    meter.say_kernels(row, all_layers, used.count(measured));
  }
}

}  // namespace

void measure_prefill(BenchModel& model, const Options& options, Meter& meter) {
  const std::vector<int> lengths = options.tokens.empty() ? std::vector<int>{512, 2048, 8192} : options.tokens;
  for (const int n_tokens : lengths) measure_prompt(model, options, meter, n_tokens);
}

}  // namespace sigmoe::bench
