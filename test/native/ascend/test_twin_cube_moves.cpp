// What moves data on the cube side of the twin: copies to NZ, LoadData and Fixpipe against their definitions, and operands in
// the wrong place.
#include "twin_testing.h"

using namespace AscendC;
using namespace twin_testing;

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
