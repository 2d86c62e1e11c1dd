// The cube side of the twin: copies to NZ, LoadData, Mmad and Fixpipe against their definitions, and the mistakes that must be
// caught. Operands are small integers, so every product is exact and is compared for equality.
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

TEST_CASE("twin cube: several matrices to NZ, with strides and a tail filled with zeros") {
  Array<int32_t> matrices(200);
  for (int i = 0; i < 200; ++i) matrices.values[i] = i + 1;
  CHECK(fault_of(twin::Kind::aic, 1, [&] {
          TPipe pipe;
          TBuf<TPosition::A1> l1;
          pipe.InitBuffer(l1, 4096);
          Nd2NzParams nz;  // 2 matrices of 3 rows and 11 columns, rows 20 apart, matrices 70; in L1 every other row of 8
          nz.ndNum = 2, nz.nValue = 3, nz.dValue = 11, nz.srcNdMatrixStride = 70, nz.srcDValue = 20;
          nz.dstNzC0Stride = 8, nz.dstNzNStride = 2, nz.dstNzMatrixStride = 128;
          const LocalTensor<int32_t> tile = l1.Get<int32_t>();
          DataCopy(tile, matrices.tensor(), nz);
          for (int matrix = 0; matrix < 2; ++matrix)
            for (int row = 0; row < 3; ++row)
              for (int column = 0; column < 16; ++column)
                CHECK(tile.data()[matrix * 128 + column / 8 * 64 + row * 16 + column % 8] ==
                      (column < 11 ? matrix * 70 + row * 20 + column + 1 : 0));
        }) == "");
}

TEST_CASE("twin cube: LoadData takes fractals by start, stride and gap") {
  Array<int8_t> from(8 * 512);
  for (int i = 0; i < 8 * 512; ++i) from.values[i] = static_cast<int8_t>(i / 512);
  CHECK(fault_of(twin::Kind::aic, 1, [&] {
          TPipe pipe;
          TBuf<TPosition::B1> l1;
          TBuf<TPosition::B2> l0;
          pipe.InitBuffer(l1, 8 * 512);
          pipe.InitBuffer(l0, 8 * 512);
          DataCopy(l1.Get<int8_t>(), from.tensor(), 8 * 512);
          wait_for<HardEvent::MTE2_MTE1>();
          LoadData2DParams load;
          load.startIndex = 1, load.repeatTimes = 3, load.srcStride = 2, load.dstGap = 1;
          LoadData(l0.Get<int8_t>(), l1.Get<int8_t>(), load);
          for (int i = 0; i < 3; ++i) CHECK(l0.Get<int8_t>().data()[i * 2 * 512 + 511] == 1 + 2 * i);
        }) == "");
}

namespace {

// A tile of L0C with sums row * 100 + column + 1/3, brought out as Out.
template <typename Out, const FixpipeConfig& config>
std::string bring_out(Array<Out>& to, QuantMode_t mode, int n, uint32_t stride) {
  Array<float> a(std::vector<float>(16 * 8)), b(std::vector<float>(32 * 8));
  for (int i = 0; i < 16; ++i) a.values[i * 8] = static_cast<float>(i) * 100, a.values[i * 8 + 1] = 1;
  for (int j = 0; j < 32; ++j) b.values[j * 8] = 1, b.values[j * 8 + 1] = static_cast<float>(j) + 1.0f / 3;
  return fault_of(twin::Kind::aic, 1, [&] {
    TPipe pipe;
    TBuf<TPosition::A1> l1;
    TBuf<TPosition::A2> a2;
    TBuf<TPosition::B2> b2;
    TBuf<TPosition::CO1> sums;
    pipe.InitBuffer(l1, 48 * 32);
    pipe.InitBuffer(a2, 512);
    pipe.InitBuffer(b2, 1024);
    pipe.InitBuffer(sums, 2048);
    const LocalTensor<float> tile = l1.Get<float>();
    DataCopy(tile, a.tensor(), 16 * 8);
    DataCopy(tile[16 * 8], b.tensor(), 32 * 8);
    wait_for<HardEvent::MTE2_MTE1>();
    LoadData2DParams load;
    load.repeatTimes = 1;
    LoadData(a2.Get<float>(), tile, load);
    load.repeatTimes = 2, load.srcStride = 1;
    LoadData(b2.Get<float>(), tile[16 * 8], load);
    wait_for<HardEvent::MTE1_M>();
    MmadParams mmad;
    mmad.m = 16, mmad.n = 32, mmad.k = 8;
    Mmad(sums.Get<float>(), a2.Get<float>(), b2.Get<float>(), mmad);
    wait_for<HardEvent::M_FIX>();
    FixpipeParamsV220 fix;
    fix.nSize = n, fix.mSize = 5, fix.srcStride = 16, fix.dstStride = stride, fix.quantPre = mode;
    Fixpipe<Out, float, config>(to.tensor(), sums.Get<float>(), fix);
  });
}

float sum_at(int row, int column) { return static_cast<float>(row) * 100 + (static_cast<float>(column) + 1.0f / 3); }

}  // namespace

