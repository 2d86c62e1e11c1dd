// What each instruction of the twin computes, against plain loops and worked examples: forms, masks, strides, rounding, trees,
// sorting.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "twin_testing.h"

using namespace AscendC;
using namespace twin_testing;

namespace {

constexpr int kRoom = 4096;  // floats of UB

// Puts `in` into UB, runs body(x, out) on it, and returns the first n elements of `out`.
template <typename Out, typename In>
std::vector<Out> run(const std::vector<In>& in, size_t n, const std::function<void(LocalTensor<In>, LocalTensor<Out>)>& body) {
  std::vector<Out> result(n);
  std::vector<In> padded = in;
  padded.resize((in.size() * sizeof(In) + 31) / 32 * 32 / sizeof(In));
  Array<In> from(padded);
  const std::string fault = fault_of([&] {
    TPipe pipe;
    TBuf<TPosition::VECIN> x;
    TBuf<> out;
    pipe.InitBuffer(x, kRoom * 4);
    pipe.InitBuffer(out, kRoom * 4);
    DataCopy(x.Get<In>(), from.tensor(), static_cast<uint32_t>(padded.size()));
    wait_for<HardEvent::MTE2_V>();
    body(x.Get<In>(), out.Get<Out>());
    PipeBarrier<PIPE_ALL>();
    for (size_t i = 0; i < n; ++i) result[i] = out.Get<Out>().GetValue(static_cast<uint32_t>(i));
  });
  CHECK(fault == "");
  return result;
}

std::vector<float> gaussian(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& value : out) value = normal(random);
  return out;
}

std::vector<float> cast_values() {
  return {0.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 1.25f, -1.75f, 3e9f, -3e9f, 1e-30f, 70000.0f, 0.1f, 100.49f, -7.0f};
}

template <typename To>
std::vector<To> cast_from_float(RoundMode mode) {
  return run<To, float>(cast_values(), 16, [mode](auto x, auto out) { Cast(out, x, mode, 16); });
}

uint64_t low(int n) { return static_cast<uint64_t>(n); }

}  // namespace

TEST_CASE("twin: half and bfloat16 hold what a float of their width holds") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto word = static_cast<uint16_t>(bits);
    const float wide = static_cast<float>(half::from_bits(word)), brain = static_cast<float>(bfloat16_t::from_bits(word));
    if (wide == wide && half(wide).bits() != word) CHECK(half(wide).bits() == word);
    if (brain == brain && bfloat16_t(brain).bits() != word) CHECK(bfloat16_t(brain).bits() == word);
  }
  CHECK(half(1.0f).bits() == 0x3c00);
  CHECK(half(65504.0f).bits() == 0x7bff);
  CHECK(half(65520.0f).bits() == 0x7c00);
  CHECK(half(5.9604645e-8f).bits() == 1);
  CHECK(half(2.9802322e-8f).bits() == 0);  // half of the least: to even
  CHECK(half(1.0f + 0x1p-11f).bits() == 0x3c00);
  CHECK(half(1.0f + 0x3p-11f).bits() == 0x3c02);
  CHECK(bfloat16_t(1.0f + 0x1p-8f).bits() == 0x3f80);
  CHECK(bfloat16_t(1.0f + 0x3p-8f).bits() == 0x3f82);
  CHECK(std::isnan(static_cast<float>(bfloat16_t(std::nanf("")))));
  CHECK(std::isnan(static_cast<float>(half(std::nanf("")))));
}

