// Products of the CUDA backend with one weight: every format, classes of rows, picked rows of the head, and how weights are
// put.
#include <limits>
#include <thread>

#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

struct Format {
  std::string name;
  WeightFormat format;
  int64_t k;
  std::vector<int64_t> bounds;
  int64_t block_n;
};

std::vector<Format> formats(int64_t k) {
  using enum WeightFormat;
  std::vector<Format> out = {{"f32", f32, k, {}, 0},
                             {"bf16", bf16, k, {}, 0},
                             {"fp8 blocks", fp8, k, blocks_of(k, 128), 128},
                             {"fp8 per channel", fp8, k, blocks_of(k, k), 1},
                             {"fp8 per tensor", fp8, k, blocks_of(k, k), 0},
                             {"int8 per channel", int8, k, blocks_of(k, k), 1}};
  if (k > 60) out.push_back({"fp8 slice inside a block", fp8, k, blocks_of(k, 128, 45), 128});
  if (k % 2 == 0) {
    out.push_back({"int4 groups of 32", int4, k, blocks_of(k, 32), 1});
    out.push_back({"int4 groups of 64", int4, k, blocks_of(k, 64), 1});
    out.push_back({"int4 groups of 128", int4, k, blocks_of(k, 128), 1});
  }
  return out;
}

}  // namespace

TEST_CASE("cuda linear: every format and shape agrees with the reference, and no row minds its neighbours") {
  on_cuda([](Backend& backend, DType compute) {
    using Shape = std::pair<int64_t, int64_t>;
    for (const auto& [n, k] :
         sizes<Shape>({{1, 1}, {37, 51}, {100, 77}, {77, 131}, {256, 384}, {96, 1024}, {48, 2100}, {64, 4096}},
                      {{37, 51}, {96, 1024}, {64, 4096}}))
      for (const Format& f : formats(k)) {
        if (small_run() && compute == DType::f32 && k > 100) continue;
        CAPTURE(f.name);
        CAPTURE(n);
        CAPTURE(k);
        const HostWeight host = random_weight(f.format, n, k, f.bounds, f.block_n, 7);
        const auto expected_weight = host.put(*reference());
        const auto weight = host.put(backend);
        // Rows that have one kernel on every card, with the most of them that are tried.
        constexpr int kMost = 300;
        const std::vector<float> x = on_fp8_grid(gaussian(kMost * k, 3), k);
        const std::vector<float> expected = linear(*reference(), *expected_weight, x, kMost, n);
        for (const auto& [most, fewer] :
             {std::pair{23, sizes<int>({1, 2, 3, 8, 9, 16, 17}, {2, 9})},
              std::pair{127, sizes<int>({24, 33, 48, 64, 90}, {24, 90})}, std::pair{kMost, sizes<int>({128, 190}, {128})}}) {
          const std::vector<float> some(x.begin(), x.begin() + most * k);
          const std::vector<float> together = linear(backend, *weight, some, most, n);
          CHECK(relative_error(together, {expected.begin(), expected.begin() + most * n}) <
                bound(compute, Tolerance::kBf16Linear * (k < 8 ? 2 : 1)));
          for (const int rows : fewer)
            for (const int first : {0, most - rows}) {
              CAPTURE(rows);
              const std::vector<float> part(x.begin() + first * k, x.begin() + (first + rows) * k);
              CHECK(linear(backend, *weight, part, rows, n) ==
                    std::vector<float>(together.begin() + first * n, together.begin() + (first + rows) * n));
            }
        }
        backend.linear(nullptr, *weight, 0, nullptr);
      }
  });
}

TEST_CASE("cuda linear: whole weights in shared memory ahead of the rows, with the bits of the kernel that streams them") {
  on_cuda([](Backend& backend, DType compute) {
    constexpr int kMost = 9, k = 4096;
    for (const int n : sizes<int>({1, 16, 1000, 5120, 6500}, {16, 1000})) {
      CAPTURE(n);
      const HostWeight host = random_weight(WeightFormat::fp8, n, k, blocks_of(k, 128), 128, 11);
      const auto weight = host.put(backend);
      const std::vector<float> x = gaussian(kMost * k, 3), together = linear(backend, *weight, x, kMost, n);
      if (n <= 1000)
        CHECK(relative_error(together, linear(*reference(), *host.put(*reference()), x, kMost, n)) <
              bound(compute, Tolerance::kBf16Linear));
      for (int rows = 1; rows <= 5; ++rows)
        for (const int first : {0, kMost - rows}) {
          CAPTURE(rows);
          CHECK(linear(backend, *weight, {x.begin() + first * k, x.begin() + (first + rows) * k}, rows, n) ==
                std::vector<float>(together.begin() + first * n, together.begin() + (first + rows) * n));
        }
    }
  });
}

