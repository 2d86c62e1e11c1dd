// The experts kernels on the twin with every check on, against the naive reference: routed and shared experts, empty experts,
// all tokens on one, no shared expert, a dense MLP, experts that this rank has no share of, 1 to 24 groups of cores.
#include <memory>
#include <numeric>

#include "ascend/host/tiling_experts.h"
#include "kernel_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;

#define EXPERTS_ENTRY(name)                                                                                         \
  extern "C" void name(uint8_t* x, uint8_t* x_scales, uint8_t* table, uint8_t* expert_offsets, uint8_t* slot_order, \
                       uint8_t* slot_weights, uint8_t* work, uint8_t* out, ExpertsTiling tiling)
EXPERTS_ENTRY(sigmoe_experts_bf16);
EXPERTS_ENTRY(sigmoe_experts_f32);
EXPERTS_ENTRY(sigmoe_experts_int8);

namespace {

constexpr double kBf16Experts = 6e-3;  // two linear layers one after the other
constexpr double kInt8Experts = 3e-2;  // likewise, and the first enters twice: gate times up
constexpr double kInt8Inner = 2e-2;    // SwiGLU results rounded to 1/127 of a row's largest, which is up to 9 times their mean

enum class Choice { random, one_expert, few_experts };

struct Shape {
  int tokens, width, inner, shared_inner, n_experts, n_active;
  int cores;
  Choice choice = Choice::random;
  bool shared = true;  // a slot of the shared expert; with shared_inner 0 its weights are null
};

// Weights (n, k) of every expert, the shared one last; empty: null.
struct Layer {
  Shape shape;
  std::vector<std::vector<float>> gate_up, down;
  std::vector<float> x, slot_weights;
  std::vector<int32_t> ids, offsets, order;
  int slots() const { return shape.n_active + (shape.shared ? 1 : 0); }
};

// A seeded choice of experts, and the lists that route makes of it.
void choose(Layer& layer) {
  const Shape& shape = layer.shape;
  std::mt19937_64 random(shape.tokens * 31 + shape.n_experts);
  for (int t = 0; t < shape.tokens; ++t) {
    std::vector<int32_t> experts(shape.n_experts);
    std::iota(experts.begin(), experts.end(), 0);
    if (shape.choice == Choice::random) std::shuffle(experts.begin(), experts.end(), random);
    if (shape.choice == Choice::few_experts) std::shuffle(experts.begin(), experts.begin() + shape.n_active + 1, random);
    layer.ids.insert(layer.ids.end(), experts.begin(), experts.begin() + shape.n_active);
  }
  const int n = shape.tokens * shape.n_active;
  layer.order.resize(n);
  std::iota(layer.order.begin(), layer.order.end(), 0);
  std::stable_sort(layer.order.begin(), layer.order.end(), [&](int a, int b) { return layer.ids[a] < layer.ids[b]; });
  layer.offsets.assign(shape.n_experts + 1, 0);
  for (const int32_t id : layer.ids) ++layer.offsets[id + 1];
  for (int e = 0; e < shape.n_experts; ++e) layer.offsets[e + 1] += layer.offsets[e];
  for (const float value : gaussian(n, 5)) layer.slot_weights.push_back(0.1f + std::abs(value));
}

Layer make_layer(const Shape& shape) {
  Layer layer;
  layer.shape = shape;
  choose(layer);
  layer.x = gaussian(shape.tokens * shape.width, 7 + shape.tokens);
  for (int e = 0; e <= shape.n_experts; ++e) {
    const int inner = e < shape.n_experts ? shape.inner : shape.shared ? shape.shared_inner : 0;
    layer.gate_up.push_back(bf16_weight(2 * inner, shape.width, 100 + e));
    layer.down.push_back(bf16_weight(shape.width, inner, 900 + e));
  }
  return layer;
}

// Slots of the routed experts, then of the shared one; zero where there are no weights.
std::vector<float> expected_of(Layer layer) {
  const Shape& shape = layer.shape;
  const auto reference = reference_backend();
  std::vector<std::unique_ptr<LinearWeight>> owned;
  const auto put = [&](const std::vector<float>& values, int64_t n, int64_t k) -> const LinearWeight* {
    if (values.empty()) return nullptr;
    owned.push_back(reference_weight(*reference, values, n, k));
    return owned.back().get();
  };
  ExpertWeights weights;
  for (int e = 0; e < shape.n_experts; ++e) {
    weights.gate_up.push_back(put(layer.gate_up[e], 2 * shape.inner, shape.width));
    weights.down.push_back(put(layer.down[e], shape.width, shape.inner));
  }
  weights.shared_gate_up = put(layer.gate_up.back(), 2 * shape.shared_inner, shape.width);
  weights.shared_down = put(layer.down.back(), shape.width, shape.shared_inner);
  const Routing routing{layer.ids.data(), layer.slot_weights.data(), layer.offsets.data(), layer.order.data()};
  const int slots = layer.slots(),
            slots_of_reference = shape.n_active + (weights.shared_gate_up || shape.n_active == 0 ? 1 : 0);
  std::vector<float> out(static_cast<size_t>(shape.tokens) * slots_of_reference * shape.width);
  reference->experts(layer.x.data(), weights, routing, shape.n_active, shape.tokens, shape.width, out.data());
  std::vector<float> expected(static_cast<size_t>(shape.tokens) * slots * shape.width, 0.0f);
  for (int t = 0; t < shape.tokens; ++t)
    std::copy_n(out.begin() + t * slots_of_reference * shape.width, slots_of_reference * shape.width,
                expected.begin() + t * slots * shape.width);
  return expected;
}

// The layer as INT8 holds it: against this the kernel has only the rounding of its SwiGLU results left.
Layer as_int8(Layer layer) {
  const Shape& shape = layer.shape;
  layer.x = dequantised_rows(layer.x, shape.tokens, shape.width);
  for (int e = 0; e <= shape.n_experts; ++e) {
    const int inner = e < shape.n_experts ? shape.inner : shape.shared_inner;
    layer.gate_up[e] = dequantised_rows(layer.gate_up[e], layer.gate_up[e].empty() ? 0 : 2 * inner, shape.width);
    layer.down[e] = dequantised_rows(layer.down[e], layer.down[e].empty() ? 0 : shape.width, inner);
  }
  return layer;
}

template <typename T, typename Entry>
std::vector<float> run(const Layer& layer, Entry entry, int cores) {
  const Shape& shape = layer.shape;
  std::vector<std::unique_ptr<Gm<T>>> weights;
  std::vector<std::unique_ptr<Gm<float>>> scales;
  std::vector<uint64_t> addresses(kExpertTables * (shape.n_experts + 1), 0);
  const auto put = [&](ExpertTable which, ExpertTable which_scales, int e, const std::vector<float>& values, int64_t n,
                       int64_t k) {
    if (values.empty()) return;
    if constexpr (sizeof(T) == 1) {
      const Quantised quantised = quantise_rows(values, n, k);
      weights.push_back(std::make_unique<Gm<T>>(packed<T>(quantised.values, n, k)));
      scales.push_back(std::make_unique<Gm<float>>(quantised.scales));
      addresses[which_scales * (shape.n_experts + 1) + e] = reinterpret_cast<uint64_t>(scales.back()->address());
    } else {
      weights.push_back(std::make_unique<Gm<T>>(packed<T>(values, n, k)));
    }
    addresses[which * (shape.n_experts + 1) + e] = reinterpret_cast<uint64_t>(weights.back()->address());
  };
  for (int e = 0; e <= shape.n_experts; ++e) {
    const int inner = e < shape.n_experts ? shape.inner : shape.shared_inner;
    put(kGateUp, kGateUpScales, e, layer.gate_up[e], 2 * inner, shape.width);
    put(kDown, kDownScales, e, layer.down[e], shape.width, inner);
  }
  std::vector<T> rows;
  std::vector<float> row_scales;
  if constexpr (sizeof(T) == 1) {
    const Quantised quantised = quantise_rows(layer.x, shape.tokens, shape.width);
    rows = pitched<T>(quantised.values, shape.tokens, shape.width);
    row_scales = quantised.scales;
  } else {
    rows = pitched<T>(layer.x, shape.tokens, shape.width);
  }
  const ExpertsTiling tiling = make_experts_tiling({shape.tokens, shape.width, shape.inner, shape.shared_inner, shape.n_experts,
                                                    shape.n_active, shape.shared, row_pitch(shape.width, sizeof(T)), sizeof(T)},
                                                   {cores, 2 * cores});
  Gm<T> x(rows);
  Gm<float> x_scales(row_scales), slot_weights(layer.slot_weights),
      out(static_cast<size_t>(shape.tokens) * layer.slots() * shape.width, NAN);
  Gm<uint64_t> table(addresses);
  Gm<int32_t> offsets(layer.offsets), order(layer.order);
  Gm<uint8_t> work(experts_work_bytes(tiling), 0xff);
  twin::launch(twin::Kind::mix, cores, [&] {
    entry(x.address(), x_scales.address(), table.address(), offsets.address(), order.address(), slot_weights.address(),
          work.address(), out.address(), tiling);
  });
  return out.values();
}

const Shape kShapes[] = {
    {1, 256, 128, 128, 16, 4, 20},                    // decode of the bundled model
    {5, 64, 32, 32, 16, 4, 24},                       // empty experts
    {9, 100, 24, 40, 6, 3, 3},                        // nothing divides anything
    {17, 96, 48, 0, 5, 1, 7, Choice::random, false},  // no shared expert
    {16, 72, 40, 16, 8, 2, 20, Choice::one_expert},   // the same experts for every token
    {150, 64, 32, 16, 4, 1, 20, Choice::one_expert},  // more than one block of rows
    {40, 48, 16, 16, 32, 6, 1, Choice::few_experts},
    {33, 128, 0, 200, 0, 0, 20},  // a dense MLP
    {2, 64, 1100, 16, 3, 1, 5},   // inner wider than a piece
    {3, 2100, 16, 16, 3, 2, 4},   // a token wider than a piece
    {4, 64, 0, 16, 6, 2, 20},     // no share of the routed experts
    {4, 64, 16, 0, 6, 2, 20},     // nor of the shared one
    {70, 40, 24, 24, 256, 8, 24},
};

}  // namespace

