// The sampler's logits: what it makes of a row before anything is chosen.
#pragma once

#include "ascend/device/sample_core.h"

namespace sigmoe_sample_kernel {

class SampleLogits : public SampleCore {
 public:
  using SampleCore::SampleCore;

 protected:
  // The row's logits as the sampler sees them: NaN is minus infinity, infinity a large number; with `adjusted` also biased,
  // penalised, masked and banned. They go to the workspace if they are to be kept. Returns the highest, the lowest id of
  // equals.
  __aicore__ inline Cut prepare(int32_t row, bool adjusted, bool keep) {
    const int32_t slot = word(row, kRowSlot), mask_row = word(row, kRowMask);
    const bool biased = adjusted && word(row, kRowBiasEnd) > word(row, kRowBiasBegin),
               banned = adjusted && word(row, kRowBanEnd) > word(row, kRowBanBegin);
    const bool penalised =
        adjusted && slot >= 0 &&
        (number(row, kRowRepetition) != 1.0f || number(row, kRowPresence) != 0.0f || number(row, kRowFrequency) != 0.0f);
    Cut best{kNever, -1, 0};
    PipeBarrier<PIPE_ALL>();  // the workspace has been read
    for (int32_t first = 0; first < t_.vocab_size; first += kSampleChunk) {
      const int32_t n = smaller(kSampleChunk, t_.vocab_size - first), whole = up_to(n, kLanes);
      LocalTensor<float> in = load_padded(x_in_, logits_[static_cast<int64_t>(row) * t_.vocab_size + first], n, kNever);
      LocalTensor<float> x = work(0);
      make_finite(x, in, whole);
      x_in_.FreeTensor(in);
      if (biased) add_biases(row, x, first, n);
      if (penalised) {
        LocalTensor<int32_t> counts =
            load_padded(counts_in_, counts_[static_cast<int64_t>(slot) * t_.vocab_size + first], n, 0);
        penalise(row, x, counts, whole);
        counts_in_.FreeTensor(counts);
      }
      if (adjusted && mask_row >= 0) {
        const int32_t words = (n + 31) / 32;
        LocalTensor<uint32_t> mask = mask_in_.AllocTensor<uint32_t>();
        Duplicate(mask, uint32_t{0}, up_to(whole / 32, kStep));
        wait_for<HardEvent::V_MTE2>();
        const DataCopyPadExtParams<uint32_t> padding{true, 0, static_cast<uint8_t>(up_to(words, kStep) - words), 0};
        DataCopyPad(mask, masks_[static_cast<int64_t>(mask_row) * t_.mask_words + first / 32],
                    {1, static_cast<uint32_t>(words * 4), 0, 0, 0}, padding);
        mask_in_.EnQue(mask);
        mask = mask_in_.DeQue<uint32_t>();
        Select(x, mask, x, kNever, SELMODE::VSEL_TENSOR_SCALAR_MODE, whole);
        PipeBarrier<PIPE_V>();
        mask_in_.FreeTensor(mask);
      }
      if (banned) ban(row, x, first, n);
      take_best(best, x, first, whole);
      if (keep) {
        LocalTensor<float> out = x_out_.AllocTensor<float>();
        Adds(out, x, 0.0f, whole);
        x_out_.EnQue(out);
        out = x_out_.DeQue<float>();
        DataCopy(x_[first], out, whole);
        x_out_.FreeTensor(out);
      }
      PipeBarrier<PIPE_V>();
    }
    PipeBarrier<PIPE_ALL>();  // the workspace has been written
    return best;
  }

  // Nothing can be sampled: the lowest id that is neither banned nor masked, else 0.
  __aicore__ inline int32_t lowest_allowed(int32_t row) {
    const int32_t mask_row = word(row, kRowMask), begin = word(row, kRowBanBegin), end = word(row, kRowBanEnd);
    for (int32_t id = 0; id < t_.vocab_size; ++id) {
      bool banned =
          mask_row >= 0 && (masks_.GetValue(static_cast<uint64_t>(mask_row) * t_.mask_words + id / 32) >> (id % 32) & 1) == 0;
      for (int32_t i = begin; i < end && !banned; ++i) banned = ban_ids_.GetValue(i) == id;
      if (!banned) return id;
    }
    return 0;
  }

