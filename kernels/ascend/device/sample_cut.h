// Where the sampler's sums reach a target: between logits by bisection, then among few candidates, sorted.
#pragma once

#include "ascend/device/sample_weights.h"

namespace sigmoe_sample_kernel {

class SampleCut : public SampleWeights {
 public:
  using SampleWeights::SampleWeights;

 protected:
  // Among the logits at or above `least`, of which there are `count`: the token, the most likely first and lower ids first
  // among equals, at which the number of tokens or their weight reaches `target`. The target is reached.
  __aicore__ inline Cut cut(float least, int64_t count, uint64_t target, bool weighted) {
    uint32_t low = key_of(least), high = key_of(highest_) + 1;  // from low up the target is reached, from high up it is not
    uint64_t above = 0;
    int64_t count_above = 0;
    float depth = 6.0f;
    while (count - count_above > kSampleFew && high - low > 1) {
      uint32_t middle = key_of(highest_ - depth * temperature_);
      depth *= 2.0f;
      if (middle <= low || middle >= high) middle = low + (high - low) / 2;
      const Mass mass = mass_from(value_of(middle), weighted);
      const uint64_t reached = weighted ? mass.weight : static_cast<uint64_t>(mass.count);
      if (reached >= target) {
        low = middle;
        count = mass.count;
      } else {
        high = middle;
        above = reached;
        count_above = mass.count;
      }
    }
    if (count - count_above > kSampleFew) {  // equal logits: all weigh the same, and they come by id
      const float value = value_of(low);
      const uint64_t each = weighted ? weight_of(value) : 1, before = (target - above - 1) / each;
      return {value, nth_equal(value, static_cast<int64_t>(before)), above + before * each};
    }
    const int32_t n = collect(value_of(low), value_of(high));
    const LocalTensor<float> records = sorted(n);
    if (weighted) {
      LocalTensor<float> w = work(0);
      uint64_t kept = 0;
      const GatherMaskParams params{1, 1, 8, 0};
      GatherMask(w, records, 1, true, static_cast<uint32_t>(2 * up_to(n, 32)), params, kept);
      PipeBarrier<PIPE_V>();
      weigh_few(w, up_to(n, 32));
    }
    wait_for<HardEvent::V_S>();
    Cut found{0.0f, 0, 0};
    for (int32_t i = 0; i < n; ++i) {
      const uint64_t own = weighted ? weight_at(i) : 1;
      found = {records.GetValue(2 * i), static_cast<int32_t>(records.ReinterpretCast<uint32_t>().GetValue(2 * i + 1)), above};
      above += own;
      if (above >= target) break;
    }
    wait_for<HardEvent::S_V>();
    return found;
  }

 private:
  // The id of the nth logit, from 0, that equals `value`.
  __aicore__ inline int32_t nth_equal(float value, int64_t nth) {
    LocalTensor<uint8_t> bits = bits_buffer_.Get<uint8_t>();
    LocalTensor<int32_t> ids = work(0).ReinterpretCast<int32_t>(), equal = work(1).ReinterpretCast<int32_t>();
    const GatherMaskParams params{1, 1, 8, 0};
    for (int32_t first = 0; first < t_.pitch; first += kSampleChunk) {
      const int32_t n = smaller(kSampleChunk, t_.pitch - first);
      LocalTensor<float> x = read(first, n);
      CompareScalar(bits, x, value, CMPMODE::EQ, n);
      CreateVecIndex(ids, first, n);
      PipeBarrier<PIPE_V>();
      x_in_.FreeTensor(x);
      uint64_t found = 0;
      GatherMask(equal, ids, bits.ReinterpretCast<uint32_t>(), true, static_cast<uint32_t>(n), params, found);
      wait_for<HardEvent::V_S>();
      if (nth < static_cast<int64_t>(found)) return equal.GetValue(static_cast<uint32_t>(nth));
      nth -= static_cast<int64_t>(found);
      PipeBarrier<PIPE_V>();
    }
    return 0;
  }