TEST_CASE("ascend experts: bf16, float32 and int8 agree with the reference") {
  for (const Shape& shape : kShapes) {
    CAPTURE(shape.tokens);
    CAPTURE(shape.width);
    CAPTURE(shape.inner);
    CAPTURE(shape.shared_inner);
    CAPTURE(shape.n_experts);
    CAPTURE(shape.cores);
    const Layer layer = make_layer(shape);
    const std::vector<float> expected = expected_of(layer), int8 = run<int8_t>(layer, sigmoe_experts_int8, shape.cores);
    CHECK(relative_error(run<bfloat16_t>(layer, sigmoe_experts_bf16, shape.cores), expected) < kBf16Experts);
    CHECK(relative_error(run<float>(layer, sigmoe_experts_f32, shape.cores), expected) < kF32Error);
    CHECK(relative_error(int8, expected) < kInt8Experts);
    CHECK(relative_error(int8, expected_of(as_int8(layer))) < kInt8Inner);
  }
}

TEST_CASE("ascend experts: every number of groups gives the same bits") {
  const Layer layer = make_layer({11, 64, 32, 32, 8, 3, 1});
  const std::vector<float> bf16 = run<bfloat16_t>(layer, sigmoe_experts_bf16, 1),
                           int8 = run<int8_t>(layer, sigmoe_experts_int8, 1);
  for (int cores = 2; cores <= 24; ++cores) {
    CAPTURE(cores);
    CHECK(run<bfloat16_t>(layer, sigmoe_experts_bf16, cores) == bf16);
    CHECK(run<int8_t>(layer, sigmoe_experts_int8, cores) == int8);
  }
}

