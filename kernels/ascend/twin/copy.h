// Copies: contiguous and strided DataCopy, DataCopyPad, Copy within UB, and the atomic modes of copies to GM.
#pragma once

#include "ascend/twin/sync.h"

namespace AscendC {

struct DataCopyParams {  // lengths and gaps in blocks of 32 bytes
  std::uint16_t blockCount = 1, blockLen = 0, srcStride = 0, dstStride = 0;
  DataCopyParams() = default;
  DataCopyParams(std::uint16_t count, std::uint16_t len, std::uint16_t src_gap, std::uint16_t dst_gap)
      : blockCount(count), blockLen(len), srcStride(src_gap), dstStride(dst_gap) {}
};

struct DataCopyExtParams {  // lengths in bytes; gaps in bytes on the GM side, in blocks of 32 on the local side
  std::uint16_t blockCount = 1;
  std::uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;
  DataCopyExtParams() = default;
  DataCopyExtParams(std::uint16_t count, std::uint32_t len, std::uint32_t src_gap, std::uint32_t dst_gap,
                    std::uint32_t reserved)
      : blockCount(count), blockLen(len), srcStride(src_gap), dstStride(dst_gap), rsv(reserved) {}
};

template <typename T>
struct DataCopyPadExtParams {  // paddings in elements; without isPad or side paddings the filler is the block's first element
  bool isPad = false;
  std::uint8_t leftPadding = 0, rightPadding = 0;
  T paddingValue{};
  DataCopyPadExtParams() = default;
  DataCopyPadExtParams(bool pad, std::uint8_t left, std::uint8_t right, T value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
};

}  // namespace AscendC

namespace twin {

enum AtomicType : int { atomic_none, atomic_f32, atomic_f16, atomic_bf16, atomic_s32, atomic_s16, atomic_s8 };

template <typename T>
constexpr int atomic_type_of() {
  if (std::is_same_v<T, float>) return atomic_f32;
  if (std::is_same_v<T, half>) return atomic_f16;
  if (std::is_same_v<T, bfloat16_t>) return atomic_bf16;
  if (std::is_same_v<T, std::int32_t>) return atomic_s32;
  if (std::is_same_v<T, std::int16_t>) return atomic_s16;
  if (std::is_same_v<T, std::int8_t>) return atomic_s8;
  return atomic_none;
}

// n elements to GM, added to what is there while an atomic mode is on.
template <typename T>
void store_gm(T* to, const T* from, std::size_t n) {
  if (self->atomic_type == atomic_none) {
    std::memcpy(to, from, n * sizeof(T));
  } else {
    for (std::size_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t>)
        to[i] = T(static_cast<float>(to[i]) + static_cast<float>(from[i]));
      else
        to[i] = static_cast<T>(to[i] + from[i]);
    }
  }
}

template <typename T>
void check_atomic(const Instruction& instruction) {
  if (self->atomic_type != atomic_none && self->atomic_type != atomic_type_of<T>())
    instruction.fail("an atomic copy of another type than SetAtomicAdd was given");
}

inline void require_multiple(const Instruction& instruction, std::uint64_t bytes) {
  if (bytes == 0 || bytes % kBlock != 0)
    instruction.fail(std::to_string(bytes) + " bytes, which is not a multiple of 32: DataCopyPad copies such");
}

}  // namespace twin

