// The sampler's weights: integers of 41 bits out of a unit that has floats, and their sums.
#pragma once

#include "ascend/device/sample_logits.h"

namespace sigmoe_sample_kernel {

class SampleWeights : public SampleLogits {
 public:
  using SampleLogits::SampleLogits;

 protected:
  // Number and, if wanted, weight of the logits at or above `value`.
  __aicore__ inline Mass mass_from(float value, bool weighted) {
    Mass mass{0, 0};
    LocalTensor<uint8_t> bits = bits_buffer_.Get<uint8_t>();
    LocalTensor<float> sums = sums_buffer_.Get<float>(), scratch = scratch_buffer_.Get<float>(), w = work(0), digit = work(1);
    LocalTensor<int32_t> whole = work(2).ReinterpretCast<int32_t>();
    Duplicate(sums, 0.0f, (kDigits + 1) * kStep);
    PipeBarrier<PIPE_V>();
    for (int32_t first = 0; first < t_.pitch; first += kSampleChunk) {
      const int32_t n = smaller(kSampleChunk, t_.pitch - first);
      LocalTensor<float> x = read(first, n);
      CompareScalar(bits, x, value, CMPMODE::GE, n);
      Duplicate(digit, 1.0f, n);
      PipeBarrier<PIPE_V>();
      Select(digit, bits, digit, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
      PipeBarrier<PIPE_V>();
      ReduceSum(sums[kDigits * kStep], digit, scratch, n);
      PipeBarrier<PIPE_V>();
      if (weighted) {
        weigh(w, x, n);
        for (int32_t i = 0; i < kDigits; ++i) {
          next_digit(whole, digit, w, i, n);
          Select(digit, bits, digit, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
          PipeBarrier<PIPE_V>();
          ReduceSum(sums[i * kStep], digit, scratch, n);
          PipeBarrier<PIPE_V>();
        }
      }
      x_in_.FreeTensor(x);
      const LocalTensor<int32_t> counted = scratch.ReinterpretCast<int32_t>();
      Cast(counted, sums, RoundMode::CAST_RINT, (kDigits + 1) * kStep);
      wait_for<HardEvent::V_S>();
      mass.count += counted.GetValue(kDigits * kStep);
      mass.weight +=
          joined(counted.GetValue(0), counted.GetValue(kStep), counted.GetValue(2 * kStep), counted.GetValue(3 * kStep));
      wait_for<HardEvent::S_V>();
    }
    return mass;
  }

  // The weight of one logit.
  __aicore__ inline uint64_t weight_of(float value) {
    LocalTensor<float> w = work(0);
    Duplicate(w, value, kLanes);
    PipeBarrier<PIPE_V>();
    return weigh_few(w, kLanes);
  }

  // Weighs up to kSampleFew logits in place and leaves their digits for weight_at; returns the first one's weight.
  __aicore__ inline uint64_t weigh_few(const LocalTensor<float>& w, int32_t n) {
    weigh(w, w, n);
    for (int32_t i = 0; i < kDigits; ++i) next_digit(work(1)[i * kSampleFew].ReinterpretCast<int32_t>(), work(2), w, i, n);
    wait_for<HardEvent::V_S>();
    const uint64_t first = weight_at(0);
    wait_for<HardEvent::S_V>();
    return first;
  }

  __aicore__ inline uint64_t weight_at(int32_t i) {
    const LocalTensor<int32_t> digits = work(1).ReinterpretCast<int32_t>();
    return joined(digits.GetValue(i), digits.GetValue(kSampleFew + i), digits.GetValue(2 * kSampleFew + i),
                  digits.GetValue(3 * kSampleFew + i));
  }

  // ln(weight / 2^40)
  __aicore__ inline float log_of(uint64_t weight) {
    const int32_t drop = bit_length(weight) - 24;
    const uint64_t mantissa = drop > 0 ? shift_rounded(weight, drop) : weight;
    const int32_t exponent = (drop > 0 ? drop : 0) - 40;
    return logarithm(static_cast<float>(static_cast<int32_t>(mantissa)) *
                     float_of(static_cast<uint32_t>(exponent + 127) << 23));
  }

 private:
  // w = exp((x - highest) / temperature) as kernels/cpu/sample.h computes it, operation by operation. w may be x.
  __aicore__ inline void weigh(const LocalTensor<float>& w, const LocalTensor<float>& x, int32_t n) {
    constexpr float kRound = 12582912.0f;  // adding 1.5 * 2^23 leaves an integer in the low bits
    LocalTensor<float> shifted = work(1), p = work(2), other = work(3);
    LocalTensor<int32_t> power = shifted.ReinterpretCast<int32_t>();
    Adds(w, x, -highest_, n);
    Duplicate(other, temperature_, n);
    PipeBarrier<PIPE_V>();
    Div(w, w, other, n);
    PipeBarrier<PIPE_V>();
    Maxs(w, w, -40.0f, n);  // rounds to zero there
    PipeBarrier<PIPE_V>();
    Muls(shifted, w, 1.44269504f, n);
    PipeBarrier<PIPE_V>();
    Adds(shifted, shifted, kRound, n);
    PipeBarrier<PIPE_V>();
    Adds(p, shifted, -kRound, n);
    PipeBarrier<PIPE_V>();
    Muls(other, p, 0.693359375f, n);
    PipeBarrier<PIPE_V>();
    Sub(w, w, other, n);
    PipeBarrier<PIPE_V>();
    Muls(other, p, -2.12194440e-4f, n);
    PipeBarrier<PIPE_V>();
    Sub(w, w, other, n);  // |w| <= ln(2) / 2
    Duplicate(p, 1.9875691500e-4f, n);
    PipeBarrier<PIPE_V>();
    const float series[5] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    for (int32_t i = 0; i < 5; ++i) {
      Mul(p, p, w, n);
      PipeBarrier<PIPE_V>();
      Adds(p, p, series[i], n);
      PipeBarrier<PIPE_V>();
    }
    Mul(other, w, w, n);
    PipeBarrier<PIPE_V>();
    Mul(p, p, other, n);
    PipeBarrier<PIPE_V>();
    Add(p, p, w, n);
    Adds(power, power, 127 - 0x4b400000, n);
    PipeBarrier<PIPE_V>();
    Adds(p, p, 1.0f, n);
    ShiftLeft(power, power, 23, n);
    PipeBarrier<PIPE_V>();
    Mul(w, p, shifted, n);
    PipeBarrier<PIPE_V>();
  }

  // The next digit of w, from the top, as integers and as floats; what is left of w stays in it. The last one is rounded.
  __aicore__ inline void next_digit(const LocalTensor<int32_t>& digit, const LocalTensor<float>& value,
                                    const LocalTensor<float>& w, int32_t i, int32_t n) {
    const bool last = i == kDigits - 1;
    Muls(w, w, last ? 16.0f : 4096.0f, n);
    PipeBarrier<PIPE_V>();
    Cast(digit, w, last ? RoundMode::CAST_RINT : RoundMode::CAST_FLOOR, n);
    PipeBarrier<PIPE_V>();
    Cast(value, digit, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    Sub(w, w, value, n);
    PipeBarrier<PIPE_V>();
  }

  __aicore__ inline static uint64_t joined(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return (a << 28) + (b << 16) + (c << 4) + d;
  }
};

}  // namespace sigmoe_sample_kernel
