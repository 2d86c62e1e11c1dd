// Reductions (pipe V): of a whole tensor, of each repeat, of each block. Sums are binary trees inside a repeat, as the unit's
// are.
#pragma once

#include "ascend/twin/vector.h"

namespace twin {

// Sum of n lanes by halves: the tree of one repeat.
template <typename T>
float tree_sum(const T* src, int n) {
  float lanes[128];
  for (int i = 0; i < n; ++i) lanes[i] = static_cast<float>(src[i]);
  for (int width = n; width > 1; width = (width + 1) / 2)
    for (int i = 0; i < width / 2; ++i) lanes[i] += lanes[width - 1 - i];
  return lanes[0];
}

enum class Pick { max, min };

template <typename T>
bool better(Pick pick, T a, T b) {
  const float x = static_cast<float>(a), y = static_cast<float>(b);
  return pick == Pick::max ? x > y : x < y;
}

// What an index looks like in a lane of the result: its bits.
template <typename T>
T index_lane(std::uint32_t index) {
  if constexpr (sizeof(T) == 2)
    return T::from_bits(static_cast<std::uint16_t>(index));
  else
    return float_of(index);
}

// Elements of scratch that ReduceMax and ReduceMin of n elements need.
template <typename T>
std::int64_t pick_work(std::int64_t n, bool with_index) {
  constexpr std::int64_t kRepeat = 256 / sizeof(T), kPerBlock = kBlock / sizeof(T);
  const auto blocks = [](std::int64_t count) { return (count + kPerBlock - 1) / kPerBlock * kPerBlock; };
  std::int64_t results = (n + kRepeat - 1) / kRepeat * 2, total = blocks(results);
  while (with_index && results > 2) {
    results = (results + kRepeat - 1) / kRepeat * 2;
    total += blocks(results);
  }
  return total;
}

template <typename T>
void reduce_pick(const char* name, Pick pick, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                 const AscendC::LocalTensor<T>& work, std::int32_t n, bool with_index, Where where) {
  if (checking()) {
    Instruction i(name, PIPE_V, where);
    read_count<T>(i, src.local(), n);
    write_count<T>(i, work.local(), pick_work<T>(n, with_index));
    write_count<T>(i, dst.local(), with_index ? 2 : 1);
  }
  std::int32_t best = 0;
  for (std::int32_t i = 1; i < n; ++i)
    if (better(pick, src.data()[i], src.data()[best])) best = i;
  dst.data()[0] = src.data()[best];
  if (with_index) dst.data()[1] = index_lane<T>(static_cast<std::uint32_t>(best));
}

// The lanes of one repeat that the mask leaves, in order, to visit(lane, value).
template <typename T, typename Visit>
void each_lane(const Local& src, Walk walk, Mask mask, int repeat, Visit visit) {
  for (int l = 0; l < static_cast<int>(256 / sizeof(T)); ++l)
    if (mask[l]) visit(l, *reinterpret_cast<const T*>(src.at + lane_offset<T>(walk, repeat, l)));
}

template <typename T>
void whole_pick(const char* name, Pick pick, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                std::int32_t mask, std::int32_t repeats, std::int32_t dst_step, std::int32_t src_block, std::int32_t src_repeat,
                AscendC::ReduceOrder order, Where where) {
  using Order = AscendC::ReduceOrder;
  const Walk s{static_cast<std::uint32_t>(src_block), static_cast<std::uint32_t>(src_repeat)};
  const Mask lanes = Mask::first(mask);
  const bool pair = order == Order::ORDER_VALUE_INDEX || order == Order::ORDER_INDEX_VALUE;
  const std::size_t step = static_cast<std::size_t>(dst_step) * (pair ? 2 : 1);
  if (checking()) {
    Instruction i(name, PIPE_V, where);
    require_mask<T>(i, lanes);
    i.require(repeats >= 1 && repeats <= 255, "repeats are 1 to 255");
    read_lanes<T>(i, src.local(), s, lanes, repeats);
    i.operand(dst.local(), Arena::ub, sizeof(T));
    for (int r = 0; r < repeats; ++r) i.write(dst.local(), r * step * sizeof(T), (pair ? 2 : 1) * sizeof(T));
  }
  for (int r = 0; r < repeats; ++r) {
    int best = -1;
    T value{};
    each_lane<T>(src.local(), s, lanes, r, [&](int lane, T x) {
      if (best < 0 || better(pick, x, value)) best = lane, value = x;
    });
    T* to = dst.data() + r * step;
    const T index = index_lane<T>(static_cast<std::uint32_t>(best));
    to[0] = order == Order::ORDER_INDEX_VALUE || order == Order::ORDER_ONLY_INDEX ? index : value;
    if (pair) to[1] = order == Order::ORDER_INDEX_VALUE ? value : index;
  }
}

// BlockReduce: 8 results a repeat, one per block of 32 bytes.
template <typename T, typename Reduce>
void block_reduce(const char* name, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                  std::int32_t repeats, std::int32_t mask, std::int32_t dst_repeat, std::int32_t src_block,
                  std::int32_t src_repeat, Reduce reduce, Where where) {
  constexpr int kPerBlock = kBlock / sizeof(T);
  const Walk s{static_cast<std::uint32_t>(src_block), static_cast<std::uint32_t>(src_repeat)};
  const Mask lanes = Mask::first(mask);
  const int blocks = (mask + kPerBlock - 1) / kPerBlock;
  if (checking()) {
    Instruction i(name, PIPE_V, where);
    require_mask<T>(i, lanes);
    i.require(repeats >= 1 && repeats <= 255, "repeats are 1 to 255");
    read_lanes<T>(i, src.local(), s, lanes, repeats);
    i.operand(dst.local(), Arena::ub, 8 * sizeof(T));
    for (int r = 0; r < repeats; ++r) i.write(dst.local(), std::int64_t{r} * dst_repeat * 8 * sizeof(T), blocks * sizeof(T));
  }
  for (int r = 0; r < repeats; ++r) {
    T values[8];
    for (int b = 0; b < blocks; ++b) {
      const auto* from = reinterpret_cast<const T*>(src.local().at + lane_offset<T>(s, r, b * kPerBlock));
      values[b] = reduce(from, std::min(kPerBlock, mask - b * kPerBlock));
    }
    std::copy_n(values, blocks, dst.data() + r * dst_repeat * 8);
  }
}

template <typename T>
T pick_of(Pick pick, const T* src, int n) {
  T best = src[0];
  for (int i = 1; i < n; ++i)
    if (better(pick, src[i], best)) best = src[i];
  return best;
}

}  // namespace twin