TEST_CASE("twin cube: Fixpipe rounds to BF16 and half, row-major and NZ, and writes nothing else") {
  Array<float> plain(5 * 40, -1.0f);
  CHECK(bring_out<float, CFG_ROW_MAJOR>(plain, QuantMode_t::NoQuant, 27, 40) == "");
  for (int row = 0; row < 5; ++row)
    for (int column = 0; column < 40; ++column)
      CHECK(plain.values[row * 40 + column] == (column < 27 ? sum_at(row, column) : -1.0f));
  Array<bfloat16_t> bf16(5 * 32);
  CHECK(bring_out<bfloat16_t, CFG_ROW_MAJOR>(bf16, QuantMode_t::F322BF16, 32, 32) == "");
  Array<half> halves(5 * 32);
  CHECK(bring_out<half, CFG_ROW_MAJOR>(halves, QuantMode_t::F322F16, 32, 32) == "");
  Array<bfloat16_t> nz(2 * 5 * 16);
  CHECK(bring_out<bfloat16_t, CFG_NZ>(nz, QuantMode_t::F322BF16, 32, 5) == "");
  for (int row = 0; row < 5; ++row)
    for (int column = 0; column < 32; ++column) {
      CHECK(bf16.values[row * 32 + column].bits() == bfloat16_t(sum_at(row, column)).bits());
      CHECK(halves.values[row * 32 + column].bits() == half(sum_at(row, column)).bits());
    }
  CHECK(nz.values[16 + 3].bits() == bfloat16_t(sum_at(1, 3)).bits());
  CHECK(says(bring_out<bfloat16_t, CFG_ROW_MAJOR>(bf16, QuantMode_t::NoQuant, 32, 32), "quantPre"));
  CHECK(says(bring_out<float, CFG_ROW_MAJOR>(plain, QuantMode_t::NoQuant, 32, 50), "past the"));
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

TEST_CASE("twin cube: operands in the wrong place, misaligned or too large are caught") {
  Array<float> gm(64 * 64, 1.0f);
  const auto in_cube =
      [&](void (*body)(GlobalTensor<float>, TBuf<TPosition::A1>&, TBuf<TPosition::A2>&, TBuf<TPosition::CO1>&)) {
        return fault_of(twin::Kind::aic, 1, [&] {
          TPipe pipe;
          TBuf<TPosition::A1> l1;
          TBuf<TPosition::A2> l0a;
          TBuf<TPosition::CO1> l0c;
          pipe.InitBuffer(l1, 4096);
          pipe.InitBuffer(l0a, 4096);
          pipe.InitBuffer(l0c, 4096);
          body(gm.tensor(), l1, l0a, l0c);
        });
      };
  using L1 = TBuf<TPosition::A1>;
  using L0A = TBuf<TPosition::A2>;
  using L0C = TBuf<TPosition::CO1>;
  CHECK(says(in_cube([](GlobalTensor<float> from, L1&, L0A& l0a, L0C&) {
               Nd2NzParams nz;
               nz.nValue = 16, nz.dValue = nz.srcDValue = 8, nz.dstNzC0Stride = 16;
               DataCopy(l0a.Get<float>(), from, nz);
             }),
             "where one in L1 is needed"));
  CHECK(says(in_cube([](GlobalTensor<float> from, L1& l1, L0A&, L0C&) {
               Nd2NzParams nz;
               nz.nValue = 16, nz.dValue = nz.srcDValue = 16, nz.dstNzC0Stride = 200;
               DataCopy(l1.Get<float>(), from, nz);
             }),
             "of a local tensor that has"));
  CHECK(says(in_cube([](GlobalTensor<float> from, L1& l1, L0A& l0a, L0C&) {
               DataCopy(l1.Get<float>(), from, 128);
               wait_for<HardEvent::MTE2_MTE1>();
               LoadData2DParams load;
               load.repeatTimes = 1;
               LoadData(l0a.Get<float>()[8], l1.Get<float>(), load);
             }),
             "not a multiple of 512"));
  CHECK(says(in_cube([](GlobalTensor<float> from, L1& l1, L0A& l0a, L0C&) {
               DataCopy(l1.Get<float>(), from, 128);
               wait_for<HardEvent::MTE2_MTE1>();
               LoadData2DParams load;
               load.repeatTimes = 1, load.ifTranspose = true;
               LoadData(l0a.Get<float>(), l1.Get<float>(), load);
             }),
             "ifTranspose"));
  CHECK(says(in_cube([](GlobalTensor<float> from, L1& l1, L0A& l0a, L0C&) {
               LoadData2DParams load;
               load.repeatTimes = 9;
               LoadData(l0a.Get<float>(), l1.Get<float>(), load);
             }),
             "of a local tensor that has 4096"));
  CHECK(says(in_cube([](GlobalTensor<float>, L1&, L0A& l0a, L0C& l0c) {
               MmadParams mmad;
               mmad.m = mmad.n = 16, mmad.k = 8;
               Mmad(l0c.Get<float>()[16], l0a.Get<float>(), l0a.Get<float>(), mmad);
             }),
             "not a multiple of 1024"));
  CHECK(says(in_cube([](GlobalTensor<float>, L1&, L0A& l0a, L0C& l0c) {
               MmadParams mmad;
               mmad.m = mmad.n = 16, mmad.k = 8;
               Mmad(l0c.Get<float>(), l0a.Get<float>(), l0a.Get<float>(), mmad);
             }),
             "where one in L0B is needed"));
  CHECK(says(fault_of(twin::Kind::aic, 1,
                      [] {
                        TPipe pipe;
                        TQue<TPosition::A2, 1> queue;
                        pipe.InitBuffer(queue, 2, 33 * 1024);
                      }),
             "bytes of L0A"));
}