namespace AscendC {

template <typename T>
void SetAtomicAdd() {
  static_assert(twin::atomic_type_of<T>() != twin::atomic_none, "no atomic addition of this type");
  twin::self->atomic_type = twin::atomic_type_of<T>();
}
inline void SetAtomicNone() { twin::self->atomic_type = twin::atomic_none; }

// ---- GM to local ---------------------------------------------------------------------------------------------------

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& p, TWIN_WHERE) {
  const std::size_t len = std::size_t{p.blockLen} * twin::kBlock, src_step = len + std::size_t{p.srcStride} * twin::kBlock,
                    dst_step = len + std::size_t{p.dstStride} * twin::kBlock;
  const auto* from = reinterpret_cast<const std::byte*>(src.data());
  auto* to = dst.local().at;
  if (twin::checking()) {
    twin::Instruction i("DataCopy", PIPE_MTE2, where);
    const twin::Arena arena = twin::arena_of(dst.GetPosition());
    i.require(arena == twin::Arena::ub || arena == twin::Arena::l1, "a copy from GM goes to UB or L1");
    i.operand(dst.local(), arena);
    i.require(p.blockCount >= 1 && p.blockCount <= 4095, "blockCount is 1 to 4095");
    i.require(p.blockLen >= 1, "an empty copy");
    for (int b = 0; b < p.blockCount; ++b) {
      src.check(i, b * src_step / sizeof(T), len);
      i.read_gm(from + b * src_step, len);
    }
    for (int b = 0; b < p.blockCount; ++b) i.write(dst.local(), b * dst_step, len);
  }
  for (int b = 0; b < p.blockCount; ++b) std::memcpy(to + b * dst_step, from + b * src_step, len);
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, std::uint32_t n, TWIN_WHERE) {
  const std::size_t bytes = std::size_t{n} * sizeof(T);
  if (twin::checking()) {
    twin::Instruction i("DataCopy", PIPE_MTE2, where);
    const twin::Arena arena = twin::arena_of(dst.GetPosition());
    i.require(arena == twin::Arena::ub || arena == twin::Arena::l1, "a copy from GM goes to UB or L1");
    i.operand(dst.local(), arena);
    twin::require_multiple(i, bytes);
    src.check(i, 0, bytes);
    i.read_gm(src.data(), bytes);
    i.write(dst.local(), 0, bytes);
  }
  std::memcpy(dst.data(), src.data(), bytes);
}

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& p,
                 const DataCopyPadExtParams<T>& pad, TWIN_WHERE) {
  const std::size_t left = pad.isPad ? pad.leftPadding : 0, right = pad.isPad ? pad.rightPadding : 0;
  const std::size_t wide = (left + right) * sizeof(T) + p.blockLen,
                    padded = (wide + twin::kBlock - 1) / twin::kBlock * twin::kBlock;
  const std::size_t src_step = std::size_t{p.blockLen} + p.srcStride,
                    dst_step = padded + std::size_t{p.dstStride} * twin::kBlock;
  const auto* from = reinterpret_cast<const std::byte*>(src.data());
  if (twin::checking()) {
    twin::Instruction i("DataCopyPad", PIPE_MTE2, where);
    i.operand(dst.local(), twin::Arena::ub);
    i.require(p.blockCount >= 1 && p.blockCount <= 4095, "blockCount is 1 to 4095");
    i.require(p.blockLen >= 1 && p.blockLen <= 2097151, "blockLen is 1 to 2097151 bytes");
    i.require(p.blockLen % sizeof(T) == 0, "blockLen is not whole elements");
    i.require(left * sizeof(T) <= 32 && right * sizeof(T) <= 32, "a padding of more than 32 bytes");
    for (int b = 0; b < p.blockCount; ++b) {
      src.check(i, b * src_step / sizeof(T), p.blockLen);
      i.read_gm(from + b * src_step, p.blockLen);
    }
    for (int b = 0; b < p.blockCount; ++b) i.write(dst.local(), b * dst_step, padded);
  }
  for (int b = 0; b < p.blockCount; ++b) {
    auto* to = reinterpret_cast<T*>(dst.local().at + b * dst_step);
    const std::size_t n = p.blockLen / sizeof(T), all = padded / sizeof(T);
    T first;
    std::memcpy(&first, from + b * src_step, sizeof(T));
    const T filler = pad.isPad ? pad.paddingValue : first;
    for (std::size_t j = 0; j < left; ++j) to[j] = filler;
    std::memcpy(to + left, from + b * src_step, p.blockLen);
    for (std::size_t j = left + n; j < all; ++j) to[j] = filler;
  }
}