namespace AscendC {

// dst[0] = sum of n. `work` may be used up: one element per repeat, in whole blocks.
template <typename T>
twin::Only<T, half, float> ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& work,
                                     const std::int32_t n, TWIN_WHERE) {
  constexpr int kRepeat = 256 / sizeof(T), kPerBlock = twin::kBlock / sizeof(T);
  const int repeats = (n + kRepeat - 1) / kRepeat;
  if (twin::checking()) {
    twin::Instruction i("ReduceSum", PIPE_V, where);
    twin::read_count<T>(i, src.local(), n);
    twin::write_count<T>(i, work.local(), (repeats + kPerBlock - 1) / kPerBlock * kPerBlock);
    twin::write_count<T>(i, dst.local(), 1);
  }
  float total = 0.0f;
  for (int r = 0; r < repeats; ++r) total += twin::tree_sum(src.data() + r * kRepeat, std::min(kRepeat, n - r * kRepeat));
  dst.data()[0] = T(total);
}

template <typename T>
twin::Only<T, half, float> ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& work,
                                     const std::int32_t n, bool with_index = false, TWIN_WHERE) {
  twin::reduce_pick("ReduceMax", twin::Pick::max, dst, src, work, n, with_index, where);
}

template <typename T>
twin::Only<T, half, float> ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& work,
                                     const std::int32_t n, bool with_index = false, TWIN_WHERE) {
  twin::reduce_pick("ReduceMin", twin::Pick::min, dst, src, work, n, with_index, where);
}