TEST_CASE("twin: arithmetic by count, by lanes and repeats, by mask bits and strides") {
  const std::vector<float> x = gaussian(512, 1);
  CHECK(run<float, float>(x, 100, [](auto a, auto out) { Sub(out, a, a[256], 100); }) == [&] {
    std::vector<float> out(100);
    for (int i = 0; i < 100; ++i) out[i] = x[i] - x[256 + i];
    return out;
  }());
  // One row of 64 added to each of three: the second source does not move.
  const auto rows = run<float, float>(x, 192, [](auto a, auto out) { Add(out, a, a[256], low(64), 3, {1, 1, 1, 8, 8, 0}); });
  // One scalar per row, spread over its block by Brcb, multiplied with every block of the row.
  const auto scaled = run<float, float>(x, 128, [](auto a, auto out) {
    Brcb(out[1024], a[256], 1, {1, 8});
    PipeBarrier<PIPE_V>();
    Mul(out, a, out[1024], low(64), 2, {1, 1, 0, 8, 8, 1});
  });
  for (int r = 0; r < 3; ++r)
    for (int i = 0; i < 64; ++i) {
      CHECK(rows[64 * r + i] == x[64 * r + i] + x[256 + i]);
      if (r < 2) CHECK(scaled[64 * r + i] == x[64 * r + i] * x[256 + r]);
    }
  // Lanes that the mask leaves out keep what they had.
  const auto masked = run<float, float>(x, 64, [](auto a, auto out) {
    Duplicate(out, -1.0f, 64);
    PipeBarrier<PIPE_V>();
    uint64_t bits[2] = {0x8000000000000005u, 0};
    Muls(out, a, 2.0f, bits, 1, {1, 1, 8, 8});
  });
  for (int i = 0; i < 64; ++i) CHECK(masked[i] == (i == 0 || i == 2 || i == 63 ? 2 * x[i] : -1.0f));
  const auto fused = run<float, float>(x, 64, [](auto a, auto out) {
    Duplicate(out, 1.0f, 64);
    PipeBarrier<PIPE_V>();
    Axpy(out, a, 3.0f, 64);
  });
  for (int i = 0; i < 64; ++i) CHECK(fused[i] == x[i] * 3.0f + 1.0f);
  CHECK(run<int32_t, int32_t>({5, -3, 1 << 30, 7, 0, 0, 0, 0}, 4, [](auto a, auto out) {
          Maxs(out, a, 0, 8);
          PipeBarrier<PIPE_V>();
          ShiftLeft(out, out, 1, 8);
        }) == std::vector<int32_t>{10, 0, static_cast<int32_t>(0x80000000u), 14});
  // What is documented as coarse is coarse: a norm computed with it would show.
  const auto coarse = run<float, float>({3.0f}, 1, [](auto a, auto out) { Rsqrt(out, a, 1); });
  CHECK(coarse[0] != 1.0f / std::sqrt(3.0f));
  CHECK(coarse[0] == doctest::Approx(1.0f / std::sqrt(3.0f)).epsilon(1e-3));
}

TEST_CASE("twin: Cast rounds and saturates by its mode") {
  using R = RoundMode;
  CHECK(cast_from_float<int32_t>(R::CAST_RINT) ==
        std::vector<int32_t>{0, 0, 2, 2, 0, -2, -2, 1, -2, INT32_MAX, INT32_MIN, 0, 70000, 0, 100, -7});
  CHECK(cast_from_float<int32_t>(R::CAST_ROUND) ==
        std::vector<int32_t>{0, 1, 2, 3, -1, -2, -3, 1, -2, INT32_MAX, INT32_MIN, 0, 70000, 0, 100, -7});
  CHECK(cast_from_float<int32_t>(R::CAST_FLOOR) ==
        std::vector<int32_t>{0, 0, 1, 2, -1, -2, -3, 1, -2, INT32_MAX, INT32_MIN, 0, 70000, 0, 100, -7});
  CHECK(cast_from_float<int32_t>(R::CAST_CEIL) ==
        std::vector<int32_t>{0, 1, 2, 3, 0, -1, -2, 2, -1, INT32_MAX, INT32_MIN, 1, 70000, 1, 101, -7});
  CHECK(cast_from_float<int32_t>(R::CAST_TRUNC) ==
        std::vector<int32_t>{0, 0, 1, 2, 0, -1, -2, 1, -1, INT32_MAX, INT32_MIN, 0, 70000, 0, 100, -7});
  CHECK(cast_from_float<int16_t>(R::CAST_RINT)[12] == 32767);
  const auto near = cast_from_float<bfloat16_t>(R::CAST_RINT), down = cast_from_float<bfloat16_t>(R::CAST_FLOOR),
             up = cast_from_float<bfloat16_t>(R::CAST_CEIL);
  for (size_t i = 0; i < 16; ++i) {
    const float exact = cast_values()[i];
    CHECK(near[i].bits() == bfloat16_t(exact).bits());
    CHECK(static_cast<float>(down[i]) <= exact);
    CHECK(static_cast<float>(up[i]) >= exact);
    CHECK((near[i].bits() == down[i].bits() || near[i].bits() == up[i].bits()));
  }
  const auto odd = cast_from_float<half>(R::CAST_ODD);
  CHECK(odd[13].bits() % 2 == 1);  // 0.1 is not exact
  CHECK(odd[0].bits() == 0);
  CHECK(cast_from_float<half>(R::CAST_RINT)[12].bits() == 0x7c00);
}

