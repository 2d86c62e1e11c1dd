// One output tile of a matrix product on a cube core: rows of x times a range of output channels of a packed weight.
//
//   x: GM  -Nd2Nz->  L1 [k / lanes][rows][lanes]         -LoadData->  L0A [rows / 16][k / lanes][16][lanes]
//   W: GM  -copy->   L1 [groups][k / lanes][16][lanes]   -LoadData->  L0B [k / lanes][groups][16][lanes]
//   L0A, L0B  -Mmad->  L0C  -Fixpipe->  GM
//
// Every buffer is double: the queues let a copy of the next piece of k run while the last one is multiplied.
#pragma once

#include "ascend/device/args/weight_layout.h"
#include "kernel_operator.h"

namespace sigmoe_cube_kernels {

using namespace AscendC;
using namespace sigmoe::ascend;

constexpr int32_t kTileRows = 128;
constexpr int32_t kTileColumns = 128;
constexpr int32_t kL1Blocks = 16;  // blocks of 32 bytes along k in a buffer of L1: 64 KB with 128 rows
constexpr int32_t kL0Blocks = 8;   // and of L0A and L0B: 32 KB

template <typename T>
struct CubeSum {
  using Type = float;
};
template <>
struct CubeSum<int8_t> {
  using Type = int32_t;
};

// Mmad with m = 1 reads its left operand in another layout, so a single row is multiplied together with the unwritten one
// after it, whose result nobody fetches.
__aicore__ inline uint16_t cube_rows(int32_t rows) { return static_cast<uint16_t>(rows > 1 ? rows : 2); }

template <typename T>
class CubeGemm {
 public:
  using Sum = typename CubeSum<T>::Type;
  static constexpr int32_t kLanes = kBlockBytes / sizeof(T);

  __aicore__ inline void init(TPipe* pipe) {
    pipe->InitBuffer(a1_, 2, kTileRows * kL1Blocks * kBlockBytes);
    pipe->InitBuffer(b1_, 2, kTileColumns * kL1Blocks * kBlockBytes);
    pipe->InitBuffer(a2_, 2, kTileRows * kL0Blocks * kBlockBytes);
    pipe->InitBuffer(b2_, 2, kTileColumns * kL0Blocks * kBlockBytes);
    pipe->InitBuffer(co1_, 2, kTileRows * kTileColumns * sizeof(Sum));
  }

  // Rows ids[0 .. rows) of x, or rows [first_row, first_row + rows) when ids is null; `pitch` elements apart.
  __aicore__ inline void set_rows(const GlobalTensor<T>& x, int32_t pitch, const int32_t* ids, int64_t first_row,
                                  int32_t rows) {
    x_ = x;
    pitch_ = pitch;
    ids_ = ids;
    first_row_ = first_row;
    rows_ = rows;
    rows16_ = static_cast<int32_t>(round_up(rows, kGroupRows));
  }

  // out[r * out_pitch + c] for the rows set and c < columns, of output channels from 16 * first_group on.
  __aicore__ inline void multiply(const GlobalTensor<T>& weight, const WeightLayout& layout, int32_t first_group,
                                  int32_t columns, const GlobalTensor<Sum>& out, uint32_t out_pitch) {
    const int32_t groups = static_cast<int32_t>(ceil_div(columns, kGroupRows));
    const int32_t blocks = static_cast<int32_t>(layout.blocks());
    LocalTensor<Sum> sums = co1_.template AllocTensor<Sum>();
    for (int32_t at = 0; at < blocks; at += kL1Blocks) {
      const int32_t count = at + kL1Blocks < blocks ? kL1Blocks : blocks - at;
      copy_rows(layout, at, count);
      copy_weight(weight, layout, first_group, groups, at, count);
      LocalTensor<T> a1 = a1_.template DeQue<T>();
      LocalTensor<T> b1 = b1_.template DeQue<T>();
      for (int32_t part = 0; part < count; part += kL0Blocks)
        multiply_part(sums, a1, b1, groups, count, part, part + kL0Blocks < count ? kL0Blocks : count - part, at + part == 0);
      a1_.FreeTensor(a1);
      b1_.FreeTensor(b1);
    }
    co1_.EnQue(sums);
    sums = co1_.template DeQue<Sum>();
    FixpipeParamsV220 fix;
    fix.nSize = static_cast<uint16_t>(columns);
    fix.mSize = static_cast<uint16_t>(rows_);
    fix.srcStride = static_cast<uint16_t>(rows16_);
    fix.dstStride = out_pitch;
    fix.ndNum = 1;
    Fixpipe<Sum, Sum, CFG_ROW_MAJOR>(out, sums, fix);
    co1_.FreeTensor(sums);
  }

