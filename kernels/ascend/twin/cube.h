// The cube side of a core: DataCopy from row-major GM to NZ in L1, LoadData from L1 to L0A and L0B, Mmad.
//
// Rows of a tile that no data fills stay unwritten all the way: LoadData carries "unwritten" along with the bytes, Mmad makes
// a row of L0C unwritten whose operands or sums were, and Fixpipe refuses to bring such a row out. So a kernel may multiply
// padded rows, as it must, but not use them.
#pragma once

#include <cstdint>

#include "ascend/twin/cube_math.h"
#include "ascend/twin/tensor.h"

namespace AscendC {

// ndNum matrices of nValue rows and dValue columns in GM; their places in L1 in 32-byte units along k and rows.
struct Nd2NzParams {
  std::uint16_t ndNum = 1, nValue = 0, dValue = 0, srcNdMatrixStride = 0, srcDValue = 0, dstNzC0Stride = 0, dstNzNStride = 1,
                dstNzMatrixStride = 1;
};

// repeatTimes fractals: the source ones srcStride apart from start to start, the destination ones with dstGap between them.
struct LoadData2DParams {
  std::uint16_t startIndex = 0;
  std::uint8_t repeatTimes = 0;
  std::uint16_t srcStride = 0;
  std::uint8_t sid = 0;
  std::uint16_t dstGap = 0;
  bool ifTranspose = false;
  std::uint8_t addrMode = 0;
};

struct MmadParams {
  std::uint16_t m = 0, n = 0, k = 0;
  bool isBias = false;
  std::int32_t fmOffset = 0;
  bool enSsparse = false, enWinogradA = false, enWinogradB = false;
  std::int8_t unitFlag = 0;
  bool kDirectionAlign = false, cmatrixSource = false, cmatrixInitVal = true;
};

}  // namespace AscendC

namespace twin::cube {

// Visits the written pieces of bytes [offset, offset + bytes) of a local tensor, and says whether there are others.
template <typename Visit>
bool each_written(const Instruction& instruction, const Local& local, std::int64_t offset, std::int64_t bytes, Visit visit) {
  if (offset < 0 || offset + bytes > local.bytes)
    instruction.fail("bytes [" + std::to_string(offset) + ", " + std::to_string(offset + bytes) +
                     ") of a local tensor that has " + std::to_string(local.bytes));
  const Region& region = self->memory->region(local.buffer->arena);
  const std::uint8_t* valid = region.valid.data() + (local.at - region.data.get());
  bool whole = true;
  for (std::int64_t at = offset, end = offset + bytes; at < end;) {
    const bool written = valid[at] != 0;
    const void* change = std::memchr(valid + at, written ? 0 : 1, end - at);
    const std::int64_t stop = change ? static_cast<const std::uint8_t*>(change) - valid : end;
    if (written) visit(at, stop - at);
    whole = whole && written;
    at = stop;
  }
  return whole;
}

inline bool read_written(Instruction& instruction, const Local& local, std::int64_t offset, std::int64_t bytes) {
  return each_written(instruction, local, offset, bytes,
                      [&](std::int64_t at, std::int64_t n) { instruction.read(local, at, static_cast<std::size_t>(n)); });
}

inline void set_unwritten(const Local& local, std::int64_t offset, std::int64_t bytes) {
  Region& region = self->memory->region(local.buffer->arena);
  std::memset(region.valid.data() + (local.at - region.data.get()) + offset, 0, bytes);
}

inline bool is_written(const Local& local, std::int64_t offset, std::int64_t bytes) {
  const Region& region = self->memory->region(local.buffer->arena);
  return !std::memchr(region.valid.data() + (local.at - region.data.get()) + offset, 0, bytes);
}

template <typename T>
struct Bits {  // what the product reads
  using Type = T;
};
template <>
struct Bits<bfloat16_t> {
  using Type = std::uint16_t;
};

// Which sums are there for an operand type: BF16 and float32 into float32, INT8 into int32. (The unit also takes half and
// INT4.)
template <typename Sum, typename A, typename B>
constexpr bool kMultiplies = false;
template <>
inline constexpr bool kMultiplies<float, bfloat16_t, bfloat16_t> = true;
template <>
inline constexpr bool kMultiplies<float, float, float> = true;
template <>
inline constexpr bool kMultiplies<std::int32_t, std::int8_t, std::int8_t> = true;

}  // namespace twin::cube

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Nd2NzParams& params, TWIN_WHERE) {
  constexpr std::int64_t kLanes = twin::cube::kRow / sizeof(T);
  const std::int64_t row_bytes = std::int64_t{params.dValue} * sizeof(T),
                     blocks = twin::cube::ceil_div(row_bytes, twin::cube::kRow);
  const auto to = [&](int matrix, int row) {
    return (std::int64_t{matrix} * params.dstNzMatrixStride + std::int64_t{row} * params.dstNzNStride * kLanes) * sizeof(T);
  };
  const auto from = [&](int matrix, int row) {
    return std::int64_t{matrix} * params.srcNdMatrixStride + std::int64_t{row} * params.srcDValue;
  };
  if (twin::checking()) {
    twin::Instruction instruction("DataCopy (ND to NZ)", PIPE_MTE2, where);
    instruction.operand(dst.local(), twin::Arena::l1);
    instruction.require(params.ndNum <= 4095, "ndNum above 4095");
    instruction.require(params.nValue <= 16384 && params.dstNzC0Stride <= 16384 && params.dstNzNStride <= 16384,
                        "nValue, dstNzC0Stride or dstNzNStride above 16384");
    instruction.require(params.srcDValue > 0 && params.dstNzC0Stride > 0 && params.dstNzNStride > 0, "a stride of 0");
    instruction.require(params.dstNzMatrixStride * sizeof(T) % twin::cube::kRow == 0 || params.ndNum <= 1,
                        "dstNzMatrixStride is not a multiple of 32 bytes");
    for (int matrix = 0; matrix < params.ndNum; ++matrix)
      for (int row = 0; row < params.nValue; ++row) {
        src.check(instruction, from(matrix, row), row_bytes);
        instruction.read_gm(src.data() + from(matrix, row), row_bytes);
      }
    for (int matrix = 0; matrix < params.ndNum; ++matrix)
      for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t at = to(matrix, 0) + block * params.dstNzC0Stride * twin::cube::kRow;
        if (params.dstNzNStride == 1)
          instruction.write(dst.local(), at, std::size_t{params.nValue} * twin::cube::kRow);
        else
          for (int row = 0; row < params.nValue; ++row) instruction.write(dst.local(), at + to(0, row), twin::cube::kRow);
      }
  }
  for (int matrix = 0; matrix < params.ndNum; ++matrix)
    for (int row = 0; row < params.nValue; ++row)
      twin::cube::row_to_nz(reinterpret_cast<std::uint8_t*>(dst.data()) + to(matrix, row),
                            reinterpret_cast<const std::uint8_t*>(src.data() + from(matrix, row)), row_bytes,
                            params.dstNzC0Stride);
}

