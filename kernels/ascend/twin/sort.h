// Sorting (pipe V): 32 at a time into records of 8 bytes {score, index}, and merging of sorted lists. Descending; among equal
// scores the earlier position, or the earlier list, comes first.
#pragma once

#include "ascend/twin/vector.h"

namespace AscendC {

template <typename T>
struct MrgSortSrcList {
  LocalTensor<T> src1, src2, src3, src4;
  MrgSortSrcList() = default;
  MrgSortSrcList(const LocalTensor<T>& a, const LocalTensor<T>& b, const LocalTensor<T>& c, const LocalTensor<T>& d)
      : src1(a), src2(b), src3(c), src4(d) {}
};

struct MrgSort4Info {
  std::uint16_t elementLengths[4] = {};  // records of each list
  bool ifExhaustedSuspension = false;
  std::uint16_t validBit = 0;  // 3, 7 or 15: the first 2, 3 or 4 lists
  std::uint16_t repeatTimes = 1;
  MrgSort4Info() = default;
  MrgSort4Info(const std::uint16_t lengths[4], bool suspend, std::uint16_t valid, std::uint16_t repeats)
      : ifExhaustedSuspension(suspend), validBit(valid), repeatTimes(repeats) {
    std::copy_n(lengths, 4, elementLengths);
  }
};

}  // namespace AscendC

namespace twin {

struct Record {  // the score in the first bytes, in its own type
  std::uint32_t score, index;
};

template <typename T>
float score_of(const Record& record) {
  T score;
  std::memcpy(&score, &record.score, sizeof(T));
  return static_cast<float>(score);
}

}  // namespace twin

namespace AscendC {

template <typename T>
twin::Only<T, half, float> Sort32(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<std::uint32_t>& index,
                                  const std::int32_t repeats, TWIN_WHERE) {
  const std::int64_t n = std::int64_t{32} * repeats;
  if (twin::checking()) {
    twin::Instruction i("Sort32", PIPE_V, where);
    i.require(repeats >= 1 && repeats <= 255, "repeats are 1 to 255");
    twin::read_count<T>(i, src.local(), n);
    twin::read_count<std::uint32_t>(i, index.local(), n);
    i.require(dst.local().at + n * 8 <= src.local().at || src.local().at + n * sizeof(T) <= dst.local().at,
              "dst overlaps the scores");
    i.require(dst.local().at + n * 8 <= index.local().at || index.local().at + n * 4 <= dst.local().at,
              "dst overlaps the indices");
    twin::write_count<twin::Record>(i, dst.local(), n);
  }
  auto* out = reinterpret_cast<twin::Record*>(dst.local().at);
  for (std::int64_t first = 0; first < n; first += 32) {
    for (std::int64_t j = first; j < first + 32; ++j) {
      twin::Record record{0, index.data()[j]};
      std::memcpy(&record.score, &src.data()[j], sizeof(T));
      out[j] = record;
    }
    std::stable_sort(out + first, out + first + 32,
                     [](const twin::Record& a, const twin::Record& b) { return twin::score_of<T>(a) > twin::score_of<T>(b); });
  }
}

template <typename T>
twin::Only<T, half, float> MrgSort(const LocalTensor<T>& dst, const MrgSortSrcList<T>& lists, const MrgSort4Info& info,
                                   TWIN_WHERE) {
  const LocalTensor<T>* src[4] = {&lists.src1, &lists.src2, &lists.src3, &lists.src4};
  const int n_lists = info.validBit == 3 ? 2 : info.validBit == 7 ? 3 : 4;
  std::size_t all = 0;
  for (int l = 0; l < n_lists; ++l) all += info.elementLengths[l];
  if (twin::checking()) {
    twin::Instruction i("MrgSort", PIPE_V, where);
    i.require(info.validBit == 3 || info.validBit == 7 || info.validBit == 15, "validBit is 3, 7 or 15");
    i.require(!info.ifExhaustedSuspension, "the twin has no exhausted suspension");
    i.require(info.repeatTimes >= 1 && info.repeatTimes <= 255, "repeats are 1 to 255");
    if (info.repeatTimes > 1) {
      i.require(n_lists == 4, "repeats are for four lists");
      for (int l = 1; l < 4; ++l)
        i.require(info.elementLengths[l] == info.elementLengths[0] &&
                      src[l]->local().at ==
                          src[0]->local().at + static_cast<std::size_t>(l) * info.elementLengths[0] * sizeof(twin::Record),
                  "repeats are for equal lists that follow each other");
    }
    const std::size_t bytes = all * info.repeatTimes * sizeof(twin::Record);
    for (int l = 0; l < n_lists; ++l) {
      i.require(info.elementLengths[l] >= 1 && info.elementLengths[l] <= 4095, "lists of 1 to 4095 records");
      i.operand(src[l]->local(), twin::Arena::ub);
      const std::size_t list = (info.repeatTimes > 1 ? all * info.repeatTimes : info.elementLengths[l]) * sizeof(twin::Record);
      if (info.repeatTimes == 1 || l == 0) {
        i.read(src[l]->local(), 0, list);
        i.require(dst.local().at + bytes <= src[l]->local().at || src[l]->local().at + list <= dst.local().at,
                  "dst overlaps a list");
      }
    }
    i.operand(dst.local(), twin::Arena::ub);
    i.write(dst.local(), 0, bytes);
  }
  auto* out = reinterpret_cast<twin::Record*>(dst.local().at);
  for (int r = 0; r < info.repeatTimes; ++r) {
    std::array<std::size_t, 4> at{};
    for (std::size_t n = 0; n < all; ++n) {
      int best = -1;
      float best_score = 0.0f;
      for (int l = 0; l < n_lists; ++l) {
        if (at[l] == info.elementLengths[l]) continue;
        const auto* records = reinterpret_cast<const twin::Record*>(src[l]->local().at) + r * all;
        const float score = twin::score_of<T>(records[at[l]]);
        if (best < 0 || score > best_score) best = l, best_score = score;
      }
      *out++ = (reinterpret_cast<const twin::Record*>(src[best]->local().at) + r * all)[at[best]++];
    }
  }
}

}  // namespace AscendC
