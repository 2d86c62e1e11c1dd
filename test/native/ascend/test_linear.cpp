// The linear kernels on the twin with every check on, against the naive reference: tails in n and k, 1 to 300 rows, gathered
// rows, 1 to 24 cube cores.
#include "ascend/host/tiling_linear.h"
#include "kernel_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;

extern "C" void sigmoe_linear_bf16(uint8_t* x, uint8_t* row_ids, uint8_t* weight, uint8_t* y, LinearTiling tiling);
extern "C" void sigmoe_linear_f32(uint8_t* x, uint8_t* row_ids, uint8_t* weight, uint8_t* y, LinearTiling tiling);
extern "C" void sigmoe_linear_int8(uint8_t* x, uint8_t* x_scales, uint8_t* row_ids, uint8_t* weight, uint8_t* weight_scales,
                                   uint8_t* y, LinearTiling tiling);

namespace {

struct Shape {
  int64_t rows, n, k;
  int cores;
  bool gathered = false;
};

struct Case {
  Shape shape;
  std::vector<float> x, weight, expected;
  std::vector<float> expected_int8;  // of x and W as INT8 holds them: what is left is only float32 sums and scales
  std::vector<int32_t> row_ids;
};

std::vector<float> reference_product(const Case& made, const std::vector<float>& x, const std::vector<float>& weight) {
  const Shape& shape = made.shape;
  std::vector<float> rows, y(shape.rows * shape.n);
  for (int64_t i = 0; i < shape.rows; ++i) {
    const int64_t row = shape.gathered ? made.row_ids[i] : i;
    rows.insert(rows.end(), x.begin() + row * shape.k, x.begin() + (row + 1) * shape.k);
  }
  const auto reference = reference_backend();
  reference->linear(rows.data(), *reference_weight(*reference, weight, shape.n, shape.k), static_cast<int>(shape.rows),
                    y.data());
  return y;
}

// Gathered: the rows of a larger x, some twice, not in order.
Case make_case(const Shape& shape) {
  Case made;
  made.shape = shape;
  const int64_t x_rows = shape.gathered ? shape.rows + 7 : shape.rows;
  made.x = gaussian(x_rows * shape.k, shape.rows);
  made.weight = bf16_weight(shape.n, shape.k, 3 * shape.n + shape.k);
  for (int64_t i = 0; shape.gathered && i < shape.rows; ++i) made.row_ids.push_back(static_cast<int32_t>((i * 5 + 3) % x_rows));
  made.expected = reference_product(made, made.x, made.weight);
  made.expected_int8 =
      reference_product(made, dequantised_rows(made.x, x_rows, shape.k), dequantised_rows(made.weight, shape.n, shape.k));
  return made;
}

LinearTiling tiling_of(const Shape& shape, int64_t element_bytes) {
  return make_linear_tiling({shape.rows, shape.n, shape.k, row_pitch(shape.k, element_bytes), element_bytes, shape.gathered},
                            {shape.cores, 2 * shape.cores});
}

template <typename T, typename Entry>
double run_float(const Case& made, Entry entry) {
  const Shape& shape = made.shape;
  Gm<T> x(pitched<T>(made.x, made.x.size() / shape.k, shape.k)), weight(packed<T>(made.weight, shape.n, shape.k));
  Gm<int32_t> ids(made.row_ids);
  Gm<float> y(shape.rows * shape.n, NAN);
  const LinearTiling tiling = tiling_of(shape, sizeof(T));
  twin::launch(twin::Kind::aic, shape.cores, [&] { entry(x.address(), ids.address(), weight.address(), y.address(), tiling); });
  return relative_error(y.values(), made.expected);
}

std::vector<float> run_int8(const Case& made) {
  const Shape& shape = made.shape;
  const int64_t x_rows = made.x.size() / shape.k;
  const Quantised x8 = quantise_rows(made.x, x_rows, shape.k), w8 = quantise_rows(made.weight, shape.n, shape.k);
  Gm<int8_t> x(pitched<int8_t>(x8.values, x_rows, shape.k)), weight(packed<int8_t>(w8.values, shape.n, shape.k));
  Gm<float> x_scales(x8.scales), weight_scales(w8.scales), y(shape.rows * shape.n, NAN);
  Gm<int32_t> ids(made.row_ids);
  const LinearTiling tiling = tiling_of(shape, 1);
  twin::launch(twin::Kind::mix, shape.cores, [&] {
    sigmoe_linear_int8(x.address(), x_scales.address(), ids.address(), weight.address(), weight_scales.address(), y.address(),
                       tiling);
  });
  return y.values();
}

const Shape kShapes[] = {
    {1, 256, 256, 20},      {1, 5, 3, 24},           {2, 16, 16, 1},     {3, 100, 72, 3},   {15, 384, 128, 20},
    {16, 130, 1000, 7},     {17, 33, 520, 24},       {64, 640, 256, 20}, {127, 48, 96, 2},  {128, 128, 512, 1},
    {129, 257, 130, 24},    {300, 160, 64, 20},      {1, 6144, 64, 20},  {1, 48, 2048, 20}, {9, 96, 100, 20, true},
    {130, 80, 40, 5, true}, {1, 300, 256, 24, true},
};

}  // namespace

