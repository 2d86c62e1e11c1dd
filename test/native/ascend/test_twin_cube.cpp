// Products on the cube side of the twin, from GM to GM, and the mistakes in their order that must be caught. Operands are small
// integers, so every product is exact and is compared for equality.
#include <random>

#include "twin_testing.h"

using namespace AscendC;
using namespace twin_testing;

namespace {

template <typename T>
constexpr int kLanes = 32 / sizeof(T);

template <typename T>
T value_of(int value) {
  if constexpr (std::is_same_v<T, bfloat16_t>)
    return bfloat16_t(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

// Seeded integers in [-8, 8].
template <typename T>
std::vector<T> integers(int n, int seed) {
  std::mt19937 random(seed);
  std::vector<T> values;
  for (int i = 0; i < n; ++i) values.push_back(value_of<T>(static_cast<int>(random() % 17) - 8));
  return values;
}

int round16(int n) { return (n + 15) / 16 * 16; }

// c (m, n) = a (m, k) b (n, k)^T with everything in one pass, and every step there is to get wrong.
struct Product {
  int m = 20, n = 32, k = 40;
  bool copy_sync = true, load_sync = true, multiply_sync = true, barrier = true;
  int halves = 1;            // 2: the product is added to itself
  int multiplied_rows = 0;   // 0: m
  int brought_rows = 0;      // 0: m
  int copied_rows = 0;       // 0: m
  int source_stride = 0;     // 0: m rounded to 16
  bool b_is_k_by_n = false;  // b in GM is (k, n), and its fractals are turned on the way to L0B
};

template <typename T, typename Sum>
std::string run(const Product& p, std::vector<Sum>* result = nullptr) {
  constexpr int kL = kLanes<T>;
  const int m16 = round16(p.m), n16 = round16(p.n), blocks = (p.k + kL - 1) / kL;
  Array<T> a(integers<T>(p.m * p.k, 1)), b(integers<T>(p.n * p.k, 2));
  Array<Sum> c(p.m * p.n, Sum(-99));
  const std::string fault = fault_of(twin::Kind::aic, 1, [&] {
    TPipe pipe;
    TQue<TPosition::A1, 1> a1_queue;
    TQue<TPosition::B1, 1> b1_queue;
    TQue<TPosition::A2, 1> a2_queue;
    TQue<TPosition::B2, 1> b2_queue;
    TQue<TPosition::CO1, 1> c_queue;
    pipe.InitBuffer(a1_queue, 1, m16 * blocks * 32);
    pipe.InitBuffer(b1_queue, 1, n16 * (p.b_is_k_by_n ? round16(p.k) * 2 : blocks * 32));
    pipe.InitBuffer(a2_queue, 1, m16 * blocks * 32);
    pipe.InitBuffer(b2_queue, 1, n16 * blocks * 32);
    pipe.InitBuffer(c_queue, 1, m16 * n16 * 4);

    LocalTensor<T> a1 = a1_queue.AllocTensor<T>(), b1 = b1_queue.AllocTensor<T>();
    Nd2NzParams nz;
    nz.nValue = p.b_is_k_by_n ? p.k : p.n;
    nz.dValue = nz.srcDValue = p.b_is_k_by_n ? p.n : p.k;
    nz.dstNzC0Stride = p.b_is_k_by_n ? round16(p.k) : n16;
    DataCopy(b1, b.tensor(), nz);
    b1_queue.EnQue(b1);
    b1 = b1_queue.DeQue<T>();
    nz.nValue = p.copied_rows ? p.copied_rows : p.m;
    nz.dValue = nz.srcDValue = p.k;
    nz.dstNzC0Stride = m16;
    DataCopy(a1, a.tensor(), nz);
    if (p.copy_sync) {
      a1_queue.EnQue(a1);
      a1 = a1_queue.DeQue<T>();
    }

    LocalTensor<T> a2 = a2_queue.AllocTensor<T>(), b2 = b2_queue.AllocTensor<T>();
    LoadData2DParams load;
    load.repeatTimes = n16 / 16;
    load.srcStride = p.b_is_k_by_n ? round16(p.k) / 16 : 1;
    load.ifTranspose = p.b_is_k_by_n;
    for (int block = 0; block < blocks; ++block)
      LoadData(b2[block * n16 * kL], p.b_is_k_by_n ? b1[block * 16 * 16] : b1[block * n16 * kL], load);
    b2_queue.EnQue(b2);
    b2 = b2_queue.DeQue<T>();
    load.repeatTimes = blocks;
    load.srcStride = m16 / 16;
    load.ifTranspose = false;
    for (int row = 0; row < m16; row += 16) LoadData(a2[row * blocks * kL], a1[row * kL], load);
    if (p.load_sync) {
      a2_queue.EnQue(a2);
      a2 = a2_queue.DeQue<T>();
    }
    a1_queue.FreeTensor(a1);
    b1_queue.FreeTensor(b1);

    LocalTensor<Sum> sums = c_queue.AllocTensor<Sum>();
    MmadParams mmad;
    mmad.m = p.multiplied_rows ? p.multiplied_rows : p.m;
    mmad.n = n16;
    mmad.k = p.k;
    for (int half = 0; half < p.halves; ++half) {
      mmad.cmatrixInitVal = half == 0;
      if (half > 0 && p.barrier) PipeBarrier<PIPE_M>();
      Mmad(sums, a2, b2, mmad);
    }
    a2_queue.FreeTensor(a2);
    b2_queue.FreeTensor(b2);
    if (p.multiply_sync) {
      c_queue.EnQue(sums);
      sums = c_queue.DeQue<Sum>();
    }
    FixpipeParamsV220 fix;
    fix.nSize = p.n;
    fix.mSize = p.brought_rows ? p.brought_rows : p.m;
    fix.srcStride = p.source_stride ? p.source_stride : m16;
    fix.dstStride = p.n;
    Fixpipe<Sum, Sum, CFG_ROW_MAJOR>(c.tensor(), sums, fix);
    c_queue.FreeTensor(sums);
  });
  if (result) *result = c.values;
  return fault;
}

template <typename T, typename Sum>
std::vector<Sum> expected(const Product& p) {
  const std::vector<T> a = integers<T>(p.m * p.k, 1), b = integers<T>(p.n * p.k, 2);
  std::vector<Sum> c;
  for (int i = 0; i < p.m; ++i)
    for (int j = 0; j < p.n; ++j) {
      Sum sum = 0;
      for (int l = 0; l < p.k; ++l)
        sum += static_cast<Sum>(a[i * p.k + l]) * static_cast<Sum>(p.b_is_k_by_n ? b[l * p.n + j] : b[j * p.k + l]);
      c.push_back(sum * static_cast<Sum>(p.halves));
    }
  return c;
}

template <typename T, typename Sum>
void check_product(const Product& p) {
  CAPTURE(p.m);
  CAPTURE(p.n);
  CAPTURE(p.k);
  std::vector<Sum> result;
  CHECK(run<T, Sum>(p, &result) == "");
  CHECK(result == expected<T, Sum>(p));
}

Product with(void (*change)(Product&)) {
  Product product;
  change(product);
  return product;
}

std::string mistake(void (*change)(Product&)) { return run<bfloat16_t, float>(with(change)); }

}  // namespace

TEST_CASE("twin cube: products of every type, tails included") {
  const int shapes[][3] = {{2, 16, 16}, {16, 16, 32}, {20, 32, 40}, {33, 7, 100}, {128, 48, 128}, {15, 128, 8}, {64, 33, 3}};
  for (const auto& [m, n, k] : shapes) {
    Product p;
    p.m = m, p.n = n, p.k = k;
    check_product<bfloat16_t, float>(p);
    check_product<float, float>(p);
    check_product<int8_t, int32_t>(p);
    p.halves = 2;
    check_product<bfloat16_t, float>(p);
    check_product<int8_t, int32_t>(p);
  }
}

TEST_CASE("twin cube: fractals turned on their way to L0B") {
  for (const int k : {16, 48, 64})
    for (const int n : {16, 32, 80}) {
      Product p;
      p.m = 18, p.n = n, p.k = k;
      p.b_is_k_by_n = true;
      check_product<bfloat16_t, float>(p);
    }
}

TEST_CASE("twin cube: one row is read as a vector along k, not as a fractal") {
  Product p;
  p.m = 1, p.k = 64;
  CHECK(says(run<bfloat16_t, float>(p), "which nothing has written"));  // lanes 16 and on are rows 1 and on of the fractal
  p.multiplied_rows = 2;                                                // the way out: more rows than there are
  check_product<bfloat16_t, float>(p);

  Array<bfloat16_t> a(integers<bfloat16_t>(256, 1)), b(integers<bfloat16_t>(16 * 256, 2));
  Array<float> c(16);
  CHECK(fault_of(twin::Kind::aic, 1, [&] {
          TPipe pipe;
          TBuf<TPosition::A1> a1;
          TBuf<TPosition::B1> b1;
          TBuf<TPosition::A2> a2;
          TBuf<TPosition::B2> b2;
          TBuf<TPosition::CO1> sums;
          pipe.InitBuffer(a1, 512);
          pipe.InitBuffer(b1, 16 * 512);
          pipe.InitBuffer(a2, 512);
          pipe.InitBuffer(b2, 16 * 512);
          pipe.InitBuffer(sums, 1024);
          DataCopy(a1.Get<bfloat16_t>(), a.tensor(), 256);
          Nd2NzParams nz;
          nz.nValue = 16;
          nz.dValue = nz.srcDValue = 256;
          nz.dstNzC0Stride = 16;
          DataCopy(b1.Get<bfloat16_t>(), b.tensor(), nz);
          wait_for<HardEvent::MTE2_MTE1>();
          LoadData2DParams load;
          load.repeatTimes = 1;
          LoadData(a2.Get<bfloat16_t>(), a1.Get<bfloat16_t>(), load);
          load.repeatTimes = 16;
          load.srcStride = 1;
          LoadData(b2.Get<bfloat16_t>(), b1.Get<bfloat16_t>(), load);
          wait_for<HardEvent::MTE1_M>();
          MmadParams mmad;
          mmad.m = 1, mmad.n = 16, mmad.k = 256;
          Mmad(sums.Get<float>(), a2.Get<bfloat16_t>(), b2.Get<bfloat16_t>(), mmad);
          wait_for<HardEvent::M_FIX>();
          FixpipeParamsV220 fix;
          fix.nSize = 16, fix.mSize = 1, fix.srcStride = 16, fix.dstStride = 16;
          Fixpipe<float, float, CFG_ROW_MAJOR>(c.tensor(), sums.Get<float>(), fix);
        }) == "");
  for (int j = 0; j < 16; ++j) {
    float sum = 0;
    for (int l = 0; l < 256; ++l) sum += static_cast<float>(a.values[l]) * static_cast<float>(b.values[j * 256 + l]);
    CHECK(c.values[j] == sum);
  }
}

TEST_CASE("twin cube: missing waits between the pipes are caught") {
  CHECK(mistake([](Product&) {}) == "");
  CHECK(says(mistake([](Product& p) { p.copy_sync = false; }), "LoadData: reads local memory"));
  CHECK(says(mistake([](Product& p) { p.load_sync = false; }), "Mmad: reads local memory"));
  CHECK(says(mistake([](Product& p) { p.multiply_sync = false; }), "Fixpipe: reads local memory"));
  CHECK(says(mistake([](Product& p) { p.halves = 2, p.barrier = false; }), "Mmad: reads local memory that Mmad"));
}

TEST_CASE("twin cube: rows that nothing filled may be multiplied and not used") {
  CHECK(mistake([](Product& p) { p.multiplied_rows = 32; }) == "");
  CHECK(says(mistake([](Product& p) { p.multiplied_rows = 32, p.brought_rows = 21; }), "which nothing has written"));
  CHECK(says(mistake([](Product& p) { p.multiplied_rows = 19; }), "which nothing has written"));
  CHECK(says(mistake([](Product& p) { p.copied_rows = 19; }), "which nothing has written"));
  CHECK(says(mistake([](Product& p) { p.copied_rows = 21; }), "past the"));
  CHECK(says(mistake([](Product& p) { p.source_stride = 20; }), "srcStride"));
}
