// Kernels on rows (add_rms_norm, convert_rows) on the twin, checks on, against the reference; and their tilings.
#include <cmath>
#include <random>

#include "ascend/device/args/weight_layout.h"
#include "ascend/host/tiling_rows.h"
#include "ascend/launch/entries.h"
#include "ascend/twin/launch.h"
#include "backend/dtype.h"
#include "cpu/reference.h"
#include "doctest/doctest.h"
#include "kernel_operator.h"

using namespace sigmoe;
using namespace sigmoe::ascend;

namespace {

// A host array that the twin takes for global memory.
template <typename T>
class Gm {
 public:
  explicit Gm(size_t n) : values(n) { twin::register_gm(values.data(), n * sizeof(T)); }
  explicit Gm(std::vector<T> from) : values(std::move(from)) { twin::register_gm(values.data(), values.size() * sizeof(T)); }
  ~Gm() { twin::unregister_gm(values.data()); }
  Gm(const Gm&) = delete;
  Gm& operator=(const Gm&) = delete;
  GM_ADDR get() { return reinterpret_cast<GM_ADDR>(values.data()); }

  std::vector<T> values;
};

std::vector<float> random_floats(size_t n, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 1e-30;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    norm += double(b[i]) * b[i];
  }
  return std::sqrt(difference / norm);
}

constexpr double kFloat = 2e-6;      // sums in another order
constexpr double kBf16 = 3e-3;       // rounded to 8 bits of mantissa: 2^-9 at most, less in the mean
constexpr double kHalfStep = 0.501;  // of an INT8 row: half of its scale, and the float arithmetic before it

// |a - b| <= kHalfStep * scale of the row, everywhere.
bool within_half_a_step(const std::vector<float>& a, const std::vector<float>& b, const std::vector<float>& scale_of_row) {
  const size_t width = b.size() / scale_of_row.size();
  for (size_t i = 0; i < b.size(); ++i)
    if (!(std::abs(a[i] - b[i]) <= kHalfStep * scale_of_row[i / width])) return false;
  return true;
}

void check_norm(int n_tokens, int width, int n_slots, ShadowKind shadow, bool has_out, const Cores& cores) {
  CAPTURE(n_tokens);
  CAPTURE(width);
  CAPTURE(n_slots);
  CAPTURE(static_cast<int>(shadow));
  CAPTURE(cores.aiv);
  constexpr float kEps = 1e-6f;
  const size_t n = static_cast<size_t>(n_tokens) * width;
  Gm<float> residual(random_floats(n, 1)), addend(random_floats(n * std::max(n_slots, 1), 2)), weight(random_floats(width, 3));
  Gm<float> out(n), scales(n_tokens);
  const int64_t element = shadow == kShadowInt8 ? 1 : 2, pitch = row_pitch(width, element);
  Gm<uint8_t> copy(n_tokens * pitch * element);
  std::vector<float> expected_residual = residual.values, expected(n), scratch = addend.values;
  ReferenceBackend({}).reduce_add_rms_norm(expected_residual.data(), n_slots ? scratch.data() : nullptr, n_slots, nullptr,
                                           weight.values.data(), kEps, n_tokens, width, has_out ? expected.data() : nullptr);

  AddRmsNormTiling tiling = make_add_rms_norm_tiling(n_tokens, width, n_slots, has_out, shadow, kEps, cores);
  tiling.shadow_stride = pitch;
  twin::launch(twin::Kind::aiv, row_blocks(n_tokens, tiling), [&] {
    sigmoe_add_rms_norm(residual.get(), addend.get(), weight.get(), has_out ? out.get() : nullptr, copy.get(), scales.get(),
                        tiling);
  });

  CHECK(relative_error(residual.values, expected_residual) <= kFloat);
  if (!has_out) return;
  CHECK(relative_error(out.values, expected) <= kFloat);
  if (shadow == kNoShadow) return;
  std::vector<float> narrow(n);
  for (int t = 0; t < n_tokens; ++t)
    for (int i = 0; i < width; ++i)
      narrow[t * width + i] = shadow == kShadowInt8
                                  ? static_cast<int8_t>(copy.values[t * pitch + i]) * scales.values[t]
                                  : bf16_to_f32(reinterpret_cast<const uint16_t*>(copy.values.data())[t * pitch + i]);
  if (shadow == kShadowInt8)
    CHECK(within_half_a_step(narrow, out.values, scales.values));
  else
    CHECK(relative_error(narrow, out.values) <= kBf16);
}

}  // namespace