template <typename T>
twin::Only<T, half, float> WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t mask,
                                          const std::int32_t repeats, const std::int32_t dstRepStride,
                                          const std::int32_t srcBlkStride, const std::int32_t srcRepStride, TWIN_WHERE) {
  const twin::Walk s{static_cast<std::uint32_t>(srcBlkStride), static_cast<std::uint32_t>(srcRepStride)};
  const twin::Mask lanes = twin::Mask::first(mask);
  if (twin::checking()) {
    twin::Instruction i("WholeReduceSum", PIPE_V, where);
    twin::require_mask<T>(i, lanes);
    i.require(repeats >= 1 && repeats <= 255, "repeats are 1 to 255");
    twin::read_lanes<T>(i, src.local(), s, lanes, repeats);
    i.operand(dst.local(), twin::Arena::ub, sizeof(T));
    for (int r = 0; r < repeats; ++r) i.write(dst.local(), std::int64_t{r} * dstRepStride * sizeof(T), sizeof(T));
  }
  for (int r = 0; r < repeats; ++r) {
    T values[128];
    int n = 0;
    twin::each_lane<T>(src.local(), s, lanes, r, [&](int, T x) { values[n++] = x; });
    dst.data()[r * dstRepStride] = T(twin::tree_sum(values, n));
  }
}

template <typename T>
twin::Only<T, half, float> WholeReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t mask,
                                          const std::int32_t repeats, const std::int32_t dstRepStride,
                                          const std::int32_t srcBlkStride, const std::int32_t srcRepStride,
                                          ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, TWIN_WHERE) {
  twin::whole_pick("WholeReduceMax", twin::Pick::max, dst, src, mask, repeats, dstRepStride, srcBlkStride, srcRepStride, order,
                   where);
}

template <typename T>
twin::Only<T, half, float> WholeReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t mask,
                                          const std::int32_t repeats, const std::int32_t dstRepStride,
                                          const std::int32_t srcBlkStride, const std::int32_t srcRepStride,
                                          ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, TWIN_WHERE) {
  twin::whole_pick("WholeReduceMin", twin::Pick::min, dst, src, mask, repeats, dstRepStride, srcBlkStride, srcRepStride, order,
                   where);
}

template <typename T>
twin::Only<T, half, float> BlockReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t repeats,
                                          const std::int32_t mask, const std::int32_t dstRepStride,
                                          const std::int32_t srcBlkStride, const std::int32_t srcRepStride, TWIN_WHERE) {
  twin::block_reduce(
      "BlockReduceSum", dst, src, repeats, mask, dstRepStride, srcBlkStride, srcRepStride,
      [](const T* from, int n) { return T(twin::tree_sum(from, n)); }, where);
}

template <typename T>
twin::Only<T, half, float> BlockReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t repeats,
                                          const std::int32_t mask, const std::int32_t dstRepStride,
                                          const std::int32_t srcBlkStride, const std::int32_t srcRepStride, TWIN_WHERE) {
  twin::block_reduce(
      "BlockReduceMax", dst, src, repeats, mask, dstRepStride, srcBlkStride, srcRepStride,
      [](const T* from, int n) { return twin::pick_of(twin::Pick::max, from, n); }, where);
}

template <typename T>
twin::Only<T, half, float> BlockReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t repeats,
                                          const std::int32_t mask, const std::int32_t dstRepStride,
                                          const std::int32_t srcBlkStride, const std::int32_t srcRepStride, TWIN_WHERE) {
  twin::block_reduce(
      "BlockReduceMin", dst, src, repeats, mask, dstRepStride, srcBlkStride, srcRepStride,
      [](const T* from, int n) { return twin::pick_of(twin::Pick::min, from, n); }, where);
}

}  // namespace AscendC
