// Row i of n_rows: `width` elements from source row from_ids[i] to target row to_ids[i] (null ids: row i), F32 or BF16 in, F32,
// BF16 or INT8 with a float scale per row out. Embedding rows, picked rows, and what the cube reads of float rows.
// Vector cores; a row in chunks of what UB holds, two buffers deep. Bound: memory.
#include "ascend/device/args/convert_rows.h"

#include "ascend/device/rows.h"
#include "kernel_operator.h"

namespace sigmoe_convert_rows_kernel {

using namespace AscendC;
using namespace sigmoe_rows;
using sigmoe::ascend::ConvertRowsTiling;
using sigmoe::ascend::kRowBf16;
using sigmoe::ascend::kRowF32;
using sigmoe::ascend::kRowInt8;

class ConvertRows {
 public:
  __aicore__ inline ConvertRows(TPipe& pipe, GM_ADDR from, GM_ADDR from_ids, GM_ADDR to, GM_ADDR to_ids, GM_ADDR scales,
                                const ConvertRowsTiling& tiling)
      : t_(tiling) {
    from_f32_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(from));
    from_bf16_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(from));
    from_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(from_ids));
    to_f32_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(to));
    to_bf16_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(to));
    to_int8_.SetGlobalBuffer(reinterpret_cast<__gm__ int8_t*>(to));
    to_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(to_ids));
    scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(scales));
    const int32_t chunk = (t_.chunk + 31) / 32 * 32;
    const bool whole = t_.to_type == kRowInt8;
    pipe.InitBuffer(in_, whole ? 1 : 2, chunk * (t_.from_type == kRowBf16 ? 2 : 4));
    pipe.InitBuffer(out_, whole ? 1 : 2, chunk * (t_.to_type == kRowInt8 ? 1 : t_.to_type == kRowBf16 ? 2 : 4));
    pipe.InitBuffer(wide_buffer_, chunk * 4);
    if (whole) {
      pipe.InitBuffer(work_buffer_, chunk * 4);
      pipe.InitBuffer(scale_out_, 2, kUbBlock);
    }
  }

  __aicore__ inline void process() {
    const int32_t first = static_cast<int32_t>(GetBlockIdx()) * t_.rows_per_core;
    int32_t end = first + t_.rows_per_core;
    if (end > t_.n_rows) end = t_.n_rows;
    for (int32_t row = first; row < end; ++row) {
      const int64_t from = (t_.has_from_ids ? from_ids_.GetValue(row) : row) * t_.from_stride;
      const int64_t target = t_.has_to_ids ? to_ids_.GetValue(row) : row;
      for (int32_t column = 0; column < t_.width; column += t_.chunk) {
        const int32_t n = t_.width - column < t_.chunk ? t_.width - column : t_.chunk;
        convert(from + column, target, column, n);
      }
    }
  }

 private:
  __aicore__ inline void convert(int64_t from, int64_t target, int32_t column, int32_t n) {
    LocalTensor<float> wide = wide_buffer_.Get<float>();
    PipeBarrier<PIPE_V>();  // what was in wide has been written out of it
    if (t_.from_type == kRowBf16) {
      LocalTensor<bfloat16_t> source = in_.AllocTensor<bfloat16_t>();
      load_row(source, from_bf16_[from], n);
      in_.EnQue(source);
      source = in_.DeQue<bfloat16_t>();
      Cast(wide, source, RoundMode::CAST_NONE, n);
      in_.FreeTensor(source);
    } else {
      LocalTensor<float> source = in_.AllocTensor<float>();
      load_row(source, from_f32_[from], n);
      in_.EnQue(source);
      source = in_.DeQue<float>();
      Muls(wide, source, 1.0f, n);
      in_.FreeTensor(source);
    }
    PipeBarrier<PIPE_V>();
    const int64_t to = target * t_.to_stride + column;
    if (t_.to_type == kRowF32) {
      LocalTensor<float> result = out_.AllocTensor<float>();
      Muls(result, wide, 1.0f, n);
      store(to_f32_[to], result, n);
    } else if (t_.to_type == kRowBf16) {
      LocalTensor<bfloat16_t> result = out_.AllocTensor<bfloat16_t>();
      Cast(result, wide, RoundMode::CAST_RINT, n);
      store(to_bf16_[to], result, n);
    } else {
      LocalTensor<int8_t> codes = out_.AllocTensor<int8_t>();
      const float scale = quantise_row(codes, wide, work_buffer_.Get<float>(), n);
      store(to_int8_[to], codes, n);
      LocalTensor<float> one = scale_out_.AllocTensor<float>();
      Duplicate(one, scale, kUbBlock / static_cast<int32_t>(sizeof(float)));
      scale_out_.EnQue(one);
      one = scale_out_.DeQue<float>();
      store_row(scales_[target], one, 1);
      scale_out_.FreeTensor(one);
    }
  }

  template <typename T>
  __aicore__ inline void store(const GlobalTensor<T>& to, LocalTensor<T>& result, int32_t n) {
    out_.EnQue(result);
    result = out_.template DeQue<T>();
    store_row(to, result, n);
    out_.FreeTensor(result);
  }

  ConvertRowsTiling t_;
  GlobalTensor<float> from_f32_, to_f32_, scales_;
  GlobalTensor<bfloat16_t> from_bf16_, to_bf16_;
  GlobalTensor<int8_t> to_int8_;
  GlobalTensor<int32_t> from_ids_, to_ids_;
  TQue<TPosition::VECIN, 1> in_;
  TQue<TPosition::VECOUT, 1> out_, scale_out_;
  TBuf<TPosition::VECCALC> wide_buffer_, work_buffer_;
};

}  // namespace sigmoe_convert_rows_kernel

extern "C" __global__ __aicore__ void sigmoe_convert_rows(GM_ADDR from, GM_ADDR from_ids, GM_ADDR to, GM_ADDR to_ids,
                                                          GM_ADDR scales, sigmoe::ascend::ConvertRowsTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  AscendC::TPipe pipe;
  sigmoe_convert_rows_kernel::ConvertRows kernel(pipe, from, from_ids, to, to_ids, scales, tiling);
  kernel.process();
}
