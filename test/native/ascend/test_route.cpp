// Kernel route on the twin, checks on, against the reference: every router shape, tails, ties, forced choices, 1 to 48 cores.
#include "ascend/host/tiling_route.h"
#include "ascend/host/tiling_rows.h"
#include "cpu/reference.h"
#include "kernel_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;

extern "C" __global__ __aicore__ void sigmoe_route(GM_ADDR x, GM_ADDR gate, GM_ADDR bias, GM_ADDR forced_ids, GM_ADDR logits,
                                                   GM_ADDR expert_ids, GM_ADDR weights, GM_ADDR expert_offsets,
                                                   GM_ADDR slot_order, RouteTiling tiling);

namespace {

struct Result {
  std::vector<float> logits, weights;
  std::vector<int32_t> ids, offsets, slots;
};

struct Case {
  RouterShape shape;
  int n_tokens = 0, width = 0;
  std::vector<float> x, gate, bias;
  std::vector<int32_t> forced;  // (T, A) or empty
};

Case random_case(const RouterShape& shape, int n_tokens, int width, uint64_t seed) {
  return {shape,
          n_tokens,
          width,
          gaussian(size_t(n_tokens) * width, seed),
          gaussian(size_t(shape.n_experts) * width, seed + 1, 0.1f),
          gaussian(shape.n_experts, seed + 2, 0.05f),
          {}};
}

Result on_twin(const Case& c, const Cores& cores) {
  const int n_slots = c.n_tokens * c.shape.n_active;
  Gm<float> x(c.x), gate(c.gate), bias(c.bias), logits(size_t(c.n_tokens) * c.shape.n_experts, NAN), weights(n_slots, NAN);
  Gm<int32_t> forced(c.forced), ids(n_slots, -7), offsets(c.shape.n_experts + 1, -7), slots(n_slots, -7);
  const RouteTiling tiling = make_route_tiling(c.shape, c.n_tokens, c.width, !c.forced.empty(), cores);
  CHECK(ub_bytes(tiling) <= kUbBytes);
  twin::launch(twin::Kind::aiv, route_blocks(tiling, cores), [&] {
    sigmoe_route(x.address(), gate.address(), bias.address(), forced.address(), logits.address(), ids.address(),
                 weights.address(), offsets.address(), slots.address(), tiling);
  });
  return {logits.values(), weights.values(), ids.values(), offsets.values(), slots.values()};
}

// What the reference makes of the kernel's own logits: from there on every operation is the same.
Result choices_of(const Case& c, const std::vector<float>& logits) {
  const int n_slots = c.n_tokens * c.shape.n_active;
  Result out{logits, std::vector<float>(n_slots), std::vector<int32_t>(n_slots), std::vector<int32_t>(c.shape.n_experts + 1),
             std::vector<int32_t>(n_slots)};
  choose_experts(logits.data(), c.bias.data(), c.shape, c.n_tokens, c.forced.empty() ? nullptr : c.forced.data(),
                 {out.ids.data(), out.weights.data(), out.offsets.data(), out.slots.data()});
  return out;
}

void check(const Case& c, const Cores& cores) {
  const Result result = on_twin(c, cores);
  const auto reference = reference_backend();
  std::vector<float> logits(result.logits.size());
  reference->linear(c.x.data(), *reference_weight(*reference, c.gate, c.shape.n_experts, c.width), c.n_tokens, logits.data());
  CHECK(relative_error(result.logits, logits) < kF32Error);
  const Result expected = choices_of(c, result.logits);
  CHECK(result.ids == expected.ids);
  CHECK(result.weights == expected.weights);
  CHECK(result.offsets == expected.offsets);
  CHECK(result.slots == expected.slots);
}

RouterShape router(int experts, int active, int groups, int kept, bool normalise = true, float scaling = 2.5f) {
  return {experts, active, groups, kept, normalise, scaling};
}

}  // namespace

TEST_CASE("ascend route: every router shape, with tails") {
  for (const RouterShape& shape :
       {router(256, 8, 8, 4), router(16, 4, 4, 2), router(512, 8, 8, 2), router(512, 32, 1, 1), router(512, 10, 4, 4),
        router(1, 1, 1, 1), router(2, 2, 1, 1), router(8, 2, 8, 3), router(21, 3, 7, 2), router(100, 6, 5, 3),
        router(33, 5, 1, 1, false, 1.0f), router(320, 8, 8, 8), router(264, 7, 8, 5), router(96, 32, 3, 2)})
    for (const int width : {64, 131, 4096}) {
      CAPTURE(shape.n_experts);
      CAPTURE(shape.n_groups);
      CAPTURE(width);
      check(random_case(shape, width > 1000 ? 2 : 5, width, 11), {20, 40});
    }
  check(random_case(router(24, 4, 1, 1), 2, 8192, 4), {20, 40});
  check(random_case(router(24, 4, 1, 1), 3, 1, 4), {20, 40});
}

