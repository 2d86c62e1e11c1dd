// The many-row products of cards before Hopper over shapes that the tests of all ops do not reach: several bands of row tiles,
// rows of every tile size, ragged weights, scales of any size. They run on every card.
#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

TEST_CASE("cuda mma: products of tens to thousands of rows agree with the reference, and no row minds its neighbours") {
  if (!have_cuda()) return;
  const auto backend = cuda(DType::bf16, "auto", "mma");
  using enum WeightFormat;
  for (const auto& [format, block] : {std::pair{fp8, 128}, {fp8, 0}, {int4, 64}, {int4, 128}, {bf16, 0}})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 64}, {130, 72}, {303, 200}, {520, 640}}) {
      CAPTURE(weight_format_name(format));
      CAPTURE(block);
      CAPTURE(n);
      CAPTURE(k);
      const HostWeight host =
          random_weight(format, n, k, format == bf16 ? std::vector<int64_t>{} : blocks_of(k, block ? block : k),
                        format == int4 || block == 0 ? 1 : 128, 7);
      const auto weight = host.put(*backend), expected_weight = host.put(*reference());
      constexpr int kMost = 2200;  // more than a band of row tiles
      const std::vector<float> x = gaussian(kMost * k, 3), together = linear(*backend, *weight, x, kMost, n);
      constexpr int kCompared = 200;
      const std::vector<float> last(x.end() - kCompared * k, x.end());
      CHECK(relative_error({together.end() - kCompared * n, together.end()},
                           linear(*reference(), *expected_weight, last, kCompared, n)) < Tolerance::kBf16Linear);
      for (const int rows : {128, 129, 200, 288, 300, 1000})
        for (const int first : {0, kMost - rows}) {
          CAPTURE(rows);
          const std::vector<float> part(x.begin() + first * k, x.begin() + (first + rows) * k);
          CHECK(linear(*backend, *weight, part, rows, n) ==
                std::vector<float>(together.begin() + first * n, together.begin() + (first + rows) * n));
        }
    }
}

TEST_CASE("cuda mma: scales of zero, of any size and of either sign") {
  if (!have_cuda()) return;
  const auto backend = cuda(DType::bf16, "auto", "mma");
  constexpr int64_t n = 40, k = 1280;
  constexpr int kRows = 140;
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::int4})
    for (const std::vector<float>& sizes : {std::vector<float>{0.0f, 1.0f},
                                            {1.0f, 0.0f},
                                            {1e-3f, 1e3f},
                                            {1e6f, 1e-30f, 0.0f},
                                            {-1.0f, 1.0f, 3.0f},
                                            {1e-38f, 1e-42f, 1e-36f},
                                            {0.0f}}) {
      CAPTURE(weight_format_name(format));
      CAPTURE(sizes[0]);
      HostWeight host = random_weight(format, n, k, blocks_of(k, 128), 1, 7);
      for (size_t i = 0; i < host.scales.size(); ++i) host.scales[i] *= sizes[(i + i / host.n_blocks()) % sizes.size()];
      std::vector<float> x = gaussian(kRows * k, 3);
      for (float& value : x) value = bf16_to_f32(f32_to_bf16(value));
      const std::vector<float> got = linear(*backend, *host.put(*backend), x, kRows, n);
      const std::vector<float> expected = linear(*reference(), *host.put(*reference()), x, kRows, n);
      if (std::all_of(expected.begin(), expected.end(), [](float value) { return value == 0.0f; }))
        CHECK(got == expected);
      else
        CHECK(relative_error(got, expected) < Tolerance::kFloat32);
    }
}

TEST_CASE("cuda mma: kernels are auto or mma") {
  if (!have_cuda()) return;
  CHECK_THROWS_WITH_AS(cuda(DType::bf16, "auto", "amx"), doctest::Contains("on cuda there are auto and mma"), EngineError);
}
