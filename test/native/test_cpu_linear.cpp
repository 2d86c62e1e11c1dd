// Linear layers of the CPU backend on every path: formats, ragged shapes, scale layouts, loading in pieces, the head.
#include <algorithm>
#include <cstring>
#include <limits>
#include <thread>

#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

struct Case {
  const char* name;
  WeightFormat format;
  int64_t n, k;
  std::vector<int64_t> k_bounds;
  int64_t block_n;
};

std::vector<Case> cases() {
  using enum WeightFormat;
  return {
      {"f32", f32, 48, 96, {}, 0},
      {"f32 ragged", f32, 37, 51, {}, 0},
      {"f32 one", f32, 1, 1, {}, 0},
      {"bf16", bf16, 64, 256, {}, 0},
      {"bf16 ragged", bf16, 100, 77, {}, 0},
      {"bf16 long", bf16, 16, 2100, {}, 0},
      {"fp8 blocks", fp8, 256, 384, blocks_of(384, 128), 128},
      {"fp8 ragged blocks", fp8, 160, 192, blocks_of(192, 128), 128},
      {"fp8 ragged everything", fp8, 77, 131, blocks_of(131, 128), 128},
      {"fp8 panels straddle blocks", fp8, 96, 128, blocks_of(128, 128), 24},
      {"fp8 slice inside a block", fp8, 64, 320, blocks_of(320, 128, 32), 128},
      {"fp8 slice at odd k", fp8, 40, 301, blocks_of(301, 128, 45), 128},
      {"fp8 per channel", fp8, 70, 320, blocks_of(320, 320), 1},
      {"fp8 per tensor", fp8, 70, 160, blocks_of(160, 160), 0},
      {"int4 groups of 32", int4, 64, 256, blocks_of(256, 32), 1},
      {"int4 groups of 128", int4, 83, 384, blocks_of(384, 128), 1},
      {"int4 ragged", int4, 21, 90, blocks_of(90, 64), 1},
      {"int4 slice inside a group", int4, 32, 200, blocks_of(200, 64, 18), 1},
  };
}

std::vector<float> run_linear(Backend& backend, const LinearWeight& weight, const std::vector<float>& x, int rows, int64_t n) {
  std::vector<float> y(rows * n, -1.0f);
  backend.linear(x.data(), weight, rows, y.data());
  return y;
}

}  // namespace

TEST_CASE("linear: every format, shape and path agrees with the reference") {
  const auto reference = make_backend({"reference", DType::f32});
  for (const Case& c : cases()) {
    const HostWeight host = random_weight(c.format, c.n, c.k, c.k_bounds, c.block_n, 7);
    const auto expected_weight = host.put(*reference);
    for (const int rows : {1, 2, 3, 4, 5, 6, 7, 16, 33}) {
      const std::vector<float> x = gaussian(rows * c.k, rows);
      const std::vector<float> expected = run_linear(*reference, *expected_weight, x, rows, c.n);
      for (const Path& path : all_paths()) {
        CAPTURE(c.name);
        CAPTURE(rows);
        CAPTURE(path.label());
        const auto backend = make_backend(path);
        const auto weight = host.put(*backend);
        const bool bf16 = backend->info().compute == DType::bf16 && c.format != WeightFormat::f32;
        const std::vector<float> y = run_linear(*backend, *weight, x, rows, c.n);
        CHECK(relative_error(y, expected) < (bf16 ? Tolerance::kBf16Linear * (c.k < 8 ? 2 : 1) : Tolerance::kFloat32));
      }
    }
  }
}

TEST_CASE("linear: BF16 products are exact where activations are BF16 already") {
  const auto reference = make_backend({"reference", DType::f32});
  for (const Case& c : cases()) {
    const HostWeight host = random_weight(c.format, c.n, c.k, c.k_bounds, c.block_n, 8);
    std::vector<float> x = gaussian(9 * c.k, 3);
    for (float& value : x) value = bf16_to_f32(f32_to_bf16(value));
    const std::vector<float> expected = run_linear(*reference, *host.put(*reference), x, 9, c.n);
    for (const Path& path : all_paths()) {
      CAPTURE(c.name);
      CAPTURE(path.label());
      const auto backend = make_backend(path);
      CHECK(relative_error(run_linear(*backend, *host.put(*backend), x, 9, c.n), expected) < Tolerance::kFloat32);
    }
  }
}

