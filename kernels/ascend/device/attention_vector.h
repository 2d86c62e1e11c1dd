// The vector half of attention: q for the cube, the softmax of a chunk, the running sums, and the splits of a token put
// together.
#pragma once

#include "ascend/device/attention.h"
#include "ascend/device/rows.h"

namespace sigmoe_cube_kernels {

class AttentionVector {
 public:
  static constexpr int32_t kRows = kAttentionRows / 2;  // of a tile that one vector core has, at most
  static constexpr int32_t kLanes = 64;                 // floats of a vector instruction
  static constexpr int32_t kSame = 8;                   // floats of a block: a scalar of a row, repeated
  static constexpr int32_t kPiece = kRows * kAttentionChunk;
  static constexpr float kNever = -1.0e30f;  // finite, so that rows without a valid position stay free of NaN

  __aicore__ inline void init(const AttentionMemory& memory, const AttentionTiling& t, TPipe* pipe) {
    memory_ = memory;
    t_ = t;
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
    out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.out));
    shadow_bf16_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(memory.shadow));
    shadow_int8_.SetGlobalBuffer(reinterpret_cast<__gm__ int8_t*>(memory.shadow));
    scales_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.scales));
    pipe->InitBuffer(wide_in_, 2, kPiece * sizeof(float));
    pipe->InitBuffer(small_in_, 1, kMaxAttentionWidth * sizeof(float));
    pipe->InitBuffer(narrow_out_, 1, kPiece * sizeof(bfloat16_t));
    pipe->InitBuffer(sums_out_, 1, kMaxAttentionWidth * sizeof(float));
    pipe->InitBuffer(scalars_out_, 2, 2 * kRows * kSame * sizeof(float));
    pipe->InitBuffer(work_, 3 * kMaxHeads * kSame * sizeof(float));
    pipe->InitBuffer(rows_, 6 * kRows * sizeof(float));
  }

  // The queries in BF16.
  __aicore__ inline void narrow_queries() {
    const int64_t n = static_cast<int64_t>(t_.tokens) * t_.heads * t_.head_dim;
    for (int64_t at = static_cast<int64_t>(core_) * kPiece; at < n; at += static_cast<int64_t>(cores_) * kPiece) {
      const int32_t count = static_cast<int32_t>(at + kPiece < n ? kPiece : n - at);
      LocalTensor<float> wide = copy_in(wide_in_, q_[at], count);
      LocalTensor<bfloat16_t> narrow = narrow_out_.AllocTensor<bfloat16_t>();
      Cast(narrow, wide, RoundMode::CAST_RINT, count);
      wide_in_.FreeTensor(wide);
      copy_out(narrow_out_, q_narrow_[at], narrow, count);
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

  // out of every token, dealt out one by one.
  __aicore__ inline void put_together() {
    for (int32_t token = core_; token < t_.tokens; token += cores_) {
      LocalTensor<float> sums = sums_out_.AllocTensor<float>();
      add_splits(token, sums);
      write_token(token, sums);
    }
  }

 private:
  template <typename Q, typename V>
  __aicore__ inline static LocalTensor<V> copy_in(Q& queue, const GlobalTensor<V>& from, int32_t n) {
    LocalTensor<V> in = queue.template AllocTensor<V>();
    sigmoe_rows::load_row(in, from, n);
    queue.EnQue(in);
    return queue.template DeQue<V>();
  }

  template <typename Q, typename V>
  __aicore__ inline static void copy_out(Q& queue, const GlobalTensor<V>& to, LocalTensor<V>& from, int32_t n) {
    queue.EnQue(from);
    from = queue.template DeQue<V>();
    sigmoe_rows::store_row(to, from, n);
    queue.FreeTensor(from);
  }

  // Scalars of this core's rows: their highest score so far, the total of exp(score - highest), and what is new of a chunk.
  __aicore__ inline LocalTensor<float> row_scalars(int32_t which) { return rows_.Get<float>()[which * kRows]; }
  __aicore__ inline LocalTensor<float> highest() { return row_scalars(0); }
  __aicore__ inline LocalTensor<float> total() { return row_scalars(1); }
  __aicore__ inline LocalTensor<float> new_highest() { return row_scalars(2); }
  __aicore__ inline LocalTensor<float> new_total() { return row_scalars(3); }
  __aicore__ inline LocalTensor<float> decay(int32_t chunk) { return row_scalars(4 + chunk % 2); }

  // A scalar of each row in a block of its own, as an operand that an instruction uses for all its lanes.
  __aicore__ inline LocalTensor<float> spread(const LocalTensor<float>& scalars) {
    LocalTensor<float> blocks = work_.Get<float>();
    Brcb(blocks, scalars, static_cast<uint8_t>(ceil_div(n_rows_, kSame)), BrcbRepeatParams{1, kSame});
    PipeBarrier<PIPE_V>();
    return blocks;
  }

  __aicore__ inline void begin_item() {
    sums_ = sums_out_.AllocTensor<float>();
    if (n_rows_ == 0) return;
    PipeBarrier<PIPE_V>();
    Duplicate(sums_, 0.0f, n_rows_ * t_.head_dim);
    Duplicate(rows_.Get<float>(), 0.0f, 6 * kRows);
    PipeBarrier<PIPE_V>();
    Duplicate(highest(), kNever, kRows);
    PipeBarrier<PIPE_V>();
  }

  // Positions of chunk c that row r may not see get a score that no exp tells from minus infinity.
  __aicore__ inline void hide_later(const LocalTensor<float>& scores, int32_t chunk) {
    const int32_t first = item_.begin + chunk * kAttentionChunk;
    for (int32_t row = 0; row < n_rows_; ++row) {
      const int32_t position = positions_.GetValue(item_.token + (first_row_ + row) / ratio_);
      const int32_t seen = position < first ? 0 : position - first + 1;
      if (seen >= kAttentionChunk) continue;
      int32_t lane = seen / kLanes * kLanes;
      if (seen > lane) {
        uint64_t mask[2] = {~uint64_t{0} << (seen - lane), 0};
        Duplicate(scores[row * kAttentionChunk + lane], kNever, mask, 1, 1, 8);
        lane += kLanes;
      }
      if (lane < kAttentionChunk) Duplicate(scores[row * kAttentionChunk + lane], kNever, kAttentionChunk - lane);
    }
    PipeBarrier<PIPE_V>();
  }

  // work (rows, 64) = the four quarters of each row joined by Max or Add.
  template <bool kMax>
  __aicore__ inline LocalTensor<float> join_quarters(const LocalTensor<float>& rows) {
    constexpr uint8_t kPitch = kAttentionChunk * sizeof(float) / kBlockBytes;
    LocalTensor<float> joined = small_in_scratch_;
    const uint8_t n = static_cast<uint8_t>(n_rows_);
    for (int32_t lane = kLanes; lane < kAttentionChunk; lane += kLanes) {
      const bool start = lane == kLanes;
      const BinaryRepeatParams step{1, 1, 1, 8, static_cast<uint8_t>(start ? kPitch : 8), kPitch};
      if constexpr (kMax)
        Max(joined, start ? rows : joined, rows[lane], kLanes, n, step);
      else
        Add(joined, start ? rows : joined, rows[lane], kLanes, n, step);
      PipeBarrier<PIPE_V>();
    }
    return joined;
  }

  __aicore__ inline void probs(int32_t chunk) {
    CrossCoreWaitFlag(kScoresReady);
    if (n_rows_ > 0) {
      const int32_t n = n_rows_ * kAttentionChunk;
      constexpr uint8_t kPitch = kAttentionChunk * sizeof(float) / kBlockBytes;
      const int64_t at = attention_slot(group_, chunk, kAttentionChunk) + first_row_ * kAttentionChunk;
      LocalTensor<float> scores = copy_in(wide_in_, scores_[at], n);
      small_in_scratch_ = small_in_.AllocTensor<float>();
      Muls(scores, scores, t_.scale, n);
      PipeBarrier<PIPE_V>();
      hide_later(scores, chunk);
      const LocalTensor<float> highest_of_lanes = join_quarters<true>(scores);
      WholeReduceMax(new_highest(), highest_of_lanes, kLanes, n_rows_, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
      PipeBarrier<PIPE_V>();
      Max(new_highest(), new_highest(), highest(), n_rows_);
      PipeBarrier<PIPE_V>();
      Sub(decay(chunk), highest(), new_highest(), n_rows_);
      PipeBarrier<PIPE_V>();
      Exp(decay(chunk), decay(chunk), n_rows_);
      Muls(highest(), new_highest(), 1.0f, n_rows_);
      PipeBarrier<PIPE_V>();
      const LocalTensor<float> blocks = spread(highest());
      for (int32_t lane = 0; lane < kAttentionChunk; lane += kLanes)
        Sub(scores[lane], scores[lane], blocks, kLanes, static_cast<uint8_t>(n_rows_),
            BinaryRepeatParams{1, 1, 0, kPitch, kPitch, 1});
      PipeBarrier<PIPE_V>();
      Exp(scores, scores, n);
      PipeBarrier<PIPE_V>();
      LocalTensor<bfloat16_t> narrow = narrow_out_.AllocTensor<bfloat16_t>();
      Cast(narrow, scores, RoundMode::CAST_RINT, n);
      const LocalTensor<float> totals_of_lanes = join_quarters<false>(scores);
      WholeReduceSum(new_total(), totals_of_lanes, kLanes, n_rows_, 1, 1, 8);
      Mul(total(), total(), decay(chunk), n_rows_);
      PipeBarrier<PIPE_V>();
      Add(total(), total(), new_total(), n_rows_);
      PipeBarrier<PIPE_V>();
      small_in_.FreeTensor(small_in_scratch_);
      wide_in_.FreeTensor(scores);
      copy_out(narrow_out_, probs_[at], narrow, n);
    }
    CrossCoreSetFlag<2, PIPE_MTE3>(kProbsReady);
  }

  // rows (n, Dh) times a scalar of each row.
  __aicore__ inline void scale_rows(const LocalTensor<float>& rows, const LocalTensor<float>& blocks, int32_t n) {
    const uint8_t pitch = static_cast<uint8_t>(t_.head_dim * sizeof(float) / kBlockBytes);
    for (int32_t lane = 0; lane < t_.head_dim; lane += kLanes)
      Mul(rows[lane], rows[lane], blocks, static_cast<uint64_t>(lane + kLanes < t_.head_dim ? kLanes : t_.head_dim - lane),
          static_cast<uint8_t>(n), BinaryRepeatParams{1, 1, 0, pitch, pitch, 1});
    PipeBarrier<PIPE_V>();
  }

  __aicore__ inline void accumulate(int32_t chunk) {
    CrossCoreWaitFlag(kValuesReady);
    if (n_rows_ == 0) return;
    const int32_t n = n_rows_ * t_.head_dim;
    LocalTensor<float> values =
        copy_in(small_in_, values_[attention_slot(group_, chunk, t_.head_dim) + first_row_ * t_.head_dim], n);
    scale_rows(sums_, spread(decay(chunk)), n_rows_);
    Add(sums_, sums_, values, n);
    PipeBarrier<PIPE_V>();
    small_in_.FreeTensor(values);
  }

  __aicore__ inline void end_item() {
    sums_out_.EnQue(sums_);
    sums_ = sums_out_.DeQue<float>();
    if (n_rows_ > 0) {
      LocalTensor<float> scalars = scalars_out_.AllocTensor<float>();
      const uint8_t repeats = static_cast<uint8_t>(ceil_div(n_rows_, kSame));
      Brcb(scalars, highest(), repeats, BrcbRepeatParams{1, kSame});
      Brcb(scalars[kRows * kSame], total(), repeats, BrcbRepeatParams{1, kSame});
      scalars_out_.EnQue(scalars);
      scalars = scalars_out_.DeQue<float>();
      for (int32_t row = 0; row < n_rows_; ++row) {
        const int32_t token = item_.token + (first_row_ + row) / ratio_, head = (first_row_ + row) % ratio_;
        const int64_t part = part_of(token, item_.split) + item_.kv_head * ratio_ + head;
        DataCopy(part_sums_[part * t_.head_dim], sums_[row * t_.head_dim], t_.head_dim);
        DataCopy(part_highest_[part * kSame], scalars[row * kSame], kSame);
        DataCopy(part_total_[part * kSame], scalars[(kRows + row) * kSame], kSame);
      }
      scalars_out_.FreeTensor(scalars);
    }
    sums_out_.FreeTensor(sums_);
  }

  // Number of the first head of a token's split.
  __aicore__ inline int64_t part_of(int32_t token, int32_t split) const {
    return (static_cast<int64_t>(token) * t_.max_splits + split) * t_.heads;
  }

  // sums (H, Dh) = softmax-weighted sums of the splits that the token's position reaches.
  __aicore__ inline void add_splits(int32_t token, const LocalTensor<float>& sums) {
    const int32_t splits = static_cast<int32_t>(ceil_div(positions_.GetValue(token) + 1, t_.split_tokens));
    const int32_t n = t_.heads * kSame, width = t_.heads * t_.head_dim;
    LocalTensor<float> highest = work_.Get<float>(), total = highest[kMaxHeads * kSame], share = highest[2 * kMaxHeads * kSame];
    PipeBarrier<PIPE_V>();
    Duplicate(highest, kNever, n);
    Duplicate(total, 0.0f, n);
    Duplicate(sums, 0.0f, width);
    PipeBarrier<PIPE_V>();
    for (int32_t split = 0; split < splits; ++split) {
      LocalTensor<float> other = copy_in(small_in_, part_highest_[part_of(token, split) * kSame], n);
      Max(highest, highest, other, n);
      PipeBarrier<PIPE_V>();
      small_in_.FreeTensor(other);
    }
    for (int32_t split = 0; split < splits; ++split) {
      LocalTensor<float> other = copy_in(small_in_, part_highest_[part_of(token, split) * kSame], n);
      Sub(share, other, highest, n);
      PipeBarrier<PIPE_V>();
      small_in_.FreeTensor(other);
      Exp(share, share, n);
      PipeBarrier<PIPE_V>();
      other = copy_in(small_in_, part_total_[part_of(token, split) * kSame], n);
      Mul(other, other, share, n);
      PipeBarrier<PIPE_V>();
      Add(total, total, other, n);
      PipeBarrier<PIPE_V>();
      small_in_.FreeTensor(other);
      LocalTensor<float> part = copy_in(wide_in_, part_sums_[part_of(token, split) * t_.head_dim], width);
      scale_rows(part, share, t_.heads);
      Add(sums, sums, part, width);
      PipeBarrier<PIPE_V>();
      wide_in_.FreeTensor(part);
    }
    Duplicate(share, 1.0f, n);
    PipeBarrier<PIPE_V>();
    Div(share, share, total, n);
    PipeBarrier<PIPE_V>();
    scale_rows(sums, share, t_.heads);
  }

  __aicore__ inline void write_token(int32_t token, LocalTensor<float>& sums) {
    const int32_t width = t_.heads * t_.head_dim;
    const int64_t narrow_at = static_cast<int64_t>(token) * t_.shadow_pitch;
    if (t_.shadow == kShadowBf16) {
      LocalTensor<bfloat16_t> narrow = narrow_out_.AllocTensor<bfloat16_t>();
      Cast(narrow, sums, RoundMode::CAST_RINT, width);
      copy_out(narrow_out_, shadow_bf16_[narrow_at], narrow, width);
    } else if (t_.shadow == kShadowInt8) {
      LocalTensor<float> copy = wide_in_.AllocTensor<float>(), work = wide_in_.AllocTensor<float>();
      Muls(copy, sums, 1.0f, width);
      LocalTensor<int8_t> codes = narrow_out_.AllocTensor<int8_t>();
      const float scale = sigmoe_rows::quantise_row(codes, copy, work, width);
      wide_in_.FreeTensor(copy);
      wide_in_.FreeTensor(work);
      copy_out(narrow_out_, shadow_int8_[narrow_at], codes, width);
      LocalTensor<float> scalar = scalars_out_.AllocTensor<float>();
      Duplicate(scalar, scale, kSame);
      copy_out(scalars_out_, scales_[token], scalar, 1);
    }
    copy_out(sums_out_, out_[static_cast<int64_t>(token) * width], sums, width);
  }

  AttentionMemory memory_;
  AttentionTiling t_;
  AttentionItem item_;
  int32_t core_ = 0, group_ = 0, cores_ = 1, ratio_ = 1, first_row_ = 0, n_rows_ = 0;
  LocalTensor<float> sums_, small_in_scratch_;
  GlobalTensor<float> q_, scores_, values_, part_sums_, part_highest_, part_total_, out_, scales_;
  GlobalTensor<bfloat16_t> q_narrow_, probs_, shadow_bf16_;
  GlobalTensor<int8_t> shadow_int8_;
  GlobalTensor<int32_t> positions_;
  TQue<TPosition::VECIN, 1> wide_in_, small_in_;
  TQue<TPosition::VECOUT, 1> narrow_out_, sums_out_, scalars_out_;
  TBuf<TPosition::VECCALC> work_, rows_;
};

}  // namespace sigmoe_cube_kernels