TEST_CASE("ascend route: 1 to 48 cores, one token to many") {
  for (int n = 1; n <= 48; n += n < 4 ? 1 : 4) {
    CAPTURE(n);
    check(random_case(router(64, 6, 8, 4), 9, 96, n), {std::max(1, n / 2), n});
  }
  for (const Cores& cores : {Cores{20, 40}, Cores{24, 48}})
    for (const int n_tokens : {1, 2, 64, 150, 700}) {
      CAPTURE(n_tokens);
      check(random_case(router(256, 8, 8, 4), n_tokens, 64, 5), cores);  // 700 * 8 slots are three chunks
    }
}

TEST_CASE("ascend route: equal scores go to the lower expert and the lower group") {
  for (const RouterShape& shape : {router(256, 8, 8, 4), router(16, 4, 4, 2), router(100, 6, 5, 3), router(512, 32, 8, 3)}) {
    Case c = random_case(shape, 6, 4, 1);
    for (size_t i = 0; i < c.gate.size(); ++i) c.gate[i] = static_cast<float>(i / 4 % 3);  // logits of three values only
    std::fill(c.x.begin(), c.x.end(), 0.25f);
    std::fill(c.bias.begin(), c.bias.end(), 0.0f);
    check(c, {20, 40});
    std::fill(c.gate.begin(), c.gate.end(), 1.0f);  // and of one
    check(c, {20, 40});
    const Result result = on_twin(c, {20, 40});
    for (int a = 0; a < shape.n_active; ++a) CHECK(result.ids[a] == a);
  }
}

TEST_CASE("ascend route: all tokens to the same experts leaves the others empty") {
  Case c = random_case(router(256, 8, 8, 4), 300, 16, 3);
  std::fill(c.bias.begin(), c.bias.end(), 0.0f);
  for (int e = 250; e < 256; ++e) c.bias[e] = 10.0f + e;
  for (int e = 0; e < 2; ++e) c.bias[e] = 5.0f - e;
  check(c, {20, 40});
  CHECK(on_twin(c, {20, 40}).offsets[250] == 600);
}

TEST_CASE("ascend route: forced choices keep the weights of the scores") {
  Case c = random_case(router(64, 4, 8, 4), 7, 40, 9);
  for (int i = 0; i < 7 * 4; ++i) c.forced.push_back((i * 13 + 5) % 64);
  check(c, {20, 40});
}

TEST_CASE("ascend route: no scheduling of the cores changes a bit") {
  const Case c = random_case(router(256, 8, 8, 4), 5, 64, 2);
  const Result in_order = on_twin(c, {20, 40});
  for (const uint64_t seed : {1, 2, 3}) {
    twin::schedule(seed);
    const Result shuffled = on_twin(c, {20, 40});
    CHECK(shuffled.logits == in_order.logits);
    CHECK(shuffled.slots == in_order.slots);
  }
  twin::schedule(0);
}

TEST_CASE("ascend route: the tiling uses the cores, keeps to UB, and refuses what the kernel does not take") {
  for (const Cores& cores : {Cores{20, 40}, Cores{24, 48}}) {
    const RouteTiling decode = make_route_tiling(router(256, 8, 8, 4), 1, 4096, false, cores);
    CHECK(decode.expert_block == (256 + cores.aiv - 1) / cores.aiv);
    CHECK(route_blocks(decode, cores) == static_cast<uint32_t>((256 + decode.expert_block - 1) / decode.expert_block));
    CHECK(ub_bytes(make_route_tiling(router(512, 32, 8, 8), 512, 8192, false, cores)) <= kUbBytes);
  }
  const Cores cores;
  CHECK_THROWS_WITH_AS(make_route_tiling(router(513, 8, 1, 1), 1, 64, false, cores),
                       "the Ascend router: 513 experts, of which there may be 1 to 512", EngineError);
  CHECK_THROWS_AS(make_route_tiling(router(256, 8, 16, 4), 1, 64, false, cores), EngineError);
  CHECK_THROWS_AS(make_route_tiling(router(100, 8, 8, 4), 1, 64, false, cores), EngineError);
  CHECK_THROWS_AS(make_route_tiling(router(256, 33, 8, 4), 1, 64, false, cores), EngineError);
  CHECK_THROWS_AS(make_route_tiling(router(8, 3, 8, 2), 1, 64, false, cores), EngineError);
  CHECK_THROWS_AS(make_route_tiling(router(8, 3, 8, 9), 1, 64, false, cores), EngineError);
  CHECK_THROWS_WITH_AS(make_route_tiling(router(256, 8, 8, 4), 1, 20000, false, cores),
                       "the Ascend router: rows of 20000 do not fit a vector core's memory", EngineError);
}