TEST_CASE("linear: a row's bits do not depend on the other rows, the threads or how the weight was put") {
  for (const Path& path : all_paths())
    for (const Case& c : cases()) {
      CAPTURE(path.label());
      CAPTURE(c.name);
      const HostWeight host = random_weight(c.format, c.n, c.k, c.k_bounds, c.block_n, 9);
      constexpr int kRows = 270;  // more than one row chunk
      const std::vector<float> x = gaussian(kRows * c.k, 4);
      const auto backend = make_backend(path, 2);
      const auto weight = host.put(*backend);
      const std::vector<float> together = run_linear(*backend, *weight, x, kRows, c.n);
      const auto three = make_backend(path, 3);
      CHECK(run_linear(*three, *host.put(*three, 5), x, kRows, c.n) == together);
      for (const int rows : {1, 2, 3, 4, 5, 11})
        for (const int first : {0, 7, 255}) {
          const std::vector<float> part(x.begin() + first * c.k, x.begin() + (first + rows) * c.k);
          const std::vector<float> expected(together.begin() + first * c.n, together.begin() + (first + rows) * c.n);
          CHECK(run_linear(*backend, *weight, part, rows, c.n) == expected);
        }
    }
}

TEST_CASE("linear: no rows is no work") {
  for (const Path& path : all_paths()) {
    const auto backend = make_backend(path);
    const auto weight = random_weight(WeightFormat::bf16, 16, 32, {}, 0, 1).put(*backend);
    backend->linear(nullptr, *weight, 0, nullptr);
  }
}

TEST_CASE("linear weights: rows may be put by several threads at once") {
  const HostWeight host = random_weight(WeightFormat::fp8, 100, 256, blocks_of(256, 128), 128, 5);
  const auto backend = make_backend({"auto", DType::bf16});
  const auto builder = backend->begin_linear(host.desc);
  std::vector<std::thread> threads;
  for (int part = 0; part < 4; ++part)
    threads.emplace_back([&, part] {
      for (int64_t row = part * 25; row < part * 25 + 25; row += 5) {
        builder->put_rows(row, 5, host.rows.data() + row * host.stride(), host.stride());
        builder->put_scales(row, 5, host.scales.data() + row * host.n_blocks());
      }
    });
  for (std::thread& thread : threads) thread.join();
  const std::vector<float> x = gaussian(3 * 256, 6);
  CHECK(run_linear(*backend, *builder->finish(), x, 3, 100) == run_linear(*backend, *host.put(*backend), x, 3, 100));
}

TEST_CASE("linear weights: memory is the checkpoint's, scales included once") {
  const auto backend = make_backend({"auto", DType::bf16});
  const HostWeight blocks = random_weight(WeightFormat::fp8, 256, 512, blocks_of(512, 128), 128, 5);
  CHECK(blocks.put(*backend)->bytes() == 256 * 512 + 256 / 16 * 4 * sizeof(float));
  const HostWeight rows = random_weight(WeightFormat::fp8, 256, 512, blocks_of(512, 512), 1, 5);
  CHECK(rows.put(*backend)->bytes() == 256 * 512 + 256 * sizeof(float));
  CHECK(random_weight(WeightFormat::int4, 64, 256, blocks_of(256, 128), 1, 5).put(*backend)->bytes() == 64 * 128 + 64 * 2 * 4);
}

