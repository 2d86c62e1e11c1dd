// What a near-tie may do to the bundled model: the figure that its self-test recording holds is measured here again. A router
// whose two best candidates for the last place have scores closer than BF16 rounds may choose either; so every such choice of
// the recorded prompts is swapped, one at a time, in float32.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>

#include "backend/registry.h"
#include "doctest/doctest.h"
#include "engine/forward/runner.h"
#include "engine/model_folder.h"
#include "engine/schedule/page_pool.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using Json = nlohmann::json;

namespace {

constexpr double kNearTie = 1.0 / 512;  // of scores in (0, 1): one unit in the last place of BF16 below 1
constexpr int kMostTokens = 256;

// One recorded prompt and its answer, run whole; error() is that of the self-test at its worst position.
class Case {
 public:
  Case(RankRunner& runner, const Json& recorded) : runner_(runner), scores_(recorded["scores"]) {
    in_.token_ids = recorded["prompt"].get<std::vector<int32_t>>();
    const auto answer = recorded["tokens"].get<std::vector<int32_t>>();
    const int first = static_cast<int>(in_.token_ids.size()) - 1;
    in_.token_ids.insert(in_.token_ids.end(), answer.begin(), answer.end() - 1);
    for (int i = 0; i < n_tokens(); ++i) in_.positions.push_back(i);
    for (int i = first; i < n_tokens(); ++i) in_.logits_row_ids.push_back(i);
    in_.seq_offsets = {0, n_tokens()};
    in_.max_pages = static_cast<int>(pages_for(n_tokens()));
    for (int page = 0; page < in_.max_pages; ++page) in_.page_tables.push_back(page);
    error(trace_);
  }

  int n_tokens() const { return static_cast<int>(in_.token_ids.size()); }
  const Trace& trace() const { return trace_; }

  double error(Trace& trace) {
    StepOutputs out;
    runner_.run(in_, out, &trace);
    const size_t vocab = runner_.config().vocab_size;
    double worst = 0;
    for (size_t row = 0; row < scores_.size(); ++row) {
      double error = 0, norm = 0;
      for (size_t i = 0; i < scores_[row]["ids"].size(); ++i) {
        const double expected = scores_[row]["logits"][i];
        error += std::pow(out.logits[row * vocab + scores_[row]["ids"][i].get<size_t>()] - expected, 2);
        norm += expected * expected;
      }
      worst = std::max(worst, std::sqrt(error / norm));
    }
    return worst;
  }

 private:
  RankRunner& runner_;
  const Json& scores_;
  StepInputs in_;
  Trace trace_;
};

// The chosen expert with the lowest score and the best one that was passed over in the kept groups; {-1, -1} when they are
// apart.
std::pair<int32_t, int32_t> near_tie(const ModelConfig& config, const float* logits, const float* bias, const int32_t* chosen) {
  const int n_experts = static_cast<int>(config.n_experts), group = n_experts / static_cast<int>(config.n_groups);
  const auto score = [&](int e) { return 1 / (1 + std::exp(-static_cast<double>(logits[e]))) + bias[e]; };
  const std::set<int32_t> set(chosen, chosen + config.n_active);
  std::set<int> kept;
  for (const int32_t e : set) kept.insert(e / group);
  const int32_t last = *std::min_element(set.begin(), set.end(), [&](int a, int b) { return score(a) < score(b); });
  int32_t next = -1;
  for (int32_t e = 0; e < n_experts; ++e)
    if (!set.contains(e) && kept.contains(e / group) && (next < 0 || score(e) > score(next))) next = e;
  if (next < 0 || score(last) - score(next) > kNearTie) return {-1, -1};
  return {last, next};
}

}  // namespace

TEST_CASE("selftest recording of the bundled model: what a near-tie does is what swapping near-ties does") {
  const std::string folder = SIGMOE_SOURCE_DIR "/models/nano";
  std::ifstream file(folder + "/selftest.json");
  const Json recording = Json::parse(file);
  const ModelFolder model = open_model_folder(folder);
  BackendOptions options;
  options.compute = DType::f32;
  auto backend = create_backend("cpu", options);
  LoadOptions load;
  load.n_threads = 1;
  ModelWeights weights = load_weights(model.config, model.checkpoint, *backend, load);
  RunnerLimits limits;
  limits.max_tokens = limits.n_positions = kMostTokens;
  limits.max_seqs = 1;
  limits.n_pages = pages_for(kMostTokens);
  RankRunner runner(model.config, std::move(backend), std::move(weights), nullptr, 0, 1, limits);

  double worst = 0;
  int n_swaps = 0;
  for (const Json& recorded : recording["cases"]) {
    Case one(runner, recorded);
    const Trace& trace = one.trace();
    const int64_t n_experts = model.config.n_experts, n_active = model.config.n_active;
    for (size_t moe = 0; moe < trace.router_ids.size(); ++moe) {
      const float* bias = runner.weights().layers[model.config.n_dense_layers + moe].router_bias.as<float>();
      for (int token = 0; token < one.n_tokens(); ++token) {
        const auto [last, next] = near_tie(model.config, &trace.router_logits[moe][token * n_experts], bias,
                                           &trace.router_ids[moe][token * n_active]);
        if (last < 0) continue;
        Trace swapped;
        swapped.forced_ids = trace.router_ids;
        int32_t* ids = &swapped.forced_ids[moe][token * n_active];
        std::replace(ids, ids + n_active, last, next);
        worst = std::max(worst, one.error(swapped));
        ++n_swaps;
      }
    }
  }
  MESSAGE(n_swaps << " near-ties, worst error " << worst);
  CHECK(n_swaps > 50);
  CHECK(recording["bfloat16"]["nearTieError"].get<double>() == doctest::Approx(worst).epsilon(1e-3));
}