// ---- local to GM ---------------------------------------------------------------------------------------------------

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p, TWIN_WHERE) {
  const std::size_t len = std::size_t{p.blockLen} * twin::kBlock, src_step = len + std::size_t{p.srcStride} * twin::kBlock,
                    dst_step = len + std::size_t{p.dstStride} * twin::kBlock;
  auto* to = reinterpret_cast<std::byte*>(dst.data());
  if (twin::checking()) {
    twin::Instruction i("DataCopy", PIPE_MTE3, where);
    twin::check_atomic<T>(i);
    i.operand(src.local(), twin::Arena::ub);
    i.require(p.blockCount >= 1 && p.blockCount <= 4095, "blockCount is 1 to 4095");
    i.require(p.blockLen >= 1, "an empty copy");
    for (int b = 0; b < p.blockCount; ++b) i.read(src.local(), b * src_step, len);
    for (int b = 0; b < p.blockCount; ++b) {
      dst.check(i, b * dst_step / sizeof(T), len);
      i.write_gm(to + b * dst_step, len);
    }
  }
  for (int b = 0; b < p.blockCount; ++b)
    twin::store_gm(reinterpret_cast<T*>(to + b * dst_step), reinterpret_cast<const T*>(src.local().at + b * src_step),
                   len / sizeof(T));
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, std::uint32_t n, TWIN_WHERE) {
  const std::size_t bytes = std::size_t{n} * sizeof(T);
  if (twin::checking()) {
    twin::Instruction i("DataCopy", PIPE_MTE3, where);
    twin::check_atomic<T>(i);
    i.operand(src.local(), twin::Arena::ub);
    twin::require_multiple(i, bytes);
    i.read(src.local(), 0, bytes);
    dst.check(i, 0, bytes);
    i.write_gm(dst.data(), bytes);
  }
  twin::store_gm(dst.data(), src.data(), n);
}

// Writes exactly blockLen bytes of each block.
template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& p, TWIN_WHERE) {
  const std::size_t padded = (std::size_t{p.blockLen} + twin::kBlock - 1) / twin::kBlock * twin::kBlock;
  const std::size_t src_step = padded + std::size_t{p.srcStride} * twin::kBlock,
                    dst_step = std::size_t{p.blockLen} + p.dstStride;
  auto* to = reinterpret_cast<std::byte*>(dst.data());
  if (twin::checking()) {
    twin::Instruction i("DataCopyPad", PIPE_MTE3, where);
    twin::check_atomic<T>(i);
    i.operand(src.local(), twin::Arena::ub);
    i.require(p.blockCount >= 1 && p.blockCount <= 4095, "blockCount is 1 to 4095");
    i.require(p.blockLen >= 1 && p.blockLen <= 2097151, "blockLen is 1 to 2097151 bytes");
    i.require(p.blockLen % sizeof(T) == 0, "blockLen is not whole elements");
    for (int b = 0; b < p.blockCount; ++b) i.read(src.local(), b * src_step, p.blockLen);
    for (int b = 0; b < p.blockCount; ++b) {
      dst.check(i, b * dst_step / sizeof(T), p.blockLen);
      i.write_gm(to + b * dst_step, p.blockLen);
    }
  }
  for (int b = 0; b < p.blockCount; ++b)
    twin::store_gm(reinterpret_cast<T*>(to + b * dst_step), reinterpret_cast<const T*>(src.local().at + b * src_step),
                   p.blockLen / sizeof(T));
}

// ---- within UB -----------------------------------------------------------------------------------------------------

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, std::uint32_t n, TWIN_WHERE) {
  const std::size_t bytes = std::size_t{n} * sizeof(T);
  if (twin::checking()) {
    twin::Instruction i("DataCopy", PIPE_V, where);
    i.operand(dst.local(), twin::Arena::ub);
    i.operand(src.local(), twin::Arena::ub);
    twin::require_multiple(i, bytes);
    i.no_partial_overlap(dst.local(), bytes, src.local(), bytes);
    i.read(src.local(), 0, bytes);
    i.write(dst.local(), 0, bytes);
  }
  std::memmove(dst.data(), src.data(), bytes);
}

}  // namespace AscendC
