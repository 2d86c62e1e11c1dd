// One token per row of logits (R, V): bans and mask, bias, penalties, temperature, min-p, top-k, top-p, a draw;
// log-probabilities; chains. A chain of rows belongs to one vector core. Nothing is sorted but at most 1024 candidates.
//
// Weights are the integers of kernels/cpu/sample.h, so a sum does not depend on its order and the token is the very one that
// sorting the vocabulary gives. The vector unit has floats only: a weight below 2^40 goes through four digits of 12, 12, 12 and
// 4 bits, whose sums over a chunk are exact. top-k, top-p and the draw each ask for the first token, the most likely first, at
// which a sum reaches a target: cut() bisects between logits, a pass over the row each, until few candidates are left to sort.
// Bound: a greedy row reads its logits once.
#include "ascend/device/args/sample.h"

#include "ascend/device/sample_numbers.h"
#include "kernel_operator.h"

namespace sigmoe_sample_kernel {

using namespace AscendC;
using namespace sigmoe::ascend;

constexpr int32_t kLanes = 64;  // float32 of a repeat
constexpr int32_t kDigits = 4;
constexpr float kLargest = 3.402823466e38f;
constexpr float kNever = -__builtin_inff();
constexpr int32_t kStep = 8;  // floats of a block: how far apart the sums lie

__aicore__ inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
__aicore__ inline int32_t up_to(int32_t value, int32_t unit) { return (value + unit - 1) / unit * unit; }

template <HardEvent event>
__aicore__ inline void wait_for() {
  const int32_t id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

struct Mass {  // of the logits at or above some value
  uint64_t weight;
  int64_t count;
};

struct Cut {  // the token at which a sum reached its target, and the sum before it
  float value;
  int32_t id;
  uint64_t above;
};

class Sample {
 public:
  __aicore__ inline Sample(TPipe& pipe, GM_ADDR logits, GM_ADDR rows, GM_ADDR bias_ids, GM_ADDR bias_values, GM_ADDR ban_ids,
                           GM_ADDR masks, GM_ADDR counts, GM_ADDR tokens, GM_ADDR logprobs, GM_ADDR top_ids,
                           GM_ADDR top_logprobs, GM_ADDR workspace, const SampleTiling& tiling)
      : t_(tiling) {
    logits_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(logits));
    rows_.SetGlobalBuffer(reinterpret_cast<__gm__ uint32_t*>(rows));
    bias_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(bias_ids));
    bias_values_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(bias_values));
    ban_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(ban_ids));
    masks_.SetGlobalBuffer(reinterpret_cast<__gm__ uint32_t*>(masks));
    counts_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(counts));
    tokens_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(tokens));
    logprobs_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(logprobs));
    top_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(top_ids));
    top_logprobs_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(top_logprobs));
    x_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(workspace) + GetBlockIdx() * t_.pitch);
    pipe.InitBuffer(x_in_, 2, kSampleChunk * 4);
    pipe.InitBuffer(counts_in_, 1, kSampleChunk * 4);
    pipe.InitBuffer(mask_in_, 1, kSampleChunk / 8);
    pipe.InitBuffer(x_out_, 1, kSampleChunk * 4);
    pipe.InitBuffer(small_out_, 1, 64 * 4);
    pipe.InitBuffer(work_buffer_, 4 * kSampleChunk * 4);
    pipe.InitBuffer(bits_buffer_, 2 * kSampleChunk / 8);
    pipe.InitBuffer(scratch_buffer_, 256 * 4);
    pipe.InitBuffer(sums_buffer_, (kDigits + 1) * kStep * 4);
    pipe.InitBuffer(few_buffer_, 2 * kSampleFew * 4);
    pipe.InitBuffer(record_buffer_, 2 * kSampleFew * 8);
  }

  __aicore__ inline void process() {
    int32_t chain = -1, token = -1;
    for (int32_t row = 0; row < t_.n_rows; ++row) {
      const int32_t drafted = word(row, kRowIfPrevious);
      if (drafted < 0) ++chain;
      if (chain % GetBlockNum() != GetBlockIdx()) continue;
      token = drafted >= 0 && token != drafted ? -1 : choose(row);
      finish(row, token);
    }
  }

 private:
  __aicore__ inline int32_t word(int32_t row, SampleRowWord field) const {
    return static_cast<int32_t>(rows_.GetValue(static_cast<uint64_t>(row) * kRowWords + field));
  }
  __aicore__ inline float number(int32_t row, SampleRowWord field) const {
    return float_of(static_cast<uint32_t>(word(row, field)));
  }

  // ---- choice --------------------------------------------------------------------------------------------------------

  __aicore__ inline int32_t choose(int32_t row) {
    const int32_t forced = word(row, kRowForced);
    if (forced >= 0) return forced;
    const float temperature = number(row, kRowTemperature), min_p = number(row, kRowMinP), top_p = number(row, kRowTopP);
    const Cut best = prepare(row, true, temperature > 0.0f);
    if (best.value == kNever) return lowest_allowed(row);
    if (!(temperature > 0.0f)) return best.id;
    highest_ = best.value;
    temperature_ = temperature;
    float least = -kLargest;
    if (min_p > 0.0f) {  // p >= min_p * max p, as a bound on the logit; the maximum itself always passes
      least = highest_ + temperature * logarithm(min_p);
      if (!(least < highest_)) least = highest_;
    }
    const int32_t top_k = word(row, kRowTopK);
    Mass within = mass_from(least, true);
    uint64_t total = within.weight;
    if (top_k > 0 && top_k < within.count) {
      const Cut last = cut(least, within.count, static_cast<uint64_t>(top_k), false);
      least = last.value;
      const Mass above = mass_from(value_of(key_of(least) + 1), true);  // of those equal to the last, the lower ids are kept
      total = above.weight + static_cast<uint64_t>(top_k - above.count) * weight_of(least);
      within.count = mass_from(least, false).count;
    }
    if (top_p < 1.0f) {
      uint64_t share = share_of(top_p, total);
      if (share < 1) share = 1;
      if (share > total) share = total;
      const Cut last = cut(least, within.count, share, true);
      least = last.value;
      total = last.above + weight_of(least);
      within.count = mass_from(least, false).count;
    }
    return cut(least, within.count, draw_below(total, seed_of(row), word(row, kRowPosition)) + 1, true).id;
  }

  __aicore__ inline uint64_t seed_of(int32_t row) const {
    const uint64_t at = static_cast<uint64_t>(row) * kRowWords + kRowSeed;
    return static_cast<uint64_t>(rows_.GetValue(at + 1)) << 32 | rows_.GetValue(at);
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

  // n elements and, up to whole repeats, `filler`.
  template <typename T>
  __aicore__ inline LocalTensor<T> load_padded(TQue<TPosition::VECIN, 1>& queue, const GlobalTensor<T>& from, int32_t n,
                                               T filler) {
    LocalTensor<T> to = queue.AllocTensor<T>();
    if (n % kLanes != 0) {
      Duplicate(to, filler, up_to(n, kLanes));
      wait_for<HardEvent::V_MTE2>();
    }
    const DataCopyPadExtParams<T> padding{true, 0, static_cast<uint8_t>(up_to(n, kStep) - n), filler};
    DataCopyPad(to, from, {1, static_cast<uint32_t>(n * 4), 0, 0, 0}, padding);
    queue.EnQue(to);
    return queue.DeQue<T>();
  }

  __aicore__ inline void make_finite(const LocalTensor<float>& x, const LocalTensor<float>& in, int32_t n) {
    LocalTensor<uint8_t> bits = bits_buffer_.Get<uint8_t>();
    Compare(bits, in, in, CMPMODE::EQ, n);
    PipeBarrier<PIPE_V>();
    Mins(x, in, kLargest, n);
    PipeBarrier<PIPE_V>();
    Select(x, bits, x, kNever, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
    PipeBarrier<PIPE_V>();
  }

  __aicore__ inline static float finite(float x) { return x == x ? (x < kLargest ? x : kLargest) : kNever; }

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

  // best, if the highest of x, which starts at id `first`, is higher.
  __aicore__ inline void take_best(Cut& best, const LocalTensor<float>& x, int32_t first, int32_t n) {
    LocalTensor<float> found = sums_buffer_.Get<float>();
    ReduceMax(found, x, scratch_buffer_.Get<float>(), n, true);
    wait_for<HardEvent::V_S>();
    const float value = found.GetValue(0);
    const int32_t at = static_cast<int32_t>(found.ReinterpretCast<uint32_t>().GetValue(1));
    wait_for<HardEvent::S_V>();
    if (best.id < 0 || value > best.value) best = {value, first + at, 0};
  }

  // ---- weights -------------------------------------------------------------------------------------------------------

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

  __aicore__ inline LocalTensor<float> read(int32_t first, int32_t n) {
    LocalTensor<float> x = x_in_.AllocTensor<float>();
    DataCopy(x, x_[first], n);
    x_in_.EnQue(x);
    return x_in_.DeQue<float>();
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

  __aicore__ inline uint64_t weight_at(int32_t i) const {
    const LocalTensor<int32_t> digits = work(1).ReinterpretCast<int32_t>();
    return joined(digits.GetValue(i), digits.GetValue(kSampleFew + i), digits.GetValue(2 * kSampleFew + i),
                  digits.GetValue(3 * kSampleFew + i));
  }

  // ---- cutting -------------------------------------------------------------------------------------------------------

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

  __aicore__ inline float logarithm(float value) {
    LocalTensor<float> one = scratch_buffer_.Get<float>();
    PipeBarrier<PIPE_V>();
    Duplicate(one, value, kStep);
    PipeBarrier<PIPE_V>();
    Ln(one, one, kStep);
    wait_for<HardEvent::V_S>();
    const float result = one.GetValue(0);
    wait_for<HardEvent::S_V>();
    return result;
  }

  // ---- results -------------------------------------------------------------------------------------------------------

  __aicore__ inline void finish(int32_t row, int32_t token) {
    int32_t ids[kSampleTop];
    float values[kSampleTop];
    for (int32_t i = 0; i < kSampleTop; ++i) {
      ids[i] = -1;
      values[i] = 0.0f;
    }
    const int32_t wanted = word(row, kRowLogprobs);
    const float own = token >= 0 && wanted >= 0 ? score(row, token, wanted, ids, values) : 0.0f;
    LocalTensor<float> out = small_out_.AllocTensor<float>();
    LocalTensor<int32_t> whole = out.ReinterpretCast<int32_t>();
    wait_for<HardEvent::MTE3_S>();
    for (int32_t i = 0; i < kSampleTop; ++i) {
      whole.SetValue(i, ids[i]);
      out.SetValue(32 + i, values[i]);
    }
    out.SetValue(24, own);
    whole.SetValue(56, token);
    wait_for<HardEvent::S_MTE3>();
    small_out_.EnQue(out);
    out = small_out_.DeQue<float>();
    whole = out.ReinterpretCast<int32_t>();
    const DataCopyExtParams one{1, 4, 0, 0, 0}, top{1, kSampleTop * 4, 0, 0, 0};
    DataCopyPad(tokens_[row], whole[56], one);
    DataCopyPad(logprobs_[row], out[24], one);
    DataCopyPad(top_ids_[static_cast<int64_t>(row) * kSampleTop], whole, top);
    DataCopyPad(top_logprobs_[static_cast<int64_t>(row) * kSampleTop], out[32], top);
    small_out_.FreeTensor(out);
    const int32_t slot = word(row, kRowSlot);
    if (token >= 0 && slot >= 0) count(static_cast<int64_t>(slot) * t_.vocab_size + token);
  }

  __aicore__ inline void count(int64_t at) {
    LocalTensor<int32_t> in = counts_in_.AllocTensor<int32_t>();
    const DataCopyPadExtParams<int32_t> no_padding;
    DataCopyPad(in, counts_[at], {1, 4, 0, 0, 0}, no_padding);
    wait_for<HardEvent::MTE2_S>();
    const int32_t times = in.GetValue(0) + 1;
    counts_in_.FreeTensor(in);
    store_one(counts_[at], times);
  }

  // One element to GM; what any pipe does later comes after it.
  template <typename T>
  __aicore__ inline void store_one(const GlobalTensor<T>& to, T value) {
    LocalTensor<T> out = x_out_.AllocTensor<T>();
    wait_for<HardEvent::MTE3_S>();
    out.SetValue(0, value);
    wait_for<HardEvent::S_MTE3>();
    x_out_.EnQue(out);
    out = x_out_.DeQue<T>();
    DataCopyPad(to, out, {1, 4, 0, 0, 0});
    x_out_.FreeTensor(out);
    PipeBarrier<PIPE_ALL>();
  }

  // The log-softmax of the logits as they came, at the token and at the `wanted` most likely ones.
  __aicore__ inline float score(int32_t row, int32_t token, int32_t wanted, int32_t* ids, float* values) {
    Cut best = prepare(row, false, true);
    highest_ = best.value;
    temperature_ = 1.0f;
    const bool none = best.value == kNever;
    const float log_total = none ? logarithm(static_cast<float>(t_.vocab_size)) : log_of(mass_from(kNever, true).weight);
    const float logit = finite(logits_.GetValue(static_cast<uint64_t>(row) * t_.vocab_size + token));
    const float highest = highest_;
    for (int32_t i = 0; i < wanted && i < kSampleTop && best.value != kNever; ++i) {  // impossible tokens are no alternatives
      ids[i] = best.id;
      values[i] = (best.value - highest) - log_total;
      if (i + 1 == smaller(wanted, kSampleTop)) break;
      store_one(x_[best.id], kNever);
      best = {kNever, -1, 0};
      for (int32_t first = 0; first < t_.pitch; first += kSampleChunk) {
        const int32_t n = smaller(kSampleChunk, t_.pitch - first);
        LocalTensor<float> x = read(first, n);
        take_best(best, x, first, n);
        x_in_.FreeTensor(x);
      }
    }
    return none ? -log_total : (logit - highest) - log_total;
  }

  // ln(weight / 2^40)
  __aicore__ inline float log_of(uint64_t weight) {
    const int32_t drop = bit_length(weight) - 24;
    const uint64_t mantissa = drop > 0 ? shift_rounded(weight, drop) : weight;
    const int32_t exponent = (drop > 0 ? drop : 0) - 40;
    return logarithm(static_cast<float>(static_cast<int32_t>(mantissa)) *
                     float_of(static_cast<uint32_t>(exponent + 127) << 23));
  }

  __aicore__ inline LocalTensor<float> work(int32_t i) const { return work_buffer_.Get<float>()[i * kSampleChunk]; }

  SampleTiling t_;
  float highest_ = 0.0f, temperature_ = 1.0f;
  GlobalTensor<float> logits_, bias_values_, logprobs_, top_logprobs_, x_;
  GlobalTensor<uint32_t> rows_, masks_;
  GlobalTensor<int32_t> bias_ids_, ban_ids_, counts_, tokens_, top_ids_;
  TQue<TPosition::VECIN, 1> x_in_, counts_in_, mask_in_;
  TQue<TPosition::VECOUT, 1> x_out_, small_out_;
  TBuf<TPosition::VECCALC> work_buffer_, bits_buffer_, scratch_buffer_, sums_buffer_, few_buffer_, record_buffer_;
};

}  // namespace sigmoe_sample_kernel

extern "C" __global__ __aicore__ void sigmoe_sample(GM_ADDR logits, GM_ADDR rows, GM_ADDR bias_ids, GM_ADDR bias_values,
                                                    GM_ADDR ban_ids, GM_ADDR masks, GM_ADDR counts, GM_ADDR tokens,
                                                    GM_ADDR logprobs, GM_ADDR top_ids, GM_ADDR top_logprobs, GM_ADDR workspace,
                                                    sigmoe::ascend::SampleTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  AscendC::TPipe pipe;
  sigmoe_sample_kernel::Sample kernel(pipe, logits, rows, bias_ids, bias_values, ban_ids, masks, counts, tokens, logprobs,
                                      top_ids, top_logprobs, workspace, tiling);
  kernel.process();
}