TEST_CASE("ascend linear: bf16, float32 and int8 agree with the reference") {
  for (const Shape& shape : kShapes) {
    CAPTURE(shape.rows);
    CAPTURE(shape.n);
    CAPTURE(shape.k);
    CAPTURE(shape.cores);
    const Case made = make_case(shape);
    CHECK(run_float<bfloat16_t>(made, sigmoe_linear_bf16) < kBf16Error);
    CHECK(run_float<float>(made, sigmoe_linear_f32) < kF32Error);
    const std::vector<float> int8 = run_int8(made);
    CHECK(relative_error(int8, made.expected) < kInt8Error);
    CHECK(relative_error(int8, made.expected_int8) < kF32Error);
  }
}

TEST_CASE("ascend linear: every number of cores gives the same bits") {
  const Case made = make_case({20, 200, 96, 1});
  Gm<bfloat16_t> x(pitched<bfloat16_t>(made.x, 20, 96)), weight(packed<bfloat16_t>(made.weight, 200, 96));
  std::vector<float> first;
  for (int cores = 1; cores <= 24; ++cores) {
    Gm<float> y(20 * 200, NAN);
    const LinearTiling tiling = make_linear_tiling({20, 200, 96, 96, 2, false}, {cores, 2 * cores});
    twin::launch(twin::Kind::aic, cores,
                 [&] { sigmoe_linear_bf16(x.address(), nullptr, weight.address(), y.address(), tiling); });
    if (first.empty()) first = y.values();
    CHECK(y.values() == first);
  }
}

TEST_CASE("ascend linear: 512 rows") {
  const Case made = make_case({512, 96, 80, 20});
  CHECK(run_float<bfloat16_t>(made, sigmoe_linear_bf16) < kBf16Error);
  CHECK(relative_error(run_int8(made), made.expected_int8) < kF32Error);
}

TEST_CASE("ascend linear tiling: tiles fit the buffers and share out over the cores") {
  for (const int cores : {1, 20, 24})
    for (const int64_t rows : {1, 16, 128, 129, 512, 4096})
      for (const int64_t n : {1, 16, 100, 512, 4096, 5120, 18432, 157184}) {
        CAPTURE(cores);
        CAPTURE(rows);
        CAPTURE(n);
        const LinearTiling tiling = make_linear_tiling({rows, n, 4096, 4096, 2, false}, {cores, 2 * cores});
        CHECK(tiling.column_tile % 16 == 0);
        CHECK(tiling.column_tile >= 16);
        CHECK(tiling.column_tile <= 128);
        const int64_t row_blocks = ceil_div(rows, 128), tiles = row_blocks * ceil_div(n, tiling.column_tile);
        // No more rounds of tiles than with the widest tile.
        CHECK(ceil_div(tiles, cores) <= ceil_div(row_blocks * ceil_div(n, 128), cores));
        CHECK(tiling.scale_width * 20 <= 183 * 1024);
        CHECK(tiling.scale_strip >= 1);
        const int64_t pieces = ceil_div(rows, tiling.scale_strip) * ceil_div(n, tiling.scale_width);
        CHECK(pieces <= 2 * ceil_div(n, tiling.scale_width) * 2 * cores);
      }
  CHECK(make_linear_tiling({1, 4096, 4096, 4096, 2, false}, {20, 40}).column_tile == 112);  // 37 tiles, 2 rounds of 20
  CHECK(make_linear_tiling({1, 4096, 4096, 4096, 2, false}, {24, 48}).column_tile == 96);   // 43 tiles, 2 rounds of 24
  CHECK_THROWS_AS(make_linear_tiling({1, 16, 70000, 70000, 2, false}, {20, 40}), EngineError);
}