  // Logits in [low, high) and their ids, by id; at most kSampleFew, and filled up to whole lists. Returns how many.
  __aicore__ inline int32_t collect(float low, float high) {
    LocalTensor<float> few = few_buffer_.Get<float>(), values = work(0);
    LocalTensor<int32_t> few_ids = few[kSampleFew].ReinterpretCast<int32_t>(), index = work(1).ReinterpretCast<int32_t>(),
                         ids = work(2).ReinterpretCast<int32_t>();
    LocalTensor<uint8_t> bits = bits_buffer_.Get<uint8_t>(), below = bits[kSampleChunk / 8];
    const GatherMaskParams params{1, 1, 8, 0};
    int32_t n_few = 0;
    for (int32_t first = 0; first < t_.pitch; first += kSampleChunk) {
      const int32_t n = smaller(kSampleChunk, t_.pitch - first);
      LocalTensor<float> x = read(first, n);
      CompareScalar(bits, x, low, CMPMODE::GE, n);
      CompareScalar(below, x, high, CMPMODE::LT, n);
      CreateVecIndex(index, first, n);
      PipeBarrier<PIPE_V>();
      And(bits.ReinterpretCast<uint16_t>(), bits.ReinterpretCast<uint16_t>(), below.ReinterpretCast<uint16_t>(), n / 16);
      PipeBarrier<PIPE_V>();
      uint64_t found = 0;
      GatherMask(values, x, bits.ReinterpretCast<uint32_t>(), true, static_cast<uint32_t>(n), params, found);
      GatherMask(ids, index, bits.ReinterpretCast<uint32_t>(), true, static_cast<uint32_t>(n), params, found);
      PipeBarrier<PIPE_V>();
      x_in_.FreeTensor(x);
      wait_for<HardEvent::V_S>();
      for (int32_t i = 0; i < static_cast<int32_t>(found) && n_few < kSampleFew; ++i, ++n_few) {
        few.SetValue(n_few, values.GetValue(i));
        few_ids.SetValue(n_few, ids.GetValue(i));
      }
      wait_for<HardEvent::S_V>();
    }
    for (int32_t i = n_few; i < up_to(n_few, 32); ++i) {
      few.SetValue(i, kNever);
      few_ids.SetValue(i, 0);
    }
    wait_for<HardEvent::S_V>();
    return n_few;
  }

  // The n collected candidates as records {logit, id}, the most likely first.
  __aicore__ inline LocalTensor<float> sorted(int32_t n) {
    LocalTensor<float> few = few_buffer_.Get<float>(), from = record_buffer_.Get<float>(), to = from[2 * kSampleFew];
    const int32_t total = up_to(n, 32);
    Sort32(from, few, few[kSampleFew].ReinterpretCast<uint32_t>(), total / 32);
    PipeBarrier<PIPE_V>();
    for (int32_t length = 32; length < total; length *= 4) {
      for (int32_t first = 0; first < total; first += 4 * length) {
        uint16_t lengths[4] = {0, 0, 0, 0};
        int32_t ways = 0;
        for (int32_t at = first; at < total && ways < 4; at += length)
          lengths[ways++] = static_cast<uint16_t>(smaller(length, total - at));
        if (ways == 1) {
          DataCopy(to[2 * first], from[2 * first], 2 * lengths[0]);
          continue;
        }
        const MrgSortSrcList<float> lists(from[2 * first], from[2 * (first + length)],
                                          from[2 * (first + (ways > 2 ? 2 : 0) * length)],
                                          from[2 * (first + (ways > 3 ? 3 : 0) * length)]);
        MrgSort(to[2 * first], lists, MrgSort4Info(lengths, false, static_cast<uint16_t>((1 << ways) - 1), 1));
      }
      PipeBarrier<PIPE_V>();
      const LocalTensor<float> done = to;
      to = from;
      from = done;
    }
    return from;
  }
};

}  // namespace sigmoe_sample_kernel
