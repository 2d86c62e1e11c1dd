// Router and experts of the CPU backend on every path: formats, empty experts, all tokens to one, tensor parallel shares.
#include <algorithm>
#include <numeric>

#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

struct Layer {
  int64_t width, inner, shared_inner;  // D, F, Fs (0: no shared expert)
  int n_experts, n_active, n_groups, n_groups_kept;
  WeightFormat format;
  int64_t block;  // of FP8; group of INT4
};

const Layer kLayers[] = {
    {64, 32, 32, 16, 4, 4, 2, WeightFormat::bf16, 0},    {256, 128, 128, 8, 2, 1, 1, WeightFormat::fp8, 128},
    {192, 160, 160, 8, 2, 2, 1, WeightFormat::fp8, 128},  // panels and blocks end at different places
    {100, 24, 40, 6, 3, 1, 1, WeightFormat::bf16, 0},     // nothing divides anything
    {96, 48, 0, 5, 1, 1, 1, WeightFormat::f32, 0},       {128, 64, 64, 256, 8, 8, 4, WeightFormat::int4, 32},
};

// What the op leaves in caller-owned memory.
struct RoutingMemory {
  std::vector<int32_t> ids, offsets, order;
  std::vector<float> weights, logits;
  Routing view;
  RoutingMemory(int n_tokens, int n_active, int n_experts)
      : ids(n_tokens * n_active),
        offsets(n_experts + 1),
        order(n_tokens * n_active),
        weights(n_tokens * n_active),
        logits(n_tokens * n_experts),
        view{ids.data(), weights.data(), offsets.data(), order.data()} {}
};

struct LayerWeightsOf {
  std::vector<std::unique_ptr<LinearWeight>> owned;
  std::unique_ptr<LinearWeight> gate;
  ExpertWeights experts;
};

std::vector<int64_t> bounds(const Layer& layer, int64_t k) {
  return layer.block ? blocks_of(k, layer.block) : std::vector<int64_t>{};
}

LayerWeightsOf put_layer(Backend& backend, const Layer& layer) {
  LayerWeightsOf out;
  const int64_t block_n = layer.format == WeightFormat::int4 ? 1 : 128;
  const auto add = [&](int64_t n, int64_t k, uint64_t seed, bool gate_up) {
    out.owned.push_back(random_weight(layer.format, n, k, bounds(layer, k), block_n, seed, gate_up).put(backend));
    return out.owned.back().get();
  };
  for (int e = 0; e < layer.n_experts; ++e) {
    out.experts.gate_up.push_back(add(2 * layer.inner, layer.width, 100 + e, true));
    out.experts.down.push_back(add(layer.width, layer.inner, 500 + e, false));
  }
  if (layer.shared_inner) {
    out.experts.shared_gate_up = add(2 * layer.shared_inner, layer.width, 900, true);
    out.experts.shared_down = add(layer.width, layer.shared_inner, 901, false);
  }
  out.gate = random_weight(WeightFormat::bf16, layer.n_experts, layer.width, {}, 0, 902).put(backend);
  return out;
}

RouterShape router_shape(const Layer& layer) {
  return {layer.n_experts, layer.n_active, layer.n_groups, layer.n_groups_kept, true, 2.5f};
}

struct Result {
  RoutingMemory routing;
  std::vector<float> out;
};

Result run_layer(Backend& backend, const Layer& layer, const LayerWeightsOf& weights, const std::vector<float>& x, int n_tokens,
                 const int32_t* forced = nullptr) {
  const int n_slots = layer.n_active + (layer.shared_inner ? 1 : 0);
  Result result{RoutingMemory(n_tokens, layer.n_active, layer.n_experts),
                std::vector<float>(n_tokens * n_slots * layer.width, -7.0f)};
  const std::vector<float> bias = gaussian(layer.n_experts, 77, 0.1f);
  backend.route(x.data(), *weights.gate, bias.data(), router_shape(layer), n_tokens, forced, result.routing.logits.data(),
                result.routing.view);
  backend.experts(x.data(), weights.experts, result.routing.view, layer.n_active, n_tokens, static_cast<int>(layer.width),
                  result.out.data());
  return result;
}

double tolerance(const Backend& backend, const Layer& layer) {
  return backend.info().compute == DType::bf16 && layer.format != WeightFormat::f32 ? Tolerance::kBf16Experts
                                                                                    : Tolerance::kFloat32;
}

}  // namespace

TEST_CASE("route and experts: every path agrees with the reference") {
  const auto reference = make_backend({"reference", DType::f32});
  for (const Layer& layer : kLayers) {
    const LayerWeightsOf expected_weights = put_layer(*reference, layer);
    for (const Path& path : all_paths()) {
      const auto backend = make_backend(path);
      const LayerWeightsOf weights = put_layer(*backend, layer);
      for (const int n_tokens : {1, 2, 9, 40}) {
        CAPTURE(path.label());
        CAPTURE(layer.width);
        CAPTURE(n_tokens);
        const std::vector<float> x = gaussian(n_tokens * layer.width, 20 + n_tokens);
        const Result expected = run_layer(*reference, layer, expected_weights, x, n_tokens);
        const Result result = run_layer(*backend, layer, weights, x, n_tokens, expected.routing.ids.data());
        // The router multiplies in float32 on every path.
        CHECK(relative_error(result.routing.logits, expected.routing.logits) < Tolerance::kFloat32);
        CHECK(relative_error(result.routing.weights, expected.routing.weights) < Tolerance::kFloat32);
        CHECK(result.routing.offsets == expected.routing.offsets);
        CHECK(result.routing.order == expected.routing.order);
        CHECK(relative_error(result.out, expected.out) < tolerance(*backend, layer));
      }
    }
  }
}