TEST_CASE("twin: the chain of casts that quantises to eight bits") {
  const std::vector<float> x = {-200.0f, -127.0f, -1.5f, -0.4f, 0.0f, 0.5f, 1.5f, 126.6f, 127.0f, 300.0f};
  const auto codes = run<int8_t, float>(x, 10, [](auto a, auto out) {
    const auto whole = a[1024].template ReinterpretCast<int32_t>();
    const auto halves = a[2048].template ReinterpretCast<half>();
    Cast(whole, a, RoundMode::CAST_RINT, 10);
    SetDeqScale(half(1.0f));
    PipeBarrier<PIPE_V>();
    Cast(halves, whole, RoundMode::CAST_NONE, 10);
    PipeBarrier<PIPE_V>();
    Cast(out, halves, RoundMode::CAST_TRUNC, 10);
  });
  CHECK(codes == std::vector<int8_t>{-128, -127, -2, 0, 0, 0, 2, 127, 127, 127});
}

TEST_CASE("twin: reductions of whole tensors, repeats and blocks, with the first of equal extremes") {
  for (const int n : {1, 7, 64, 65, 1000, 2048}) {
    std::vector<float> x = gaussian(n, n);
    for (float& value : x) value = std::round(value * 4) / 4;
    const auto at = [&](auto found) { return static_cast<uint32_t>(found - x.begin()); };
    const auto sum = run<float, float>(x, 1, [n](auto a, auto out) { ReduceSum(out, a, out[8], n); });
    CHECK(sum[0] == std::accumulate(x.begin(), x.end(), 0.0f));  // quarters: exact in any order
    const auto most = run<float, float>(x, 2, [n](auto a, auto out) { ReduceMax(out, a, out[512], n, true); });
    CHECK(most[0] == *std::max_element(x.begin(), x.end()));
    CHECK(twin::bits_of(most[1]) == at(std::max_element(x.begin(), x.end())));
    const auto least = run<float, float>(x, 2, [n](auto a, auto out) { ReduceMin(out, a, out[512], n, true); });
    CHECK(twin::bits_of(least[1]) == at(std::min_element(x.begin(), x.end())));
  }
  const std::vector<float> x = gaussian(256, 5);
  const auto whole = run<float, float>(x, 8, [](auto a, auto out) { WholeReduceMax(out, a, 40, 4, 1, 1, 8); });
  const auto blocks = run<float, float>(x, 32, [](auto a, auto out) { BlockReduceMax(out, a, 4, 64, 1, 1, 8); });
  const auto sums = run<float, float>(x, 2, [](auto a, auto out) {
    Duplicate(out, 9.0f, 8);
    PipeBarrier<PIPE_V>();
    WholeReduceSum(out[1], a, 64, 1, 1, 1, 8);  // the destination need not start a block
  });
  for (int r = 0; r < 4; ++r) {
    const auto best = std::max_element(x.begin() + 64 * r, x.begin() + 64 * r + 40);
    CHECK(whole[2 * r] == *best);
    CHECK(twin::bits_of(whole[2 * r + 1]) == static_cast<uint32_t>(best - x.begin() - 64 * r));
    for (int b = 0; b < 8; ++b)
      CHECK(blocks[8 * r + b] == *std::max_element(x.begin() + 64 * r + 8 * b, x.begin() + 64 * r + 8 * b + 8));
  }
  CHECK(sums[0] == 9.0f);
  CHECK(sums[1] == doctest::Approx(std::accumulate(x.begin(), x.begin() + 64, 0.0)).epsilon(1e-5));
}