TEST_CASE("add_rms_norm: sizes with tails, slots, shadows and 1 to 48 cores") {
  const int cores[] = {1, 3, 40, 48};
  int turn = 0;
  for (const int width : {8, 33, 64, 200, 1000, 4096})
    for (const int n_tokens : {1, 2, 7, 97})
      for (const ShadowKind shadow : {kNoShadow, kShadowBf16, kShadowInt8}) {
        if (width * n_tokens > 200'000) continue;
        const int aiv = cores[turn++ % 4];
        check_norm(n_tokens, width, turn % 5 == 0 ? 0 : turn % 5 == 1 ? 9 : 1, shadow, true, {aiv / 2, aiv});
      }
  check_norm(5, 64, 3, kNoShadow, false, {20, 40});
}

TEST_CASE("add_rms_norm: rows of zeros, and rows that end where memory ends") {
  Gm<float> residual(std::vector<float>(40, 0.0f)), weight(random_floats(40, 3)), out(40), scales(1);
  Gm<int8_t> codes(64);
  AddRmsNormTiling tiling = make_add_rms_norm_tiling(1, 40, 0, true, kShadowInt8, 1e-6f, {20, 40});
  tiling.shadow_stride = 64;
  twin::launch(twin::Kind::aiv, 1, [&] {
    sigmoe_add_rms_norm(residual.get(), nullptr, weight.get(), out.get(), codes.get(), scales.get(), tiling);
  });
  CHECK(out.values == std::vector<float>(40, 0.0f));
  CHECK(scales.values[0] == 0.0f);
  CHECK(codes.values == std::vector<int8_t>(64, 0));
}

TEST_CASE("convert_rows: every pair of types, picked rows, strides, rows longer than UB") {
  const Cores cores[] = {{1, 1}, {3, 6}, {20, 40}, {24, 48}};
  int turn = 0;
  for (const RowType from : {kRowF32, kRowBf16})
    for (const RowType to : {kRowF32, kRowBf16, kRowInt8})
      for (const int width : {1, 16, 77, 1024, 9000})
        for (const bool picked : {false, true}) {
          CAPTURE(static_cast<int>(from));
          CAPTURE(static_cast<int>(to));
          CAPTURE(width);
          CAPTURE(picked);
          const int n_rows = width > 5000 ? 3 : 1 + turn % 53;
          const Cores& many = cores[turn++ % 4];
          const int64_t from_stride = width + 3, to_stride = row_pitch(width + 5, 1);
          std::vector<float> source = random_floats(static_cast<size_t>(n_rows) * from_stride, turn);
          std::vector<uint16_t> source_bf16(source.size());
          for (size_t i = 0; i < source.size(); ++i) {
            source_bf16[i] = f32_to_bf16(source[i]);
            if (from == kRowBf16) source[i] = bf16_to_f32(source_bf16[i]);
          }
          std::vector<int32_t> ids(n_rows), places(n_rows);
          for (int i = 0; i < n_rows; ++i) ids[i] = picked ? n_rows - 1 - i : i, places[i] = picked ? (i + 1) % n_rows : i;
          Gm<float> from_f32(source), scales(n_rows);
          Gm<uint16_t> from_bf16(source_bf16);
          Gm<int32_t> from_ids(ids), to_ids(places);
          Gm<uint8_t> target(n_rows * to_stride * 4);
          ConvertRowsTiling tiling = make_convert_rows_tiling(n_rows, width, from, to, many);
          tiling.has_from_ids = tiling.has_to_ids = picked;
          tiling.from_stride = from_stride;
          tiling.to_stride = to_stride;
          twin::launch(twin::Kind::aiv, row_blocks(n_rows, tiling), [&] {
            sigmoe_convert_rows(from == kRowF32 ? from_f32.get() : from_bf16.get(), from_ids.get(), target.get(), to_ids.get(),
                                scales.get(), tiling);
          });
          std::vector<float> got, expected, scale_of_row;
          for (int i = 0; i < n_rows; ++i) scale_of_row.push_back(scales.values[places[i]]);
          for (int i = 0; i < n_rows; ++i)
            for (int k = 0; k < width; ++k) {
              const int64_t at = places[i] * to_stride + k;
              expected.push_back(source[ids[i] * from_stride + k]);
              got.push_back(to == kRowF32    ? reinterpret_cast<const float*>(target.values.data())[at]
                            : to == kRowBf16 ? bf16_to_f32(reinterpret_cast<const uint16_t*>(target.values.data())[at])
                                             : static_cast<int8_t>(target.values[at]) * scales.values[places[i]]);
            }
          if (to == kRowInt8)
            CHECK(within_half_a_step(got, expected, scale_of_row));
          else
            CHECK(relative_error(got, expected) <= (to == kRowBf16 ? kBf16 : 0.0));
        }
}

TEST_CASE("row tilings: every row belongs to one block, and UB suffices") {
  for (const Cores& cores : {Cores{20, 40}, Cores{24, 48}, Cores{1, 1}})
    for (const int n_rows : {1, 39, 40, 41, 512}) {
      const AddRmsNormTiling norm = make_add_rms_norm_tiling(n_rows, 4096, 9, true, kShadowInt8, 1e-6f, cores);
      CHECK(row_blocks(n_rows, norm) <= static_cast<uint32_t>(cores.aiv));
      CHECK(static_cast<int64_t>(row_blocks(n_rows, norm)) * norm.rows_per_core >= n_rows);
      CHECK(ub_bytes(norm) <= kUbBytes);
      CHECK(norm.n_buffers == 2);
      const ConvertRowsTiling rows = make_convert_rows_tiling(n_rows, 157'184, kRowF32, kRowBf16, cores);
      CHECK(row_blocks(n_rows, rows) <= static_cast<uint32_t>(cores.aiv));
      CHECK(ub_bytes(rows) <= kUbBytes);
    }
  CHECK(make_add_rms_norm_tiling(1, 8192, 9, true, kShadowInt8, 1e-6f, {20, 40}).n_buffers == 1);
  CHECK_THROWS_AS(make_add_rms_norm_tiling(1, 20'000, 1, true, kShadowBf16, 1e-6f, {20, 40}), EngineError);
  CHECK_THROWS_AS(make_convert_rows_tiling(1, 50'000, kRowF32, kRowInt8, {20, 40}), EngineError);
}
