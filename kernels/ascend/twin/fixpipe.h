// Fixpipe: a tile of L0C out to GM, row-major or NZ, as it is or rounded from float32 to half or BF16.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ascend/twin/cube.h"

enum QuantMode_t : std::uint8_t { NoQuant, F322F16, F322BF16 };

namespace AscendC {

struct FixpipeConfig {
  bool row_major;
};
constexpr FixpipeConfig CFG_ROW_MAJOR{true};
constexpr FixpipeConfig CFG_NZ{false};

// srcStride: rows of the tile in L0C, a multiple of 16. dstStride: elements from row to row (row-major) or 32-byte blocks from
// one column of fractals to the next (NZ).
struct FixpipeParamsV220 {
  std::uint16_t nSize = 0, mSize = 0, srcStride = 0;
  std::uint32_t dstStride = 0;
  QuantMode_t quantPre = QuantMode_t::NoQuant;
  std::uint64_t deqScalar = 0;
  std::uint16_t ndNum = 1, srcNdStride = 0, dstNdStride = 0;
  bool reluEn = false;
  std::uint8_t unitFlag = 0;
  bool isChannelSplit = false;
};

}  // namespace AscendC

namespace twin::cube {

template <typename Out>
constexpr QuantMode_t kRounding = QuantMode_t::NoQuant;
template <>
inline constexpr QuantMode_t kRounding<half> = QuantMode_t::F322F16;
template <>
inline constexpr QuantMode_t kRounding<bfloat16_t> = QuantMode_t::F322BF16;

}  // namespace twin::cube

namespace AscendC {

template <typename Out, typename Sum, const FixpipeConfig& config = CFG_ROW_MAJOR>
void Fixpipe(const GlobalTensor<Out>& dst, const LocalTensor<Sum>& src, const FixpipeParamsV220& params, TWIN_WHERE) {
  static_assert(std::is_same_v<Out, Sum> || (std::is_same_v<Sum, float> && sizeof(Out) == 2),
                "float32 to itself, half or BF16; int32 to itself");
  constexpr int kSide = twin::cube::kSide;
  const int columns = (params.nSize + kSide - 1) / kSide;
  // Where row `row` of column block `column` goes; NZ writes whole blocks of 16 columns.
  const auto to = [&](int column, int row) {
    return config.row_major ? std::int64_t{row} * params.dstStride + column * kSide
                            : std::int64_t{column} * params.dstStride * (twin::cube::kRow / sizeof(Out)) + row * kSide;
  };
  const auto width = [&](int column) {
    return config.row_major && params.nSize - column * kSide < kSide ? params.nSize - column * kSide : kSide;
  };
  if (twin::checking()) {
    twin::Instruction instruction("Fixpipe", PIPE_FIX, where);
    instruction.operand(src.local(), twin::Arena::l0c, 64);
    instruction.require(params.nSize > 0 && params.mSize > 0, "nSize or mSize is 0");
    instruction.require(params.nSize <= 4095 && params.mSize <= 8192, "nSize above 4095 or mSize above 8192");
    instruction.require(config.row_major || params.nSize % kSide == 0, "NZ takes an nSize that is a multiple of 16");
    instruction.require(params.srcStride % kSide == 0 && params.srcStride >= params.mSize,
                        "srcStride is not the tile's rows rounded up to 16");
    instruction.require(params.quantPre == twin::cube::kRounding<Out>, "quantPre does not go with the type of the destination");
    instruction.require(params.ndNum == 1 && !params.reluEn && params.unitFlag == 0 && !params.isChannelSplit,
                        "several matrices, relu, unitFlag or isChannelSplit: not part of the twin");
    for (int column = 0; column < columns; ++column)
      for (int row = 0; row < params.mSize; ++row)
        instruction.read(src.local(), (std::int64_t{column} * params.srcStride + row) * kSide * sizeof(Sum),
                         width(column) * sizeof(Sum));
    for (int row = 0; row < params.mSize; ++row) {
      if (config.row_major) {
        dst.check(instruction, to(0, row), params.nSize * sizeof(Out));
        instruction.write_gm(dst.data() + to(0, row), params.nSize * sizeof(Out));
      } else {
        for (int column = 0; column < columns; ++column) {
          dst.check(instruction, to(column, row), kSide * sizeof(Out));
          instruction.write_gm(dst.data() + to(column, row), kSide * sizeof(Out));
        }
      }
    }
  }
  for (int column = 0; column < columns; ++column)
    for (int row = 0; row < params.mSize; ++row) {
      const Sum* in = src.data() + (std::int64_t{column} * params.srcStride + row) * kSide;
      Out* out = dst.data() + to(column, row);
      if constexpr (std::is_same_v<Out, Sum>)
        std::memcpy(out, in, width(column) * sizeof(Out));
      else
        for (int i = 0; i < width(column); ++i) out[i] = Out(in[i]);
    }
}

}  // namespace AscendC
