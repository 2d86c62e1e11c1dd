// What kernels that work on rows share: a row in and out of UB, a scalar out of it, a row in eight bits.
#pragma once

#include "kernel_operator.h"

namespace sigmoe_rows {

using namespace AscendC;

constexpr int32_t kUbBlock = 32;

template <typename T>
__aicore__ inline void load_row(const LocalTensor<T>& to, const GlobalTensor<T>& from, int32_t n) {
  const DataCopyExtParams params{1, static_cast<uint32_t>(n * sizeof(T)), 0, 0, 0};
  const DataCopyPadExtParams<T> no_padding;
  DataCopyPad(to, from, params, no_padding);
}

template <typename T>
__aicore__ inline void store_row(const GlobalTensor<T>& to, const LocalTensor<T>& from, int32_t n) {
  const DataCopyExtParams params{1, static_cast<uint32_t>(n * sizeof(T)), 0, 0, 0};
  DataCopyPad(to, from, params);
}

// The first element, once the vector unit has written it.
__aicore__ inline float scalar_of(const LocalTensor<float>& tensor) {
  const event_t event = static_cast<event_t>(GetTPipePtr()->FetchEventID(HardEvent::V_S));
  SetFlag<HardEvent::V_S>(event);
  WaitFlag<HardEvent::V_S>(event);
  return tensor.GetValue(0);
}

// The vector unit goes on after the scalar unit has read what the vector unit will write.
__aicore__ inline void scalar_before_vector() {
  const event_t event = static_cast<event_t>(GetTPipePtr()->FetchEventID(HardEvent::S_V));
  SetFlag<HardEvent::S_V>(event);
  WaitFlag<HardEvent::S_V>(event);
}

// codes (n) = round(x / scale), scale = max |x| / 127; returns the scale, 0 for a row of zeros. x and work are overwritten;
// work has room for n floats.
__aicore__ inline float quantise_row(const LocalTensor<int8_t>& codes, const LocalTensor<float>& x,
                                     const LocalTensor<float>& work, int32_t n) {
  PipeBarrier<PIPE_V>();
  Abs(work, x, n);
  PipeBarrier<PIPE_V>();
  ReduceMax(work, work, work, n);
  const float largest = scalar_of(work);
  scalar_before_vector();
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  Muls(x, x, inverse, n);
  PipeBarrier<PIPE_V>();
  LocalTensor<int32_t> whole = work.ReinterpretCast<int32_t>();
  Cast(whole, x, RoundMode::CAST_RINT, n);
  PipeBarrier<PIPE_V>();
  SetDeqScale(static_cast<half>(1.0f));
  LocalTensor<half> halves = x.ReinterpretCast<half>();
  Cast(halves, whole, RoundMode::CAST_NONE, n);
  PipeBarrier<PIPE_V>();
  Cast(codes, halves, RoundMode::CAST_TRUNC, n);
  PipeBarrier<PIPE_V>();
  return largest / 127.0f;
}

}  // namespace sigmoe_rows