 private:
  // Blocks [at, at + count) along k of the rows.
  __aicore__ inline void copy_rows(const WeightLayout& layout, int32_t at, int32_t count) {
    LocalTensor<T> a1 = a1_.template AllocTensor<T>();
    const int64_t column = static_cast<int64_t>(at) * kLanes;
    const int64_t end = column + static_cast<int64_t>(count) * kLanes;
    Nd2NzParams nz;
    nz.ndNum = 1;
    nz.nValue = static_cast<uint16_t>(ids_ ? 1 : rows_);
    nz.dValue = static_cast<uint16_t>((end < layout.k ? end : layout.k) - column);
    nz.srcNdMatrixStride = 0;
    nz.srcDValue = static_cast<uint16_t>(pitch_);
    nz.dstNzC0Stride = static_cast<uint16_t>(rows16_);
    nz.dstNzNStride = 1;
    nz.dstNzMatrixStride = 1;
    if (ids_) {
      for (int32_t row = 0; row < rows_; ++row)
        DataCopy(a1[row * kLanes], x_[static_cast<int64_t>(ids_[row]) * pitch_ + column], nz);
    } else {
      DataCopy(a1, x_[first_row_ * pitch_ + column], nz);
    }
    a1_.EnQue(a1);
  }

  __aicore__ inline void copy_weight(const GlobalTensor<T>& weight, const WeightLayout& layout, int32_t first_group,
                                     int32_t groups, int32_t at, int32_t count) {
    LocalTensor<T> b1 = b1_.template AllocTensor<T>();
    DataCopyParams copy;
    copy.blockCount = static_cast<uint16_t>(groups);
    copy.blockLen = static_cast<uint16_t>(count * kGroupRows);
    copy.srcStride = static_cast<uint16_t>((layout.blocks() - count) * kGroupRows);
    copy.dstStride = 0;
    DataCopy(b1, weight[layout.fractal(first_group, at)], copy);
    b1_.EnQue(b1);
  }

  // Adds the product of blocks [part, part + count) of what L1 holds (`held` blocks), or stores it when it is the first.
  __aicore__ inline void multiply_part(const LocalTensor<Sum>& sums, const LocalTensor<T>& a1, const LocalTensor<T>& b1,
                                       int32_t groups, int32_t held, int32_t part, int32_t count, bool first) {
    LoadData2DParams load;
    load.startIndex = 0;
    load.repeatTimes = static_cast<uint8_t>(count);
    load.ifTranspose = false;

    LocalTensor<T> a2 = a2_.template AllocTensor<T>();
    load.srcStride = static_cast<uint16_t>(rows16_ / kGroupRows);
    load.dstGap = 0;
    for (int32_t row = 0; row < rows16_; row += kGroupRows)
      LoadData(a2[row * count * kLanes], a1[(part * rows16_ + row) * kLanes], load);
    a2_.EnQue(a2);

    LocalTensor<T> b2 = b2_.template AllocTensor<T>();
    load.srcStride = 1;
    load.dstGap = static_cast<uint16_t>(groups - 1);
    for (int32_t group = 0; group < groups; ++group)
      LoadData(b2[group * kGroupRows * kLanes], b1[(group * held + part) * kGroupRows * kLanes], load);
    b2_.EnQue(b2);

    a2 = a2_.template DeQue<T>();
    b2 = b2_.template DeQue<T>();
    MmadParams mmad;
    mmad.m = cube_rows(rows_);
    mmad.n = static_cast<uint16_t>(groups * kGroupRows);
    mmad.k = static_cast<uint16_t>(count * kLanes);
    mmad.cmatrixInitVal = first;
    Mmad(sums, a2, b2, mmad);
    PipeBarrier<PIPE_M>();  // the next part adds to the same sums
    a2_.FreeTensor(a2);
    b2_.FreeTensor(b2);
  }

  TQue<TPosition::A1, 1> a1_;
  TQue<TPosition::B1, 1> b1_;
  TQue<TPosition::A2, 1> a2_;
  TQue<TPosition::B2, 1> b2_;
  TQue<TPosition::CO1, 1> co1_;
  GlobalTensor<T> x_;
  const int32_t* ids_ = nullptr;
  int64_t first_row_ = 0;
  int32_t pitch_ = 0, rows_ = 0, rows16_ = 0;
};

}  // namespace sigmoe_cube_kernels
