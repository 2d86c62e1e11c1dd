// What the parts of the sampler share: memory, queues, the workspace, a row's settings, scalars out of tensors.
#pragma once

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

class SampleCore {
 public:
  __aicore__ inline SampleCore(TPipe& pipe, GM_ADDR logits, GM_ADDR rows, GM_ADDR bias_ids, GM_ADDR bias_values,
                               GM_ADDR ban_ids, GM_ADDR masks, GM_ADDR counts, GM_ADDR tokens, GM_ADDR logprobs,
                               GM_ADDR top_ids, GM_ADDR top_logprobs, GM_ADDR workspace, const SampleTiling& tiling)
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

 protected:
  __aicore__ inline int32_t word(int32_t row, SampleRowWord field) const {
    return static_cast<int32_t>(rows_.GetValue(static_cast<uint64_t>(row) * kRowWords + field));
  }

  __aicore__ inline float number(int32_t row, SampleRowWord field) const {
    return float_of(static_cast<uint32_t>(word(row, field)));
  }

  __aicore__ inline LocalTensor<float> work(int32_t i) { return work_buffer_.Get<float>()[i * kSampleChunk]; }

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

  __aicore__ inline LocalTensor<float> read(int32_t first, int32_t n) {
    LocalTensor<float> x = x_in_.AllocTensor<float>();
    DataCopy(x, x_[first], n);
    x_in_.EnQue(x);
    return x_in_.DeQue<float>();
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