  __aicore__ inline static float finite(float x) { return x == x ? (x < kLargest ? x : kLargest) : kNever; }

 private:
  __aicore__ inline void make_finite(const LocalTensor<float>& x, const LocalTensor<float>& in, int32_t n) {
    LocalTensor<uint8_t> bits = bits_buffer_.Get<uint8_t>();
    Compare(bits, in, in, CMPMODE::EQ, n);
    PipeBarrier<PIPE_V>();
    Mins(x, in, kLargest, n);
    PipeBarrier<PIPE_V>();
    Select(x, bits, x, kNever, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
    PipeBarrier<PIPE_V>();
  }

  // Entries may name a token twice: in order, by the scalar unit.
  __aicore__ inline void add_biases(int32_t row, const LocalTensor<float>& x, int32_t first, int32_t n) {
    wait_for<HardEvent::V_S>();
    const int32_t end = word(row, kRowBiasEnd);
    for (int32_t i = word(row, kRowBiasBegin); i < end; ++i) {
      const int32_t at = bias_ids_.GetValue(i) - first;
      if (at >= 0 && at < n) x.SetValue(at, finite(x.GetValue(at) + bias_values_.GetValue(i)));
    }
    wait_for<HardEvent::S_V>();
  }

  __aicore__ inline void ban(int32_t row, const LocalTensor<float>& x, int32_t first, int32_t n) {
    wait_for<HardEvent::V_S>();
    const int32_t end = word(row, kRowBanEnd);
    for (int32_t i = word(row, kRowBanBegin); i < end; ++i) {
      const int32_t at = ban_ids_.GetValue(i) - first;
      if (at >= 0 && at < n) x.SetValue(at, kNever);
    }
    wait_for<HardEvent::S_V>();
  }

  // What repetition, presence and frequency make of x; counts as in backend.h: bit 31 for the prompt, below it times generated.
  __aicore__ inline void penalise(int32_t row, const LocalTensor<float>& x, const LocalTensor<int32_t>& counts, int32_t n) {
    const float repetition = number(row, kRowRepetition);
    LocalTensor<uint8_t> bits = bits_buffer_.Get<uint8_t>();
    LocalTensor<float> a = work(1), less = work(2), b = work(3);
    LocalTensor<uint32_t> generated = a.ReinterpretCast<uint32_t>();
    ShiftLeft(generated, counts.ReinterpretCast<uint32_t>(), uint32_t{1}, n);
    Duplicate(less, number(row, kRowPresence), n);
    PipeBarrier<PIPE_V>();
    ShiftRight(generated, generated, uint32_t{1}, n);
    PipeBarrier<PIPE_V>();
    Cast(a, a.ReinterpretCast<int32_t>(), RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    CompareScalar(bits, a, 0.0f, CMPMODE::GT, n);
    PipeBarrier<PIPE_V>();
    Select(less, bits, less, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
    Muls(a, a, number(row, kRowFrequency), n);
    PipeBarrier<PIPE_V>();
    Add(less, less, a, n);
    CompareScalar(bits, x, 0.0f, CMPMODE::GT, n);
    PipeBarrier<PIPE_V>();
    Duplicate(a, repetition, n);
    Muls(b, x, repetition, n);
    PipeBarrier<PIPE_V>();
    Div(a, x, a, n);
    PipeBarrier<PIPE_V>();
    Select(a, bits, a, b, SELMODE::VSEL_TENSOR_TENSOR_MODE, n);
    PipeBarrier<PIPE_V>();
    Cast(b, counts, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    CompareScalar(bits, b, 0.0f, CMPMODE::NE, n);
    PipeBarrier<PIPE_V>();
    Select(x, bits, a, x, SELMODE::VSEL_TENSOR_TENSOR_MODE, n);
    PipeBarrier<PIPE_V>();
    Sub(x, x, less, n);
    PipeBarrier<PIPE_V>();
    make_finite(x, x, n);
  }
};

}  // namespace sigmoe_sample_kernel
