// The last stage of attention: the splits of a token put together, weighted by exp(their highest score - the highest), and the
// narrow copy of the result that the next product reads.
#pragma once

#include "ascend/device/attention_buffers.h"

namespace sigmoe_cube_kernels {

class AttentionMerge {
 public:
  __aicore__ inline void init(const AttentionMemory& memory, const AttentionTiling& t, AttentionBuffers* buffers) {
    t_ = t;
    b_ = buffers;
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.positions));
    part_sums_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.part_sums_at));
    part_highest_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.part_highest_at));
    part_total_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.part_total_at));
    out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.out));
    shadow_bf16_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(memory.shadow));
    shadow_int8_.SetGlobalBuffer(reinterpret_cast<__gm__ int8_t*>(memory.shadow));
    scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.scales));
  }

  // out of every token, dealt out one by one.
  __aicore__ inline void process() {
    const int32_t cores = static_cast<int32_t>(GetBlockNum() * GetSubBlockNum());
    for (int32_t token = static_cast<int32_t>(GetBlockIdx()); token < t_.tokens; token += cores) {
      LocalTensor<float> sums = b_->sums_out.AllocTensor<float>();
      add_splits(token, sums);
      write_token(token, sums);
    }
  }

 private:
  // sums (H, Dh) = softmax-weighted sums of the splits that the token's position reaches.
  __aicore__ inline void add_splits(int32_t token, const LocalTensor<float>& sums) {
    const int32_t splits = static_cast<int32_t>(ceil_div(positions_.GetValue(token) + 1, t_.split_tokens));
    const int32_t n = t_.heads * kSame, width = t_.heads * t_.head_dim;
    LocalTensor<float> highest = b_->work.Get<float>(), total = highest[kMaxHeads * kSame],
                       share = highest[2 * kMaxHeads * kSame];
    PipeBarrier<PIPE_V>();
    Duplicate(highest, kNever, n);
    Duplicate(total, 0.0f, n);
    Duplicate(sums, 0.0f, width);
    PipeBarrier<PIPE_V>();
    for (int32_t split = 0; split < splits; ++split) {
      LocalTensor<float> other = copy_in(b_->small_in, part_highest_[part_of(t_, token, split) * kSame], n);
      Max(highest, highest, other, n);
      PipeBarrier<PIPE_V>();
      b_->small_in.FreeTensor(other);
    }
    for (int32_t split = 0; split < splits; ++split) {
      LocalTensor<float> other = copy_in(b_->small_in, part_highest_[part_of(t_, token, split) * kSame], n);
      Sub(share, other, highest, n);
      PipeBarrier<PIPE_V>();
      b_->small_in.FreeTensor(other);
      Exp(share, share, n);
      PipeBarrier<PIPE_V>();
      other = copy_in(b_->small_in, part_total_[part_of(t_, token, split) * kSame], n);
      Mul(other, other, share, n);
      PipeBarrier<PIPE_V>();
      Add(total, total, other, n);
      PipeBarrier<PIPE_V>();
      b_->small_in.FreeTensor(other);
      LocalTensor<float> part = copy_in(b_->wide_in, part_sums_[part_of(t_, token, split) * t_.head_dim], width);
      scale_rows(part, share, t_.heads, t_.head_dim);
      Add(sums, sums, part, width);
      PipeBarrier<PIPE_V>();
      b_->wide_in.FreeTensor(part);
    }
    Duplicate(share, 1.0f, n);
    PipeBarrier<PIPE_V>();
    Div(share, share, total, n);
    PipeBarrier<PIPE_V>();
    scale_rows(sums, share, t_.heads, t_.head_dim);
  }

  __aicore__ inline void write_token(int32_t token, LocalTensor<float>& sums) {
    const int32_t width = t_.heads * t_.head_dim;
    const int64_t narrow_at = static_cast<int64_t>(token) * t_.shadow_pitch;
    if (t_.shadow == kShadowBf16) {
      LocalTensor<bfloat16_t> narrow = b_->narrow_out.AllocTensor<bfloat16_t>();
      Cast(narrow, sums, RoundMode::CAST_RINT, width);
      copy_out(b_->narrow_out, shadow_bf16_[narrow_at], narrow, width);
    } else if (t_.shadow == kShadowInt8) {
      LocalTensor<float> copy = b_->wide_in.AllocTensor<float>(), work = b_->wide_in.AllocTensor<float>();
      Muls(copy, sums, 1.0f, width);
      LocalTensor<int8_t> codes = b_->narrow_out.AllocTensor<int8_t>();
      const float scale = sigmoe_rows::quantise_row(codes, copy, work, width);
      b_->wide_in.FreeTensor(copy);
      b_->wide_in.FreeTensor(work);
      copy_out(b_->narrow_out, shadow_int8_[narrow_at], codes, width);
      LocalTensor<float> scalar = b_->scalars_out.AllocTensor<float>();
      Duplicate(scalar, scale, kSame);
      copy_out(b_->scalars_out, scales_[token], scalar, 1);
    }
    copy_out(b_->sums_out, out_[static_cast<int64_t>(token) * width], sums, width);
  }

  AttentionTiling t_;
  AttentionBuffers* b_ = nullptr;
  GlobalTensor<float> part_sums_, part_highest_, part_total_, out_, scales_;
  GlobalTensor<bfloat16_t> shadow_bf16_;
  GlobalTensor<int8_t> shadow_int8_;
  GlobalTensor<int32_t> positions_;
};

}  // namespace sigmoe_cube_kernels