TEST_CASE("linear weights: NaN and infinity are refused, wherever they are") {
  const auto backend = make_backend({"auto", DType::bf16});
  const auto refuses = [&](const HostWeight& host) {
    try {
      host.put(*backend);
      return false;
    } catch (const EngineError& error) {
      return error.code() == ErrorCode::bad_checkpoint;
    }
  };
  for (const int64_t n : {int64_t{5}, int64_t{64}})
    for (const int64_t at : {int64_t{0}, n * 70 / 2, n * 70 - 1}) {
      HostWeight fp8 = random_weight(WeightFormat::fp8, n, 70, blocks_of(70, 70), 0, 2);
      CHECK_FALSE(refuses(fp8));
      for (const int code : {0x7f, 0xff}) {
        HostWeight bad = fp8;
        bad.rows[at] = static_cast<std::byte>(code);
        CHECK(refuses(bad));
      }
      HostWeight bf16 = random_weight(WeightFormat::bf16, n, 70, {}, 0, 2);
      HostWeight f32 = random_weight(WeightFormat::f32, n, 70, {}, 0, 2);
      CHECK_FALSE(refuses(bf16));
      CHECK_FALSE(refuses(f32));
      for (const float value : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()}) {
        HostWeight bad = bf16;
        const uint16_t narrow = f32_to_bf16(value);
        std::memcpy(bad.rows.data() + at * 2, &narrow, 2);
        CHECK(refuses(bad));
        bad = f32;
        std::memcpy(bad.rows.data() + at * 4, &value, 4);
        CHECK(refuses(bad));
      }
      fp8.scales[n / 2] = std::numeric_limits<float>::quiet_NaN();
      CHECK(refuses(fp8));
    }
}

TEST_CASE("linear weights: INT4 groups that end inside a byte are refused by name") {
  const auto backend = make_backend({"auto", DType::bf16});
  LinearDesc desc{WeightFormat::int4, 16, 64, {0, 33, 64}, false, "layers.0.odd"};
  try {
    backend->begin_linear(desc);
    FAIL("no error");
  } catch (const EngineError& error) {
    CHECK(error.code() == ErrorCode::unsupported);
    CHECK(std::string(error.what()).find("layers.0.odd") != std::string::npos);
  }
}

TEST_CASE("head_logits: picked rows, and the vocabulary gathered over ranks") {
  constexpr int64_t kWidth = 96, kVocab = 200;
  const HostWeight host = random_weight(WeightFormat::bf16, kVocab, kWidth, {}, 0, 11);
  const std::vector<float> x = gaussian(6 * kWidth, 12);
  const std::vector<int32_t> ids{5, 0, 3};
  const auto reference = make_backend({"reference", DType::f32});
  std::vector<float> expected(ids.size() * kVocab);
  reference->head_logits(x.data(), ids.data(), 3, *host.put(*reference), nullptr, {kVocab}, expected.data());
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path);
    const double tolerance = backend->info().compute == DType::bf16 ? Tolerance::kBf16Linear : Tolerance::kFloat32;
    std::vector<float> whole(expected.size());
    backend->head_logits(x.data(), ids.data(), 3, *host.put(*backend), nullptr, {kVocab}, whole.data());
    CHECK(relative_error(whole, expected) < tolerance);

    for (const int world : {2, 4}) {
      const std::vector<int64_t> widths = world == 2 ? std::vector<int64_t>{128, 72} : std::vector<int64_t>{64, 64, 56, 16};
      const auto comms = make_thread_world(world);
      std::vector<std::vector<float>> results(world, std::vector<float>(expected.size()));
      std::vector<std::thread> ranks;
      int64_t first = 0;
      for (int r = 0; r < world; first += widths[r++]) {
        HostWeight part = host;
        part.desc.n = widths[r];
        part.rows.assign(host.rows.begin() + first * host.stride(), host.rows.begin() + (first + widths[r]) * host.stride());
        ranks.emplace_back([&, r, part] {
          const auto mine = make_backend(path);
          mine->head_logits(x.data(), ids.data(), 3, *part.put(*mine), comms[r].get(), widths, results[r].data());
        });
      }
      for (std::thread& rank : ranks) rank.join();
      for (const std::vector<float>& result : results) CHECK(result == whole);
    }
  }
}