TEST_CASE("experts: a token's bits do not depend on the other tokens or the threads") {
  for (const Path& path : all_paths())
    for (const Layer& layer : kLayers) {
      CAPTURE(path.label());
      CAPTURE(layer.width);
      constexpr int kTokens = 300;  // the shared expert has more rows than one chunk
      const auto backend = make_backend(path, 2);
      const LayerWeightsOf weights = put_layer(*backend, layer);
      const std::vector<float> x = gaussian(kTokens * layer.width, 31);
      const Result together = run_layer(*backend, layer, weights, x, kTokens);
      const auto three = make_backend(path, 3);
      CHECK(run_layer(*three, layer, put_layer(*three, layer), x, kTokens).out == together.out);
      const size_t token_floats = together.out.size() / kTokens;
      for (const int n : {1, 3, 8})
        for (const int first : {0, 150, 292}) {
          const std::vector<float> part(x.begin() + first * layer.width, x.begin() + (first + n) * layer.width);
          const std::vector<float> expected(together.out.begin() + first * token_floats,
                                            together.out.begin() + (first + n) * token_floats);
          CHECK(run_layer(*backend, layer, weights, part, n).out == expected);
        }
    }
}

TEST_CASE("experts: all tokens to one expert, and the rest empty") {
  const Layer& layer = kLayers[1];
  const auto reference = make_backend({"reference", DType::f32});
  constexpr int kTokens = 37;
  std::vector<int32_t> forced(kTokens * layer.n_active);
  for (int t = 0; t < kTokens; ++t) {
    forced[2 * t] = 5;
    forced[2 * t + 1] = 3;
  }
  const std::vector<float> x = gaussian(kTokens * layer.width, 41);
  const Result expected = run_layer(*reference, layer, put_layer(*reference, layer), x, kTokens, forced.data());
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path);
    const Result result = run_layer(*backend, layer, put_layer(*backend, layer), x, kTokens, forced.data());
    CHECK(result.routing.offsets == expected.routing.offsets);
    CHECK(relative_error(result.out, expected.out) < tolerance(*backend, layer));
  }
}

TEST_CASE("experts: slots of a rank without a share are zero, the others as ever") {
  const Layer& layer = kLayers[0];
  const std::vector<float> x = gaussian(5 * layer.width, 51);
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path);
    LayerWeightsOf weights = put_layer(*backend, layer);
    const Result whole = run_layer(*backend, layer, weights, x, 5);
    std::fill(weights.experts.gate_up.begin(), weights.experts.gate_up.end(), nullptr);
    std::fill(weights.experts.down.begin(), weights.experts.down.end(), nullptr);
    const Result part = run_layer(*backend, layer, weights, x, 5);
    const int n_slots = layer.n_active + 1;
    for (int t = 0; t < 5; ++t)
      for (int slot = 0; slot < n_slots; ++slot)
        for (int i = 0; i < layer.width; ++i) {
          const size_t at = (t * n_slots + slot) * layer.width + i;
          REQUIRE(part.out[at] == (slot == layer.n_active ? whole.out[at] : 0.0f));
        }
  }
}

TEST_CASE("experts: a dense MLP is the shared slot alone, also where this rank has no share of it") {
  const HostWeight gate_up = random_weight(WeightFormat::bf16, 2 * 88, 72, {}, 0, 61, true);
  const HostWeight down = random_weight(WeightFormat::bf16, 72, 88, {}, 0, 62);
  const auto reference = make_backend({"reference", DType::f32});
  for (const int n_tokens : {0, 1, 7}) {
    const std::vector<float> x = gaussian(n_tokens * 72, 63);
    const auto run = [&](Backend& backend, bool has_share) {
      const auto first = gate_up.put(backend), second = down.put(backend);
      ExpertWeights weights;
      if (has_share) {
        weights.shared_gate_up = first.get();
        weights.shared_down = second.get();
      }
      std::vector<float> out(n_tokens * 72, -7.0f);
      backend.experts(x.data(), weights, {}, 0, n_tokens, 72, out.data());
      return out;
    };
    const std::vector<float> expected = run(*reference, true);
    for (const Path& path : all_paths()) {
      CAPTURE(path.label());
      const auto backend = make_backend(path);
      CHECK(relative_error(run(*backend, true), expected) < tolerance(*backend, kLayers[0]));
      CHECK(run(*backend, false) == std::vector<float>(n_tokens * 72, 0.0f));
    }
  }
}

TEST_CASE("experts: routed and shared weights may differ in format") {
  const Layer& layer = kLayers[1];
  const HostWeight gate_up = random_weight(WeightFormat::bf16, 2 * 96, layer.width, {}, 0, 71, true);
  const HostWeight down = random_weight(WeightFormat::bf16, layer.width, 96, {}, 0, 72);
  const std::vector<float> x = gaussian(6 * layer.width, 73);
  const auto run = [&](Backend& backend) {
    LayerWeightsOf weights = put_layer(backend, layer);
    const auto first = gate_up.put(backend), second = down.put(backend);
    weights.experts.shared_gate_up = first.get();
    weights.experts.shared_down = second.get();
    return run_layer(backend, layer, weights, x, 6).out;
  };
  const auto reference = make_backend({"reference", DType::f32});
  const std::vector<float> expected = run(*reference);
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path);
    CHECK(relative_error(run(*backend), expected) < tolerance(*backend, layer));
  }
}
