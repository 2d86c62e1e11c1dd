// residual (T, D) += sum over slots of addend (T, n_slots, D), in slot order; out (T, D) = residual / rms(residual) * weight,
// and beside it the same rows in BF16 or INT8 for the cube. Vector cores, whole rows, one after the other. Bound: memory; a row
// is read once, and the next row's loads run while this one is computed (two buffers).
#include "ascend/device/args/add_rms_norm.h"

#include "ascend/device/rows.h"
#include "kernel_operator.h"

namespace sigmoe_add_rms_norm_kernel {

using namespace AscendC;
using namespace sigmoe_rows;
using sigmoe::ascend::AddRmsNormTiling;

class AddRmsNorm {
 public:
  __aicore__ inline AddRmsNorm(TPipe& pipe, GM_ADDR residual, GM_ADDR addend, GM_ADDR weight, GM_ADDR out, GM_ADDR shadow,
                               GM_ADDR scales, const AddRmsNormTiling& tiling)
      : t_(tiling) {
    residual_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(residual));
    addend_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(addend));
    weight_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weight));
    out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(out));
    bf16_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(shadow));
    int8_.SetGlobalBuffer(reinterpret_cast<__gm__ int8_t*>(shadow));
    scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(scales));
    pipe.InitBuffer(rows_in_, t_.n_buffers, t_.row_bytes);
    pipe.InitBuffer(rows_out_, t_.n_buffers, t_.row_bytes);
    pipe.InitBuffer(sum_buffer_, t_.row_bytes);
    if (t_.has_out) {
      pipe.InitBuffer(weight_queue_, 1, t_.row_bytes);
      pipe.InitBuffer(work_buffer_, t_.row_bytes);
    }
    if (t_.shadow != sigmoe::ascend::kNoShadow) pipe.InitBuffer(shadow_out_, t_.n_buffers, t_.row_bytes / 2);
    if (t_.shadow == sigmoe::ascend::kShadowInt8) pipe.InitBuffer(scale_out_, t_.n_buffers, kUbBlock);
  }

  __aicore__ inline void process() {
    const int32_t first = static_cast<int32_t>(GetBlockIdx()) * t_.rows_per_core;
    int32_t end = first + t_.rows_per_core;
    if (end > t_.n_tokens) end = t_.n_tokens;
    if (first >= end) return;
    LocalTensor<float> weight;
    if (t_.has_out) {
      weight = weight_queue_.AllocTensor<float>();
      load_row(weight, weight_, t_.width);
      weight_queue_.EnQue(weight);
      weight = weight_queue_.DeQue<float>();
    }
    for (int32_t row = first; row < end; ++row) {
      LocalTensor<float> sum = sum_buffer_.Get<float>();
      add_up(row, sum);
      if (t_.has_out) norm(row, sum, weight);
    }
    if (t_.has_out) weight_queue_.FreeTensor(weight);
  }

 private:
  __aicore__ inline LocalTensor<float> read(const GlobalTensor<float>& from, int64_t offset) {
    LocalTensor<float> row = rows_in_.AllocTensor<float>();
    load_row(row, from[offset], t_.width);
    rows_in_.EnQue(row);
    return rows_in_.DeQue<float>();
  }

  // sum = residual + (slot 0 + slot 1 + ...), which is also the new residual.
  __aicore__ inline void add_up(int32_t row, const LocalTensor<float>& sum) {
    const int64_t at = static_cast<int64_t>(row) * t_.width;
    PipeBarrier<PIPE_V>();  // the row before has been read out of sum
    for (int32_t slot = 0; slot < t_.n_slots; ++slot) {
      LocalTensor<float> part = read(addend_, (static_cast<int64_t>(row) * t_.n_slots + slot) * t_.width);
      if (slot == 0)
        Muls(sum, part, 1.0f, t_.width);
      else
        Add(sum, sum, part, t_.width);
      PipeBarrier<PIPE_V>();
      rows_in_.FreeTensor(part);
    }
    LocalTensor<float> before = read(residual_, at);
    if (t_.n_slots == 0) {
      Muls(sum, before, 1.0f, t_.width);
    } else {
      Add(sum, before, sum, t_.width);
      PipeBarrier<PIPE_V>();
      LocalTensor<float> after = rows_out_.AllocTensor<float>();
      Muls(after, sum, 1.0f, t_.width);
      rows_out_.EnQue(after);
      after = rows_out_.DeQue<float>();
      store_row(residual_[at], after, t_.width);
      rows_out_.FreeTensor(after);
    }
    rows_in_.FreeTensor(before);
    PipeBarrier<PIPE_V>();
  }

  __aicore__ inline void norm(int32_t row, const LocalTensor<float>& x, const LocalTensor<float>& weight) {
    LocalTensor<float> work = work_buffer_.Get<float>();
    Mul(work, x, x, t_.width);
    PipeBarrier<PIPE_V>();
    ReduceSum(work, work, work, t_.width);
    PipeBarrier<PIPE_V>();
    Muls(work, work, t_.one_over_width, 1);
    PipeBarrier<PIPE_V>();
    Adds(work, work, t_.eps, 1);
    PipeBarrier<PIPE_V>();
    Sqrt(work, work, 1);
    const float inverse = 1.0f / scalar_of(work);
    scalar_before_vector();
    LocalTensor<float> y = rows_out_.AllocTensor<float>();
    Muls(y, x, inverse, t_.width);
    PipeBarrier<PIPE_V>();
    Mul(y, y, weight, t_.width);
    PipeBarrier<PIPE_V>();
    if (t_.shadow == sigmoe::ascend::kShadowBf16) {
      LocalTensor<bfloat16_t> narrow = shadow_out_.AllocTensor<bfloat16_t>();
      Cast(narrow, y, RoundMode::CAST_RINT, t_.width);
      shadow_out_.EnQue(narrow);
      narrow = shadow_out_.DeQue<bfloat16_t>();
      store_row(bf16_[row * t_.shadow_stride], narrow, t_.width);
      shadow_out_.FreeTensor(narrow);
    }
    if (t_.shadow == sigmoe::ascend::kShadowInt8) {
      Muls(x, y, 1.0f, t_.width);  // x has been used; quantising needs a copy to work in
      LocalTensor<int8_t> codes = shadow_out_.AllocTensor<int8_t>();
      const float scale = quantise_row(codes, x, work, t_.width);
      shadow_out_.EnQue(codes);
      codes = shadow_out_.DeQue<int8_t>();
      store_row(int8_[row * t_.shadow_stride], codes, t_.width);
      shadow_out_.FreeTensor(codes);
      LocalTensor<float> one = scale_out_.AllocTensor<float>();
      Duplicate(one, scale, kUbBlock / static_cast<int32_t>(sizeof(float)));
      scale_out_.EnQue(one);
      one = scale_out_.DeQue<float>();
      store_row(scales_[row], one, 1);
      scale_out_.FreeTensor(one);
    }
    rows_out_.EnQue(y);
    y = rows_out_.DeQue<float>();
    store_row(out_[row * t_.out_stride], y, t_.width);
    rows_out_.FreeTensor(y);
  }

  AddRmsNormTiling t_;
  GlobalTensor<float> residual_, addend_, weight_, out_, scales_;
  GlobalTensor<bfloat16_t> bf16_;
  GlobalTensor<int8_t> int8_;
  TQue<TPosition::VECIN, 1> rows_in_, weight_queue_;
  TQue<TPosition::VECOUT, 1> rows_out_, shadow_out_, scale_out_;
  TBuf<TPosition::VECCALC> sum_buffer_, work_buffer_;
};

}  // namespace sigmoe_add_rms_norm_kernel

extern "C" __global__ __aicore__ void sigmoe_add_rms_norm(GM_ADDR residual, GM_ADDR addend, GM_ADDR weight, GM_ADDR out,
                                                          GM_ADDR shadow, GM_ADDR scales,
                                                          sigmoe::ascend::AddRmsNormTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  AscendC::TPipe pipe;
  sigmoe_add_rms_norm_kernel::AddRmsNorm kernel(pipe, residual, addend, weight, out, shadow, scales, tiling);
  kernel.process();
}
