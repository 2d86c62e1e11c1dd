// The vector half of attention: q for the cube, the softmax of a chunk, the running sums, and the splits of a token put
// together.
#pragma once

#include "ascend/device/attention_buffers.h"

namespace sigmoe_cube_kernels {

class AttentionVector {
 public:
  __aicore__ inline void init(const AttentionMemory& memory, const AttentionTiling& t, AttentionBuffers* buffers) {
    memory_ = memory;
    t_ = t;
    b_ = buffers;
    core_ = static_cast<int32_t>(GetBlockIdx());
    group_ = core_ / static_cast<int32_t>(GetSubBlockNum());
    cores_ = static_cast<int32_t>(GetBlockNum() * GetSubBlockNum());
    ratio_ = t.heads / t.kv_heads;
    q_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.q));
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.positions));
    q_narrow_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(memory.work));
    scores_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.scores_at));
    probs_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(memory.work + t.probs_at));
    values_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.values_at));
    part_sums_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.part_sums_at));
    part_highest_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.part_highest_at));
    part_total_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.part_total_at));
  }

  // The queries in BF16.
  __aicore__ inline void narrow_queries() {
    const int64_t n = static_cast<int64_t>(t_.tokens) * t_.heads * t_.head_dim;
    for (int64_t at = static_cast<int64_t>(core_) * kScores; at < n; at += static_cast<int64_t>(cores_) * kScores) {
      const int32_t count = static_cast<int32_t>(at + kScores < n ? kScores : n - at);
      LocalTensor<float> wide = copy_in(b_->wide_in, q_[at], count);
      LocalTensor<bfloat16_t> narrow = b_->narrow_out.AllocTensor<bfloat16_t>();
      Cast(narrow, wide, RoundMode::CAST_RINT, count);
      b_->wide_in.FreeTensor(wide);
      copy_out(b_->narrow_out, q_narrow_[at], narrow, count);
    }
  }

  __aicore__ inline void process() {
    AttentionWalk walk(memory_, t_, group_, static_cast<int32_t>(GetBlockNum()));
    while (walk.next(item_)) {
      const int32_t rows = item_.tokens * ratio_, half_rows = (rows + 1) / 2;
      first_row_ = GetSubBlockIdx() == 0 ? 0 : half_rows;
      n_rows_ = GetSubBlockIdx() == 0 ? half_rows : rows - half_rows;
      const int32_t chunks = static_cast<int32_t>(ceil_div(item_.end - item_.begin, kAttentionChunk));
      begin_item();
      probs(0);
      for (int32_t chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks) probs(chunk + 1);
        accumulate(chunk);
      }
      end_item();
    }
  }

 private:
  // Scalars of this core's rows: their highest score so far, the total of exp(score - highest), and what is new of a chunk.
  __aicore__ inline LocalTensor<float> row_scalars(int32_t which) { return b_->rows.Get<float>()[which * kVectorRows]; }
  __aicore__ inline LocalTensor<float> highest() { return row_scalars(0); }
  __aicore__ inline LocalTensor<float> total() { return row_scalars(1); }
  __aicore__ inline LocalTensor<float> new_highest() { return row_scalars(2); }
  __aicore__ inline LocalTensor<float> new_total() { return row_scalars(3); }
  __aicore__ inline LocalTensor<float> decay(int32_t chunk) { return row_scalars(4 + chunk % 2); }

  // A scalar of each row in a block of its own, as an operand that an instruction uses for all its lanes.
  __aicore__ inline LocalTensor<float> spread(const LocalTensor<float>& scalars) {
    LocalTensor<float> blocks = b_->work.Get<float>();
    Brcb(blocks, scalars, static_cast<uint8_t>(ceil_div(n_rows_, kSame)), BrcbRepeatParams{1, kSame});
    PipeBarrier<PIPE_V>();
    return blocks;
  }

  __aicore__ inline void begin_item() {
    sums_ = b_->sums_out.AllocTensor<float>();
    if (n_rows_ == 0) return;
    Duplicate(sums_, 0.0f, n_rows_ * t_.head_dim);
    Duplicate(b_->rows.Get<float>(), 0.0f, 6 * kVectorRows);
    PipeBarrier<PIPE_V>();
    Duplicate(highest(), kNever, kVectorRows);
    PipeBarrier<PIPE_V>();
  }

  // Positions of chunk c that row r may not see get a score that no exp tells from minus infinity.
  __aicore__ inline void hide_later(const LocalTensor<float>& scores, int32_t chunk) {
    const int32_t first = item_.begin + chunk * kAttentionChunk;
    for (int32_t row = 0; row < n_rows_; ++row) {
      const int32_t position = positions_.GetValue(item_.token + (first_row_ + row) / ratio_);
      const int32_t seen = position < first ? 0 : position - first + 1;
      if (seen >= kAttentionChunk) continue;
      int32_t lane = seen / kVectorLanes * kVectorLanes;
      if (seen > lane) {
        uint64_t mask[2] = {~uint64_t{0} << (seen - lane), 0};
        Duplicate(scores[row * kAttentionChunk + lane], kNever, mask, 1, 1, 8);
        lane += kVectorLanes;
      }
      if (lane < kAttentionChunk) Duplicate(scores[row * kAttentionChunk + lane], kNever, kAttentionChunk - lane);
    }
    PipeBarrier<PIPE_V>();
  }

  // work (rows, 64) = the four quarters of each row joined by Max or Add.
  template <bool kMax>
  __aicore__ inline LocalTensor<float> join_quarters(const LocalTensor<float>& rows) {
    constexpr uint8_t kPitch = kAttentionChunk * sizeof(float) / kBlockBytes;
    const uint8_t n = static_cast<uint8_t>(n_rows_);
    for (int32_t lane = kVectorLanes; lane < kAttentionChunk; lane += kVectorLanes) {
      const bool start = lane == kVectorLanes;
      const BinaryRepeatParams step{1, 1, 1, 8, static_cast<uint8_t>(start ? kPitch : 8), kPitch};
      if constexpr (kMax)
        Max(joined_, start ? rows : joined_, rows[lane], kVectorLanes, n, step);
      else
        Add(joined_, start ? rows : joined_, rows[lane], kVectorLanes, n, step);
      PipeBarrier<PIPE_V>();
    }
    return joined_;
  }

  __aicore__ inline void probs(int32_t chunk) {
    CrossCoreWaitFlag(kScoresReady);
    if (n_rows_ > 0) {
      const int32_t n = n_rows_ * kAttentionChunk;
      constexpr uint8_t kPitch = kAttentionChunk * sizeof(float) / kBlockBytes;
      const int64_t at = attention_slot(group_, chunk, kAttentionChunk) + first_row_ * kAttentionChunk;
      LocalTensor<float> scores = copy_in(b_->wide_in, scores_[at], n);
      joined_ = b_->small_in.AllocTensor<float>();
      Muls(scores, scores, t_.scale, n);
      PipeBarrier<PIPE_V>();
      hide_later(scores, chunk);
      const LocalTensor<float> highest_of_lanes = join_quarters<true>(scores);
      WholeReduceMax(new_highest(), highest_of_lanes, kVectorLanes, n_rows_, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
      PipeBarrier<PIPE_V>();
      Max(new_highest(), new_highest(), highest(), n_rows_);
      PipeBarrier<PIPE_V>();
      Sub(decay(chunk), highest(), new_highest(), n_rows_);
      PipeBarrier<PIPE_V>();
      Exp(decay(chunk), decay(chunk), n_rows_);
      Muls(highest(), new_highest(), 1.0f, n_rows_);
      PipeBarrier<PIPE_V>();
      const LocalTensor<float> blocks = spread(highest());
      for (int32_t lane = 0; lane < kAttentionChunk; lane += kVectorLanes)
        Sub(scores[lane], scores[lane], blocks, kVectorLanes, static_cast<uint8_t>(n_rows_),
            BinaryRepeatParams{1, 1, 0, kPitch, kPitch, 1});
      PipeBarrier<PIPE_V>();
      Exp(scores, scores, n);
      PipeBarrier<PIPE_V>();
      LocalTensor<bfloat16_t> narrow = b_->narrow_out.AllocTensor<bfloat16_t>();
      Cast(narrow, scores, RoundMode::CAST_RINT, n);
      const LocalTensor<float> totals_of_lanes = join_quarters<false>(scores);
      WholeReduceSum(new_total(), totals_of_lanes, kVectorLanes, n_rows_, 1, 1, 8);
      Mul(total(), total(), decay(chunk), n_rows_);
      PipeBarrier<PIPE_V>();
      Add(total(), total(), new_total(), n_rows_);
      PipeBarrier<PIPE_V>();
      b_->small_in.FreeTensor(joined_);
      b_->wide_in.FreeTensor(scores);
      copy_out(b_->narrow_out, probs_[at], narrow, n);
    }
    CrossCoreSetFlag<2, PIPE_MTE3>(kProbsReady);
  }

  __aicore__ inline void accumulate(int32_t chunk) {
    CrossCoreWaitFlag(kValuesReady);
    if (n_rows_ == 0) return;
    const int32_t n = n_rows_ * t_.head_dim;
    LocalTensor<float> values =
        copy_in(b_->small_in, values_[attention_slot(group_, chunk, t_.head_dim) + first_row_ * t_.head_dim], n);
    scale_rows(sums_, spread(decay(chunk)), n_rows_, t_.head_dim);
    Add(sums_, sums_, values, n);
    PipeBarrier<PIPE_V>();
    b_->small_in.FreeTensor(values);
  }

  __aicore__ inline void end_item() {
    b_->sums_out.EnQue(sums_);
    sums_ = b_->sums_out.DeQue<float>();
    if (n_rows_ > 0) {
      LocalTensor<float> scalars = b_->scalars_out.AllocTensor<float>();
      const uint8_t repeats = static_cast<uint8_t>(ceil_div(n_rows_, kSame));
      Brcb(scalars, highest(), repeats, BrcbRepeatParams{1, kSame});
      Brcb(scalars[kVectorRows * kSame], total(), repeats, BrcbRepeatParams{1, kSame});
      b_->scalars_out.EnQue(scalars);
      scalars = b_->scalars_out.DeQue<float>();
      for (int32_t row = 0; row < n_rows_; ++row) {
        const int32_t token = item_.token + (first_row_ + row) / ratio_, head = (first_row_ + row) % ratio_;
        const int64_t part = part_of(t_, token, item_.split) + item_.kv_head * ratio_ + head;
        DataCopy(part_sums_[part * t_.head_dim], sums_[row * t_.head_dim], t_.head_dim);
        DataCopy(part_highest_[part * kSame], scalars[row * kSame], kSame);
        DataCopy(part_total_[part * kSame], scalars[(kVectorRows + row) * kSame], kSame);
      }
      b_->scalars_out.FreeTensor(scalars);
    }
    b_->sums_out.FreeTensor(sums_);
  }

  AttentionMemory memory_;
  AttentionTiling t_;
  AttentionItem item_;
  AttentionBuffers* b_ = nullptr;
  int32_t core_ = 0, group_ = 0, cores_ = 1, ratio_ = 1, first_row_ = 0, n_rows_ = 0;
  LocalTensor<float> sums_, joined_;
  GlobalTensor<float> q_, scores_, values_, part_sums_, part_highest_, part_total_;
  GlobalTensor<bfloat16_t> q_narrow_, probs_;
  GlobalTensor<int32_t> positions_;
};

}  // namespace sigmoe_cube_kernels