template <typename T>
void LoadData(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LoadData2DParams& params, TWIN_WHERE) {
  constexpr std::int64_t kFractal = twin::cube::kFractal;
  const auto from = [&](int i) { return (std::int64_t{params.startIndex} + std::int64_t{i} * params.srcStride) * kFractal; };
  const auto to = [&](int i) { return std::int64_t{i} * (1 + params.dstGap) * kFractal; };
  if (twin::checking()) {
    twin::Instruction instruction("LoadData", PIPE_MTE1, where);
    instruction.operand(src.local(), twin::Arena::l1);
    if (dst.GetPosition() != TPosition::A2 && dst.GetPosition() != TPosition::B2)
      instruction.fail("the destination is neither in L0A (A2) nor in L0B (B2)");
    instruction.operand(dst.local(), twin::arena_of(dst.GetPosition()), kFractal);
    instruction.require(params.repeatTimes > 0, "repeatTimes is 0");
    instruction.require(params.sid == 0 && params.addrMode == 0, "sid or addrMode other than 0");
    instruction.require(!params.ifTranspose || sizeof(T) == 2, "ifTranspose takes elements of 2 bytes");
    for (int i = 0; i < params.repeatTimes; ++i) twin::cube::read_written(instruction, src.local(), from(i), kFractal);
    for (int i = 0; i < params.repeatTimes; ++i) {
      const bool whole = twin::cube::is_written(src.local(), from(i), kFractal);
      instruction.write(dst.local(), to(i), kFractal);
      if (whole) continue;
      instruction.require(!params.ifTranspose, "a fractal to turn of which a part was never written");
      for (std::int64_t row = 0; row < kFractal; row += twin::cube::kRow)
        if (!twin::cube::is_written(src.local(), from(i) + row, twin::cube::kRow))
          twin::cube::set_unwritten(dst.local(), to(i) + row, twin::cube::kRow);
    }
  }
  auto* out = reinterpret_cast<std::uint8_t*>(dst.data());
  const auto* in = reinterpret_cast<const std::uint8_t*>(src.data());
  for (int i = 0; i < params.repeatTimes; ++i) {
    if (params.ifTranspose)
      twin::cube::transpose_fractal(out + to(i), in + from(i));
    else
      std::memcpy(out + to(i), in + from(i), kFractal);
  }
}

}  // namespace AscendC