TEST_CASE("cuda linear: hundreds of rows and thousands, k divided among blocks or not") {
  on_cuda([](Backend& backend, DType) {
    for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16}) {
      CAPTURE(weight_format_name(format));
      constexpr int kMost = 1100, k = 1280, n = 400;
      const auto weight =
          random_weight(format, n, k, format == WeightFormat::fp8 ? blocks_of(k, 128) : std::vector<int64_t>{}, 128, 7)
              .put(backend);
      const std::vector<float> x = gaussian(kMost * k, 3), together = linear(backend, *weight, x, kMost, n);
      const auto first_rows = [&](int rows) { return linear(backend, *weight, {x.begin(), x.begin() + rows * k}, rows, n); };
      const std::vector<float> thousand = first_rows(1024), hundreds = first_rows(1023), hundred = first_rows(140);
      CHECK(std::equal(thousand.begin(), thousand.end(), together.begin()));
      CHECK(std::equal(hundred.begin(), hundred.end(), hundreds.begin()));
      // from 1,024 rows on results are handed on in BF16
      CHECK(relative_error(hundreds, {together.begin(), together.begin() + 1023 * n}) < Tolerance::kBf16Result);
    }
  });
}

TEST_CASE("cuda linear: products are exact where activations are BF16 already") {
  on_cuda([](Backend& backend, DType) {
    for (const int64_t k : {64, 384, 1100})
      for (const Format& f : formats(k)) {
        // Expanded weights are rounded to BF16 themselves, and so are F32 ones.
        if (f.format == WeightFormat::f32 || f.name == "fp8 slice inside a block" || f.name == "int4 groups of 32") continue;
        CAPTURE(f.name);
        CAPTURE(k);
        const HostWeight host = random_weight(f.format, 80, k, f.bounds, f.block_n, 8);
        for (const float size : {1.0f, 1e-4f, 1e4f}) {
          CAPTURE(size);
          std::vector<float> x = gaussian(9 * k, 3);
          for (float& value : x) value = bf16_to_f32(f32_to_bf16(size * value));
          CHECK(relative_error(linear(backend, *host.put(backend), x, 9, 80),
                               linear(*reference(), *host.put(*reference()), x, 9, 80)) < Tolerance::kFloat32);
        }
      }
  });
}

TEST_CASE("cuda weights: put by several threads, in pieces, from strided rows; NaN and infinity refused; memory counted") {
  on_cuda([](Backend& backend, DType) {
    const HostWeight host = random_weight(WeightFormat::fp8, 100, 256, blocks_of(256, 128), 128, 5);
    const std::vector<float> x = gaussian(3 * 256, 6), whole = linear(backend, *host.put(backend), x, 3, 100);
    CHECK(linear(backend, *host.put(backend, 7), x, 3, 100) == whole);
    const auto builder = backend.begin_linear(host.desc);
    std::vector<std::thread> threads;
    for (int part = 0; part < 4; ++part)
      threads.emplace_back([&, part] {
        for (int64_t row = part * 25; row < part * 25 + 25; row += 5) {
          builder->put_rows(row, 5, host.rows.data() + row * host.stride(), host.stride());
          builder->put_scales(row, 5, host.scales.data() + row * host.n_blocks());
        }
      });
    for (std::thread& thread : threads) thread.join();
    CHECK(linear(backend, *builder->finish(), x, 3, 100) == whole);

    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8}) {
      HostWeight bad =
          random_weight(format, 20, 50, format == WeightFormat::fp8 ? blocks_of(50, 50) : std::vector<int64_t>{}, 0, 5);
      const size_t at = bad.stride() * 13 + bad.stride() / 50 * 49;  // the last element of row 13
      if (format == WeightFormat::f32) reinterpret_cast<float*>(&bad.rows[at])[0] = std::numeric_limits<float>::infinity();
      if (format == WeightFormat::bf16) reinterpret_cast<uint16_t*>(&bad.rows[at])[0] = 0x7fc0;
      if (format == WeightFormat::fp8) bad.rows[at] = std::byte{0xff};
      CHECK_THROWS_WITH_AS(bad.put(backend), "random holds a NaN or an infinity in row 13", EngineError);
    }
    CHECK(random_weight(WeightFormat::fp8, 256, 512, blocks_of(512, 128), 128, 5).put(backend)->bytes() ==
          256 * 512 + 2 * 4 * sizeof(float));
    CHECK(random_weight(WeightFormat::int4, 64, 256, blocks_of(256, 128), 1, 5).put(backend)->bytes() ==
          64 * 128 + 64 * 2 * sizeof(float));
  });
}

TEST_CASE("cuda head: rows picked on the device") {
  on_cuda([](Backend& backend, DType compute) {
    for (const int n : {333, 65600}) {  // few and many enough tiles for either kernel
      CAPTURE(n);
      const HostWeight host = random_weight(WeightFormat::bf16, n, 256, {}, 0, 4);
      const auto weight = host.put(backend), expected_weight = host.put(*reference());
      const std::vector<float> x = gaussian(10 * 256, 5);
      for (const std::vector<int32_t>& rows : {std::vector<int32_t>{7}, {9, 0}, {3, 3, 9, 1, 0}}) {
        const int n_rows = static_cast<int>(rows.size());
        std::vector<float> expected(rows.size() * n);
        reference()->head_logits(x.data(), rows.data(), n_rows, *expected_weight, nullptr, {n}, expected.data());
        const OnDevice<float> in(backend, x), out(backend, std::vector<float>(expected.size(), kPoison));
        const OnDevice<int32_t> device_rows(backend, rows);
        backend.head_logits(in.get(), device_rows.get(), n_rows, *weight, nullptr, {n}, out.get());
        CHECK(relative_error(out.read(), expected) < bound(compute, Tolerance::kBf16Linear));
      }
    }
  });
}
