// How vector instructions walk memory: by a count of elements, or by repeats of 256 bytes as 8 blocks of 32 bytes, with a mask
// of lanes and strides between blocks and between repeats.
#pragma once

#include <type_traits>

#include "ascend/twin/copy.h"

namespace AscendC {

struct BinaryRepeatParams {  // strides in blocks of 32 bytes
  std::uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
  BinaryRepeatParams() = default;
  BinaryRepeatParams(std::uint8_t dst_blk, std::uint8_t src0_blk, std::uint8_t src1_blk, std::uint8_t dst_rep,
                     std::uint8_t src0_rep, std::uint8_t src1_rep)
      : dstBlkStride(dst_blk),
        src0BlkStride(src0_blk),
        src1BlkStride(src1_blk),
        dstRepStride(dst_rep),
        src0RepStride(src0_rep),
        src1RepStride(src1_rep) {}
};

struct UnaryRepeatParams {
  std::uint16_t dstBlkStride = 1, srcBlkStride = 1;
  std::uint8_t dstRepStride = 8, srcRepStride = 8;
  UnaryRepeatParams() = default;
  UnaryRepeatParams(std::uint16_t dst_blk, std::uint16_t src_blk, std::uint8_t dst_rep, std::uint8_t src_rep)
      : dstBlkStride(dst_blk), srcBlkStride(src_blk), dstRepStride(dst_rep), srcRepStride(src_rep) {}
};

struct CopyRepeatParams {
  std::uint16_t dstStride = 1, srcStride = 1, dstRepeatSize = 8, srcRepeatSize = 8;
  CopyRepeatParams() = default;
  CopyRepeatParams(std::uint16_t dst_blk, std::uint16_t src_blk, std::uint16_t dst_rep, std::uint16_t src_rep)
      : dstStride(dst_blk), srcStride(src_blk), dstRepeatSize(dst_rep), srcRepeatSize(src_rep) {}
};

}  // namespace AscendC

namespace twin {

// void when T is one of Ts: what the vector unit computes with decides which calls compile.
template <typename T, typename... Ts>
using Only = std::enable_if_t<(std::is_same_v<T, Ts> || ...), void>;

struct Mask {
  std::uint64_t low = 0, high = 0;
  static Mask first(std::uint64_t n) {
    const auto ones = [](std::uint64_t bits) { return bits >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1; };
    return {ones(n), n > 64 ? ones(n - 64) : 0};
  }
  static Mask bits(const std::uint64_t* words) { return {words[0], words[1]}; }
  bool operator[](int lane) const { return (lane < 64 ? low >> lane : high >> (lane - 64)) & 1; }
};

struct Walk {  // strides of one operand
  std::uint32_t block, repeat;
};

// Byte offset of lane `lane` of repeat `repeat`.
template <typename T>
std::size_t lane_offset(Walk walk, int repeat, int lane) {
  constexpr int kPerBlock = kBlock / sizeof(T);
  return (std::size_t{walk.repeat} * repeat + std::size_t{walk.block} * (lane / kPerBlock)) * kBlock +
         lane % kPerBlock * sizeof(T);
}

// Calls visit(offset, bytes) for the pieces of an operand that a masked instruction touches; `lanes` of a repeat count.
template <typename T, typename Visit>
void each_piece(Walk walk, Mask mask, int repeats, int lanes, Visit visit) {
  constexpr int kPerBlock = kBlock / sizeof(T);
  for (int r = 0; r < repeats; ++r)
    for (int first = 0; first < lanes; first += kPerBlock)
      for (int lane = first; lane < first + kPerBlock;) {
        if (!mask[lane]) {
          ++lane;
          continue;
        }
        int end = lane + 1;
        while (end < first + kPerBlock && mask[end]) ++end;
        visit(lane_offset<T>(walk, r, lane), (end - lane) * sizeof(T));
        lane = end;
      }
}

template <typename T>
void read_lanes(Instruction& instruction, const Local& local, Walk walk, Mask mask, int repeats, int lanes = 256 / sizeof(T)) {
  instruction.operand(local, Arena::ub);
  each_piece<T>(walk, mask, repeats, lanes,
                [&](std::size_t offset, std::size_t bytes) { instruction.read(local, offset, bytes); });
}

template <typename T>
void write_lanes(Instruction& instruction, const Local& local, Walk walk, Mask mask, int repeats, int lanes = 256 / sizeof(T)) {
  instruction.operand(local, Arena::ub);
  instruction.require(walk.block != 0, "a destination block stride of 0");
  each_piece<T>(walk, mask, repeats, lanes,
                [&](std::size_t offset, std::size_t bytes) { instruction.write(local, offset, bytes); });
}

template <typename T>
void require_mask(const Instruction& instruction, Mask mask) {
  instruction.require(mask.low != 0 || mask.high != 0, "an empty mask");
  instruction.require(sizeof(T) == 2 || mask.high == 0, "a mask beyond the 64 lanes of a 32-bit type");
}

template <typename T>
void read_count(Instruction& instruction, const Local& local, std::int64_t n) {
  instruction.operand(local, Arena::ub);
  instruction.require(n > 0, "a count below 1");
  instruction.read(local, 0, n * sizeof(T));
}

template <typename T>
void write_count(Instruction& instruction, const Local& local, std::int64_t n) {
  instruction.operand(local, Arena::ub);
  instruction.require(n > 0, "a count below 1");
  instruction.write(local, 0, n * sizeof(T));
}

// Arithmetic of one lane: half is computed in float and rounded, integers wrap.
template <typename T, typename Op, typename... Args>
T lane(Op op, Args... args) {
  if constexpr (std::is_same_v<T, half>)
    return half(op(static_cast<float>(args)...));
  else
    return static_cast<T>(op(args...));
}

// dst = op(srcs...) by count: the loop that everything else waits for.
template <typename T, typename Op, typename... Srcs>
void map_count(std::int64_t n, Op op, T* dst, const Srcs*... srcs) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) dst[i] = lane<T>(op, srcs[i]...);
}

}  // namespace twin
