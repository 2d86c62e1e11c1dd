// y = x W^T in INT8 (W8A8): the cube cores leave int32 sums in y, and after a barrier the vector cores turn them, in place,
// into sum * scale of the row of x * scale of the output channel. Fixpipe has no scale per row.
#include "ascend/device/linear.h"
#include "ascend/device/rows.h"

namespace sigmoe_cube_kernels {

class LinearScale {
 public:
  __aicore__ inline void init(GM_ADDR x_scales, GM_ADDR row_ids, GM_ADDR weight_scales, GM_ADDR y, const LinearTiling& t,
                              TPipe* pipe) {
    t_ = t;
    x_scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(x_scales));
    ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(row_ids));
    weight_scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weight_scales));
    sums_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(y));
    y_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(y));
    pipe->InitBuffer(scale_in_, 1, t.scale_width * sizeof(float));
    pipe->InitBuffer(sum_in_, 2, t.scale_width * sizeof(int32_t));
    pipe->InitBuffer(out_, 2, t.scale_width * sizeof(float));
  }

  __aicore__ inline void process() {
    const int32_t strips = static_cast<int32_t>(ceil_div(t_.rows, t_.scale_strip));
    const int32_t items = strips * static_cast<int32_t>(ceil_div(t_.n, t_.scale_width));
    const int32_t cores = static_cast<int32_t>(GetBlockNum() * GetSubBlockNum());
    for (int32_t item = static_cast<int32_t>(GetBlockIdx()); item < items; item += cores) {
      const int32_t column = item / strips * t_.scale_width, row = item % strips * t_.scale_strip;
      const int32_t width = column + t_.scale_width < t_.n ? t_.scale_width : t_.n - column;
      const int32_t end = row + t_.scale_strip < t_.rows ? row + t_.scale_strip : t_.rows;
      LocalTensor<float> scales = scale_in_.AllocTensor<float>();
      sigmoe_rows::load_row(scales, weight_scales_[column], width);
      scale_in_.EnQue(scales);
      scales = scale_in_.DeQue<float>();
      for (int32_t r = row; r < end; ++r) scale_row(r, column, width, scales);
      scale_in_.FreeTensor(scales);
    }
  }

 private:
  __aicore__ inline void scale_row(int32_t row, int32_t column, int32_t width, const LocalTensor<float>& scales) {
    const int64_t at = static_cast<int64_t>(row) * t_.n + column;
    LocalTensor<int32_t> sums = sum_in_.AllocTensor<int32_t>();
    sigmoe_rows::load_row(sums, sums_[at], width);
    sum_in_.EnQue(sums);
    sums = sum_in_.DeQue<int32_t>();
    LocalTensor<float> out = out_.AllocTensor<float>();
    Cast(out, sums, RoundMode::CAST_NONE, width);
    sum_in_.FreeTensor(sums);
    PipeBarrier<PIPE_V>();
    Mul(out, out, scales, width);
    PipeBarrier<PIPE_V>();
    Muls(out, out, x_scales_.GetValue(t_.gathered ? ids_.GetValue(row) : row), width);
    out_.EnQue(out);
    out = out_.DeQue<float>();
    sigmoe_rows::store_row(y_[at], out, width);
    out_.FreeTensor(out);
  }

  LinearTiling t_;
  GlobalTensor<float> x_scales_, weight_scales_, y_;
  GlobalTensor<int32_t> ids_, sums_;
  TQue<TPosition::VECIN, 1> scale_in_, sum_in_;
  TQue<TPosition::VECOUT, 1> out_;
};

}  // namespace sigmoe_cube_kernels

extern "C" __global__ __aicore__ void sigmoe_linear_int8(GM_ADDR x, GM_ADDR x_scales, GM_ADDR row_ids, GM_ADDR weight,
                                                         GM_ADDR weight_scales, GM_ADDR y,
                                                         sigmoe::ascend::LinearTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  AscendC::TPipe pipe;
  if ASCEND_IS_AIC {
    sigmoe_cube_kernels::linear_tiles<int8_t>(x, row_ids, weight, y, tiling, &pipe);
  }
  AscendC::SyncAll<false>();
  if ASCEND_IS_AIV {
    sigmoe_cube_kernels::LinearScale scale;
    scale.init(x_scales, row_ids, weight_scales, y, tiling, &pipe);
    scale.process();
  }
}