namespace twin::cube {

// The reads and writes of one Mmad. A sum is there when its row of a, its column of b and what it is added to were.
inline void check_mmad(Instruction& instruction, const Local& sums, const Local& a, const Local& b, std::int64_t m,
                       std::int64_t n, std::int64_t k_blocks, bool accumulate) {
  constexpr std::int64_t kSumBytes = 4, kRowBytes = kSide * kSumBytes;
  const std::int64_t m_blocks = ceil_div(m, kSide), n_blocks = ceil_div(n, kSide), column_bytes = m_blocks * kSide * kRowBytes;
  const auto a_row = [&](std::int64_t row, std::int64_t block) {
    return m == 1 ? block * kRow : (row / kSide * k_blocks + block) * kFractal + row % kSide * kRow;
  };
  const auto b_row = [&](std::int64_t column, std::int64_t block) {
    return (block * n_blocks + column / kSide) * kFractal + column % kSide * kRow;
  };
  const auto sum_at = [&](std::int64_t row, std::int64_t column) {
    return column / kSide * column_bytes + row * kRowBytes + column % kSide * kSumBytes;
  };
  bool whole = read_written(instruction, a, 0, m == 1 ? k_blocks * kRow : m_blocks * k_blocks * kFractal);
  whole &= read_written(instruction, b, 0, n_blocks * k_blocks * kFractal);
  if (accumulate)
    for (std::int64_t block = 0; block < n_blocks; ++block)
      whole &= read_written(instruction, sums, block * column_bytes, m * kRowBytes);
  std::vector<std::int64_t> missing;
  if (!whole) {
    std::vector<bool> row_there(m, true), column_there(n_blocks * kSide, true);
    for (std::int64_t row = 0; row < m; ++row)
      for (std::int64_t block = 0; block < k_blocks && row_there[row]; ++block)
        row_there[row] = is_written(a, a_row(row, block), kRow);
    for (std::int64_t column = 0; column < n_blocks * kSide; ++column)
      for (std::int64_t block = 0; block < k_blocks && column_there[column]; ++block)
        column_there[column] = is_written(b, b_row(column, block), kRow);
    for (std::int64_t row = 0; row < m; ++row)
      for (std::int64_t column = 0; column < n_blocks * kSide; ++column)
        if (!row_there[row] || !column_there[column] || (accumulate && !is_written(sums, sum_at(row, column), kSumBytes)))
          missing.push_back(sum_at(row, column));
  }
  for (std::int64_t block = 0; block < n_blocks; ++block) instruction.write(sums, block * column_bytes, m * kRowBytes);
  for (const std::int64_t at : missing) set_unwritten(sums, at, kSumBytes);
}

}  // namespace twin::cube

namespace AscendC {

template <typename Sum, typename A, typename B>
void Mmad(const LocalTensor<Sum>& dst, const LocalTensor<A>& a, const LocalTensor<B>& b, const MmadParams& params, TWIN_WHERE) {
  static_assert(twin::cube::kMultiplies<Sum, A, B>, "Mmad of the A2: bf16 or float into float, int8 into int32");
  constexpr std::int64_t kLanes = twin::cube::kRow / sizeof(A);
  if (twin::checking()) {
    twin::Instruction instruction("Mmad", PIPE_M, where);
    instruction.operand(dst.local(), twin::Arena::l0c, 1024);
    instruction.operand(a.local(), twin::Arena::l0a, twin::cube::kFractal);
    instruction.operand(b.local(), twin::Arena::l0b, twin::cube::kFractal);
    instruction.require(params.m > 0 && params.n > 0 && params.k > 0, "m, n or k is 0");
    instruction.require(params.m <= 4095 && params.n <= 4095 && params.k <= 4095, "m, n or k above 4095");
    instruction.require(!params.isBias && !params.cmatrixSource && params.unitFlag == 0 && !params.kDirectionAlign,
                        "a bias, unitFlag or kDirectionAlign: not part of the twin");
    twin::cube::check_mmad(instruction, dst.local(), a.local(), b.local(), params.m, params.n,
                           twin::cube::ceil_div(params.k, kLanes), !params.cmatrixInitVal);
  }
  using TA = typename twin::cube::Bits<A>::Type;
  twin::cube::multiply(dst.data(), reinterpret_cast<const TA*>(a.data()), reinterpret_cast<const TA*>(b.data()), params.m,
                       params.n, params.k, !params.cmatrixInitVal);
}

}  // namespace AscendC
