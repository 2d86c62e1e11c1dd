// The vector stages of the experts kernel: SwiGLU with the rounding that the next product needs, and the weighting.
#pragma once

#include "ascend/device/experts.h"

namespace sigmoe::ascend {

template <typename T>
class ExpertsVector {
 public:
  using Sum = typename CubeSum<T>::Type;
  static constexpr bool kQuantised = sizeof(T) == 1;

  __aicore__ inline void Init(const ExpertsMemory& memory, const ExpertsTiling& t, TPipe* pipe) {
    memory_ = memory;
    t_ = t;
    core_ = static_cast<int32_t>(GetBlockIdx());
    cores_ = static_cast<int32_t>(GetBlockNum() * GetSubBlockNum());
    x_scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.x_scales));
    table_.SetGlobalBuffer(reinterpret_cast<__gm__ uint64_t*>(memory.table));
    slot_order_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.slot_order));
    slot_weights_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.slot_weights));
    sums_.SetGlobalBuffer(reinterpret_cast<__gm__ Sum*>(memory.work));
    inner_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(memory.work + t.inner_at));
    inner_scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.scales_at));
    out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.out));

    const int32_t inner = static_cast<int32_t>(round_up(t.inner > t.shared_inner ? t.inner : t.shared_inner, 64));
    pipe->InitBuffer(sum_in_, 2, kExpertPiece * sizeof(Sum));
    pipe->InitBuffer(up_in_, 2, kExpertPiece * sizeof(Sum));
    pipe->InitBuffer(divisor_, kExpertPiece * sizeof(float));
    pipe->InitBuffer(result_, 2, kExpertPiece * sizeof(float));
    pipe->InitBuffer(inner_out_, 1, inner * sizeof(T));
    if constexpr (sizeof(T) < 4) pipe->InitBuffer(row_, inner * sizeof(float));
    if constexpr (kQuantised) {
      pipe->InitBuffer(scale_in_, 2, kExpertPiece * sizeof(float));
      pipe->InitBuffer(halves_, inner * sizeof(half));
      pipe->InitBuffer(highest_, (kMaxExpertInner / kExpertPiece + 1) * kBlockBytes);
      pipe->InitBuffer(scale_out_, 2, kBlockBytes);
    }
  }

  // inner = silu(gate) * up, rows dealt out one by one.
  __aicore__ inline void SwiGlu() {
    ExpertWalk walk(memory_, t_, core_, cores_);
    while (walk.Next()) {
      if (Address(kGateUp, walk) == 0) continue;
      for (int32_t row = walk.Deal(walk.Rows()); row < walk.Rows(); row += cores_) SwiGluRow(walk, row);
    }
  }

  // out = sums * slot weight, pieces of rows dealt out.
  __aicore__ inline void Weigh() {
    ExpertWalk walk(memory_, t_, core_, cores_);
    const int32_t pieces = static_cast<int32_t>(ceil_div(t_.width, kExpertPiece));
    while (walk.Next()) {
      const int32_t items = walk.Rows() * pieces;
      for (int32_t item = walk.Deal(items); item < items; item += cores_)
        WeighPiece(walk, item / pieces, item % pieces * kExpertPiece);
    }
  }

 private:
  __aicore__ inline uint64_t Address(ExpertTable which, const ExpertWalk& walk) const {
    return table_.GetValue(which * (t_.n_experts + 1) + walk.Expert());
  }

  __aicore__ inline static DataCopyExtParams Run(int32_t n, int32_t element_bytes) {
    return DataCopyExtParams{1, static_cast<uint32_t>(n * element_bytes), 0, 0, 0};
  }

  // n values from GM, as they are.
  template <typename Q, typename V>
  __aicore__ inline static LocalTensor<V> CopyIn(Q& queue, const GlobalTensor<V>& from, int32_t n) {
    LocalTensor<V> in = queue.template AllocTensor<V>();
    DataCopyPad(in, from, Run(n, sizeof(V)), DataCopyPadExtParams<V>{false, 0, 0, V{}});
    queue.EnQue(in);
    return queue.template DeQue<V>();
  }

  // Sums in float32; of INT8 products, times the scales of their output channels and `scale`. In place.
  __aicore__ inline LocalTensor<float> Floats(const LocalTensor<Sum>& sums, const GlobalTensor<float>& channel_scales, float scale,
                                              int32_t n) {
    LocalTensor<float> values = sums.template ReinterpretCast<float>();
    if constexpr (kQuantised) {
      LocalTensor<float> scales = CopyIn(scale_in_, channel_scales, n);
      Cast(values, sums, RoundMode::CAST_NONE, n);
      PipeBarrier<PIPE_V>();
      Mul(values, values, scales, n);
      PipeBarrier<PIPE_V>();
      scale_in_.FreeTensor(scales);
      Muls(values, values, scale, n);
      PipeBarrier<PIPE_V>();
    }
    return values;
  }

  __aicore__ inline void SwiGluRow(const ExpertWalk& walk, int32_t row) {
    const int32_t inner = walk.Inner();
    const int64_t at = walk.First() + row;
    GlobalTensor<float> channel_scales;
    float scale = 1.0f;
    if constexpr (kQuantised) {
      channel_scales.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(Address(kGateUpScales, walk)));
      scale = x_scales_.GetValue(walk.Shared() ? row : slot_order_.GetValue(at) / t_.n_active);
    }
    LocalTensor<T> out = inner_out_.template AllocTensor<T>();
    LocalTensor<float> values;
    if constexpr (sizeof(T) == 4)
      values = out;
    else
      values = row_.template Get<float>();
    for (int32_t from = 0; from < inner; from += kExpertPiece) {
      const int32_t n = from + kExpertPiece < inner ? kExpertPiece : inner - from;
      LocalTensor<Sum> gate_sums = CopyIn(sum_in_, sums_[at * t_.sum_pitch + from], n);
      LocalTensor<Sum> up_sums = CopyIn(up_in_, sums_[at * t_.sum_pitch + inner + from], n);
      LocalTensor<float> gate = Floats(gate_sums, channel_scales[from], scale, n);
      LocalTensor<float> up = Floats(up_sums, channel_scales[inner + from], scale, n);
      LocalTensor<float> divisor = divisor_.template Get<float>();
      Muls(divisor, gate, -1.0f, n);
      PipeBarrier<PIPE_V>();
      Exp(divisor, divisor, n);
      PipeBarrier<PIPE_V>();
      Adds(divisor, divisor, 1.0f, n);
      PipeBarrier<PIPE_V>();
      Div(gate, gate, divisor, n);
      PipeBarrier<PIPE_V>();
      Mul(values[from], gate, up, n);
      PipeBarrier<PIPE_V>();
      sum_in_.FreeTensor(gate_sums);
      up_in_.FreeTensor(up_sums);
      if constexpr (kQuantised) Highest(values[from], from / kExpertPiece, n);
    }
    if constexpr (kQuantised)
      Quantise(out, values, inner, at);
    else if constexpr (sizeof(T) == 2)
      Cast(out, values, RoundMode::CAST_RINT, inner);
    inner_out_.EnQue(out);
    out = inner_out_.template DeQue<T>();
    DataCopyPad(inner_[at * t_.inner_pitch], out, Run(inner, sizeof(T)));
    inner_out_.FreeTensor(out);
  }

  // The largest magnitude of a piece of a row, kept in the block of its number.
  __aicore__ inline void Highest(const LocalTensor<float>& values, int32_t piece, int32_t n) {
    LocalTensor<float> magnitudes = divisor_.template Get<float>();
    LocalTensor<float> highest = highest_.template Get<float>();
    Abs(magnitudes, values, n);
    PipeBarrier<PIPE_V>();
    ReduceMax(highest[piece * 8], magnitudes, magnitudes, n);
    PipeBarrier<PIPE_V>();
  }

  // out = round(values / scale), scale = largest magnitude / 127, which goes to inner_scales[row].
  __aicore__ inline void Quantise(const LocalTensor<T>& out, const LocalTensor<float>& values, int32_t n, int64_t row) {
    LocalTensor<float> highest = highest_.template Get<float>();
    const TEventID event = GetTPipePtr()->FetchEventID(HardEvent::V_S);
    SetFlag<HardEvent::V_S>(event);
    WaitFlag<HardEvent::V_S>(event);
    float peak = 0.0f;
    for (int32_t piece = 0; piece * kExpertPiece < n; ++piece) {
      const float value = highest.GetValue(piece * 8);
      peak = value > peak ? value : peak;
    }
    LocalTensor<float> scale = scale_out_.template AllocTensor<float>();
    Duplicate(scale, peak / 127.0f, 8);
    scale_out_.EnQue(scale);
    scale = scale_out_.template DeQue<float>();
    DataCopy(inner_scales_[row * 8], scale, 8);
    scale_out_.FreeTensor(scale);

    LocalTensor<int32_t> whole = values.template ReinterpretCast<int32_t>();
    LocalTensor<half> halves = halves_.template Get<half>();
    Muls(values, values, peak > 0.0f ? 127.0f / peak : 0.0f, n);
    PipeBarrier<PIPE_V>();
    Cast(whole, values, RoundMode::CAST_RINT, n);
    PipeBarrier<PIPE_V>();
    SetDeqScale(static_cast<half>(1.0f));
    Cast(halves, whole, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    Cast(out, halves, RoundMode::CAST_TRUNC, n);
  }

  __aicore__ inline void WeighPiece(const ExpertWalk& walk, int32_t row, int32_t column) {
    const int32_t n = column + kExpertPiece < t_.width ? kExpertPiece : t_.width - column;
    const int64_t at = walk.First() + row;
    const int32_t slots = t_.n_active + t_.shared;
    int64_t place = static_cast<int64_t>(row) * slots + t_.n_active;
    float weight = 1.0f;
    if (!walk.Shared()) {
      const int32_t slot = slot_order_.GetValue(at);
      place = static_cast<int64_t>(slot / t_.n_active) * slots + slot % t_.n_active;
      weight = slot_weights_.GetValue(slot);
    }
    LocalTensor<float> result = result_.template AllocTensor<float>();
    if (Address(kDown, walk) == 0) {
      Duplicate(result, 0.0f, n);
    } else {
      GlobalTensor<float> channel_scales;
      float scale = 1.0f;
      if constexpr (kQuantised) {
        channel_scales.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(Address(kDownScales, walk)));
        scale = inner_scales_.GetValue(at * 8);
      }
      LocalTensor<Sum> sums = CopyIn(sum_in_, sums_[at * t_.sum_pitch + column], n);
      LocalTensor<float> values = Floats(sums, channel_scales[column], scale, n);
      Muls(result, values, weight, n);
      sum_in_.FreeTensor(sums);
    }
    result_.EnQue(result);
    result = result_.template DeQue<float>();
    DataCopyPad(out_[place * t_.width + column], result, Run(n, sizeof(float)));
    result_.FreeTensor(result);
  }

  ExpertsMemory memory_;
  ExpertsTiling t_;
  int32_t core_ = 0, cores_ = 1;
  GlobalTensor<float> x_scales_, slot_weights_, inner_scales_, out_;
  GlobalTensor<uint64_t> table_;
  GlobalTensor<int32_t> slot_order_;
  GlobalTensor<Sum> sums_;
  GlobalTensor<T> inner_;
  TQue<TPosition::VECIN, 1> sum_in_, up_in_, scale_in_;
  TQue<TPosition::VECOUT, 1> inner_out_, result_, scale_out_;
  TBuf<TPosition::VECCALC> divisor_, row_, halves_, highest_;
};

}  // namespace sigmoe::ascend