TEST_CASE("ascend experts: the order in which cores run changes nothing") {
  const Layer layer = make_layer({11, 64, 32, 32, 8, 3, 1});
  const std::vector<float> expected = run<int8_t>(layer, sigmoe_experts_int8, 6);
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    twin::schedule(seed);
    const std::vector<float> out = run<int8_t>(layer, sigmoe_experts_int8, 6);
    twin::schedule(0);
    CHECK(out == expected);
  }
}

TEST_CASE("ascend experts: 512 tokens") {
  const Layer layer = make_layer({512, 48, 16, 16, 8, 2, 20});
  CHECK(relative_error(run<bfloat16_t>(layer, sigmoe_experts_bf16, 20), expected_of(layer)) < kBf16Experts);
}

TEST_CASE("ascend experts tiling: the workspace of the real model, and what does not fit") {
  // Ling-flash-2.0: D 4096, F 1024, 256 experts, 8 active.
  const ExpertsTiling decode = make_experts_tiling({1, 4096, 1024, 1024, 256, 8, true, 4096, 2}, {20, 40});
  CHECK(decode.sum_pitch == 4096);
  CHECK(decode.inner_pitch == 1024);
  CHECK(decode.inner_at == 9 * 4096 * 4);
  CHECK(decode.scales_at == decode.inner_at + 9 * 1024 * 2);
  CHECK(experts_work_bytes(decode) == static_cast<size_t>(decode.scales_at + 9 * 32));
  for (const int cores : {20, 24}) {
    const ExpertsTiling tiling = make_experts_tiling({64, 4096, 1024, 1024, 256, 8, true, 4096, 1}, {cores, 2 * cores});
    for (const int32_t tile : {tiling.up_tile, tiling.shared_up_tile, tiling.down_tile}) {
      CHECK(tile % 16 == 0);
      CHECK(tile <= 128);
    }
  }
  CHECK_THROWS_AS(make_experts_tiling({1, 4096, 20000, 1024, 256, 8, true, 4096, 2}, {20, 40}), EngineError);
  CHECK_THROWS_AS(make_experts_tiling({1, 70000, 1024, 1024, 256, 8, true, 70000, 2}, {20, 40}), EngineError);
}
