// The vector stages of the experts kernel: SwiGLU with the rounding that the next product needs, and the weighting.
#pragma once

#include "ascend/device/experts.h"
#include "ascend/device/rows.h"

namespace sigmoe_cube_kernels {

template <typename T>
class ExpertsVector {
 public:
  using Sum = typename CubeSum<T>::Type;
  static constexpr bool kQuantised = sizeof(T) == 1;
  static constexpr int32_t kScaleStride = kBlockBytes / sizeof(float);  // a scale has a block of its own

  __aicore__ inline void init(const ExpertsMemory& memory, const ExpertsTiling& t, TPipe* pipe) {
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

    const int32_t widest = t.inner > t.shared_inner ? t.inner : t.shared_inner;
    const int32_t inner = static_cast<int32_t>(round_up(widest > 0 ? widest : 1, 64));
    pipe->InitBuffer(sum_in_, 2, kExpertPiece * sizeof(Sum));
    pipe->InitBuffer(up_in_, 2, kExpertPiece * sizeof(Sum));
    pipe->InitBuffer(divisor_, kExpertPiece * sizeof(float));
    pipe->InitBuffer(result_, 2, kExpertPiece * sizeof(float));
    pipe->InitBuffer(inner_out_, 1, inner * sizeof(T));
    if constexpr (sizeof(T) < 4) pipe->InitBuffer(row_, inner * sizeof(float));
    if constexpr (kQuantised) {
      pipe->InitBuffer(scale_in_, 2, kExpertPiece * sizeof(float));
      pipe->InitBuffer(work_, inner * sizeof(float));
      pipe->InitBuffer(scale_out_, 2, kBlockBytes);
    }
  }

  // inner = silu(gate) * up, rows dealt out one by one.
  __aicore__ inline void swiglu() {
    ExpertWalk walk(memory_, t_, core_, cores_);
    while (walk.next()) {
      if (address(kGateUp, walk) == 0) continue;
      for (int32_t row = walk.deal(walk.rows()); row < walk.rows(); row += cores_) swiglu_row(walk, row);
    }
  }

  // out = sums * slot weight, pieces of rows dealt out.
  __aicore__ inline void weigh() {
    ExpertWalk walk(memory_, t_, core_, cores_);
    const int32_t pieces = static_cast<int32_t>(ceil_div(t_.width, kExpertPiece));
    while (walk.next()) {
      const int32_t items = walk.rows() * pieces;
      for (int32_t item = walk.deal(items); item < items; item += cores_)
        weigh_piece(walk, item / pieces, item % pieces * kExpertPiece);
    }
  }

 private:
  __aicore__ inline uint64_t address(ExpertTable which, const ExpertWalk& walk) const {
    return table_.GetValue(which * (t_.n_experts + 1) + walk.expert());
  }

  // n values from GM, as they are.
  template <typename Q, typename V>
  __aicore__ inline static LocalTensor<V> copy_in(Q& queue, const GlobalTensor<V>& from, int32_t n) {
    LocalTensor<V> in = queue.template AllocTensor<V>();
    sigmoe_rows::load_row(in, from, n);
    queue.EnQue(in);
    return queue.template DeQue<V>();
  }

  // Sums in float32; of INT8 products, times the scales of their output channels and `scale`. In place.
  __aicore__ inline LocalTensor<float> floats(const LocalTensor<Sum>& sums, const GlobalTensor<float>& channel_scales,
                                              float scale, int32_t n) {
    LocalTensor<float> values = sums.template ReinterpretCast<float>();
    if constexpr (kQuantised) {
      LocalTensor<float> scales = copy_in(scale_in_, channel_scales, n);
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

  __aicore__ inline void swiglu_row(const ExpertWalk& walk, int32_t row) {
    const int32_t inner = walk.inner();
    const int64_t at = walk.first() + row;
    GlobalTensor<float> channel_scales;
    float scale = 1.0f;
    if constexpr (kQuantised) {
      channel_scales.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(address(kGateUpScales, walk)));
      scale = x_scales_.GetValue(walk.shared() ? row : slot_order_.GetValue(at) / t_.n_active);
    }
    LocalTensor<T> out = inner_out_.template AllocTensor<T>();
    LocalTensor<float> values;
    if constexpr (sizeof(T) == 4)
      values = out;
    else
      values = row_.template Get<float>();
    for (int32_t from = 0; from < inner; from += kExpertPiece) {
      const int32_t n = from + kExpertPiece < inner ? kExpertPiece : inner - from;
      LocalTensor<Sum> gate_sums = copy_in(sum_in_, sums_[at * t_.sum_pitch + from], n);
      LocalTensor<Sum> up_sums = copy_in(up_in_, sums_[at * t_.sum_pitch + inner + from], n);
      LocalTensor<float> gate = floats(gate_sums, channel_scales[from], scale, n);
      LocalTensor<float> up = floats(up_sums, channel_scales[inner + from], scale, n);
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
    }
    if constexpr (kQuantised)
      store_scale(at, sigmoe_rows::quantise_row(out, values, work_.template Get<float>(), inner));
    else if constexpr (sizeof(T) == 2)
      Cast(out, values, RoundMode::CAST_RINT, inner);
    inner_out_.EnQue(out);
    out = inner_out_.template DeQue<T>();
    sigmoe_rows::store_row(inner_[at * t_.inner_pitch], out, inner);
    inner_out_.FreeTensor(out);
  }

  // inner_scales[row] = scale, once a block.
  __aicore__ inline void store_scale(int64_t row, float value) {
    LocalTensor<float> scale = scale_out_.template AllocTensor<float>();
    Duplicate(scale, value, kScaleStride);
    scale_out_.EnQue(scale);
    scale = scale_out_.template DeQue<float>();
    DataCopy(inner_scales_[row * kScaleStride], scale, kScaleStride);
    scale_out_.FreeTensor(scale);
  }

  __aicore__ inline void weigh_piece(const ExpertWalk& walk, int32_t row, int32_t column) {
    const int32_t n = column + kExpertPiece < t_.width ? kExpertPiece : t_.width - column;
    const int64_t at = walk.first() + row;
    const int32_t slots = t_.n_active + t_.shared;
    int64_t place = static_cast<int64_t>(row) * slots + t_.n_active;
    float weight = 1.0f;
    if (!walk.shared()) {
      const int32_t slot = slot_order_.GetValue(at);
      place = static_cast<int64_t>(slot / t_.n_active) * slots + slot % t_.n_active;
      weight = slot_weights_.GetValue(slot);
    }
    LocalTensor<float> result = result_.template AllocTensor<float>();
    if (address(kDown, walk) == 0) {
      Duplicate(result, 0.0f, n);
    } else {
      GlobalTensor<float> channel_scales;
      float scale = 1.0f;
      if constexpr (kQuantised) {
        channel_scales.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(address(kDownScales, walk)));
        scale = inner_scales_.GetValue(at * kScaleStride);
      }
      LocalTensor<Sum> sums = copy_in(sum_in_, sums_[at * t_.sum_pitch + column], n);
      LocalTensor<float> values = floats(sums, channel_scales[column], scale, n);
      Muls(result, values, weight, n);
      sum_in_.FreeTensor(sums);
    }
    result_.EnQue(result);
    result = result_.template DeQue<float>();
    sigmoe_rows::store_row(out_[place * t_.width + column], result, n);
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
  TBuf<TPosition::VECCALC> divisor_, row_, work_;
};

}  // namespace sigmoe_cube_kernels