TEST_CASE("twin: Compare, Select, Gather and GatherMask") {
  const std::vector<float> x = gaussian(256, 9);
  const auto selected = run<float, float>(x, 128, [](auto a, auto out) {
    const auto bits = a[2048].template ReinterpretCast<uint8_t>();
    Compare(bits, a, a[128], CMPMODE::GT, 128);
    PipeBarrier<PIPE_V>();
    Select(out, bits, a, a[128], SELMODE::VSEL_TENSOR_TENSOR_MODE, 128);
  });
  for (int i = 0; i < 128; ++i) CHECK(selected[i] == std::max(x[i], x[128 + i]));
  uint64_t kept = 0;
  const auto positive = run<float, float>(x, 20, [&](auto a, auto out) {
    const auto bits = a[2048].template ReinterpretCast<uint8_t>();
    CompareScalar(bits, a, 0.0f, CMPMODE::GE, 256);
    PipeBarrier<PIPE_V>();
    GatherMask(out, a, bits.template ReinterpretCast<uint32_t>(), true, 250, {1, 1, 8, 0}, kept);
  });
  std::vector<float> expected;
  std::copy_if(x.begin(), x.begin() + 250, std::back_inserter(expected), [](float value) { return value >= 0; });
  CHECK(kept == expected.size());
  CHECK(std::equal(positive.begin(), positive.end(), expected.begin()));
  const auto odd = run<float, float>(x, 64, [&](auto a, auto out) { GatherMask(out, a, 2, false, 0, {1, 2, 8, 0}, kept); });
  CHECK(kept == 64);
  for (int i = 0; i < 64; ++i) CHECK(odd[i] == x[2 * i + 1]);
  const auto gathered = run<float, float>(x, 3, [](auto a, auto out) {
    const auto offsets = a[2048].template ReinterpretCast<uint32_t>();
    Duplicate(offsets, uint32_t{20}, 8);
    PipeBarrier<PIPE_V>();
    Gather(out, a, offsets, 40, 3);
  });
  CHECK(gathered == std::vector<float>(3, x[15]));
}

TEST_CASE("twin: Sort32 and MrgSort put the highest first and, among equals, the earlier") {
  for (const int n_lists : {1, 2, 3, 4}) {
    const int n = 32 * n_lists;
    std::vector<float> x = gaussian(n, n_lists);
    for (float& value : x) value = std::round(value);
    const auto records = run<float, float>(x, 2 * n, [n, n_lists](auto a, auto out) {
      const auto index = a[1024].template ReinterpretCast<int32_t>();
      CreateVecIndex(index, 0, n);
      PipeBarrier<PIPE_V>();
      const auto sorted = n_lists == 1 ? out : out[1024];
      Sort32(sorted, a, index.template ReinterpretCast<uint32_t>(), n_lists);
      PipeBarrier<PIPE_V>();
      const uint16_t lengths[4] = {32, 32, 32, 32};
      const MrgSortSrcList<float> lists(sorted, sorted[64], sorted[n_lists > 2 ? 128 : 0], sorted[n_lists > 3 ? 192 : 0]);
      if (n_lists > 1) MrgSort(out, lists, MrgSort4Info(lengths, false, static_cast<uint16_t>((1 << n_lists) - 1), 1));
    });
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
    for (int i = 0; i < n; ++i) {
      CHECK(records[2 * i] == x[order[i]]);
      CHECK(twin::bits_of(records[2 * i + 1]) == static_cast<uint32_t>(order[i]));
    }
  }
}

TEST_CASE("twin: DataCopyPad cuts, spreads and fills rows") {
  std::vector<float> x(60);
  std::iota(x.begin(), x.end(), 0.0f);
  Array<float> from(x), to(40, -1.0f);
  const std::string fault = fault_of([&] {
    TPipe pipe;
    TBuf<TPosition::VECIN> buf;
    pipe.InitBuffer(buf, 1024);
    const LocalTensor<float> t = buf.Get<float>();
    // Three rows of 5 out of rows of 20, each in two blocks of UB, with 2 zeros before and 1 behind.
    DataCopyPad(t, from.tensor(), DataCopyExtParams(3, 20, 60, 1, 0), DataCopyPadExtParams<float>(true, 2, 1, 0.0f));
    wait_for<HardEvent::MTE2_S>();
    for (int r = 0; r < 3; ++r)
      for (int i = 0; i < 8; ++i) {
        const float value = t.GetValue(static_cast<uint32_t>(16 * r + i)), wanted = i < 2 || i > 6 ? 0.0f : 20.0f * r + i - 2;
        CHECK(value == wanted);
      }
    wait_for<HardEvent::MTE2_MTE3>();
    DataCopyPad(to.tensor(), t, DataCopyExtParams(3, 28, 1, 4, 0));  // rows of 7, 8 apart
  });
  CHECK(fault == "");
  for (int r = 0; r < 3; ++r)
    for (int i = 0; i < 8; ++i) CHECK(to.values[8 * r + i] == (i == 7 ? -1.0f : i < 2 ? 0.0f : 20.0f * r + i - 2));
}
