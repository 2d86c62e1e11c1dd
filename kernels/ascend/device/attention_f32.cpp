// Attention over a float32 cache, for the float32 mode: softmax(q k^T / sqrt(Dh)) v on the vector cores alone, one token and KV
// head at a time, 32 positions at a time. Plain rather than fast; the fast one is attention_bf16.
#include "ascend/device/args/attention.h"
#include "ascend/device/rows.h"
#include "kernel_operator.h"

namespace sigmoe_attention_f32_kernel {

using namespace AscendC;
using namespace sigmoe::ascend;

class Attention {
 public:
  static constexpr int32_t kPositions = 32;  // of a piece of the cache; it lies in one page
  static constexpr int32_t kLanes = 64;      // floats of a vector instruction
  static constexpr int32_t kSame = 8;        // floats of a block: a scalar of a row, repeated
  static constexpr float kNever = -1.0e30f;

  __aicore__ inline Attention(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR positions, GM_ADDR seq_offsets, GM_ADDR page_tables,
                              GM_ADDR out, const AttentionTiling& t, TPipe* pipe)
      : t_(t), ratio_(t.heads / t.kv_heads), pitch_(static_cast<uint8_t>(t.head_dim / kSame)) {
    q_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(q));
    k_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(k));
    v_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(v));
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(positions));
    seq_offsets_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(seq_offsets));
    page_tables_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(page_tables));
    out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(out));
    const uint32_t heads_bytes = static_cast<uint32_t>(ratio_ * t.head_dim * sizeof(float));
    const uint32_t piece_bytes = static_cast<uint32_t>(kPositions * t.head_dim * sizeof(float));
    pipe->InitBuffer(q_in_, 1, heads_bytes);
    pipe->InitBuffer(kv_in_, 1, piece_bytes);
    pipe->InitBuffer(sums_out_, 1, heads_bytes);
    pipe->InitBuffer(products_, piece_bytes);
    pipe->InitBuffer(scores_, kAttentionRows * kPositions * sizeof(float));
    pipe->InitBuffer(blocks_, kAttentionRows * kSame * sizeof(float));
    pipe->InitBuffer(heads_, 5 * kAttentionRows * sizeof(float));
  }

  __aicore__ inline void process() {
    const int32_t cores = static_cast<int32_t>(GetBlockNum()), items = t_.tokens * t_.kv_heads;
    int32_t seq = 0;
    for (int32_t item = static_cast<int32_t>(GetBlockIdx()); item < items; item += cores) {
      const int32_t token = item / t_.kv_heads;
      while (token >= seq_offsets_.GetValue(seq + 1)) ++seq;
      attend(token, item % t_.kv_heads, seq);
    }
  }

 private:
  // Scalars of the query heads.
  __aicore__ inline LocalTensor<float> scalars(int32_t which) { return heads_.Get<float>()[which * kAttentionRows]; }
  __aicore__ inline LocalTensor<float> highest() { return scalars(0); }
  __aicore__ inline LocalTensor<float> total() { return scalars(1); }
  __aicore__ inline LocalTensor<float> decay() { return scalars(2); }
  __aicore__ inline LocalTensor<float> new_highest() { return scalars(3); }
  __aicore__ inline LocalTensor<float> new_total() { return scalars(4); }

  __aicore__ inline LocalTensor<float> spread(const LocalTensor<float>& from, int32_t n) {
    LocalTensor<float> blocks = blocks_.Get<float>();
    Brcb(blocks, from, static_cast<uint8_t>((n + kSame - 1) / kSame), BrcbRepeatParams{1, kSame});
    PipeBarrier<PIPE_V>();
    return blocks;
  }

  __aicore__ inline uint64_t lanes_from(int32_t lane) const {
    return static_cast<uint64_t>(lane + kLanes < t_.head_dim ? kLanes : t_.head_dim - lane);
  }

  __aicore__ inline void attend(int32_t token, int32_t kv_head, int32_t seq) {
    const int32_t length = positions_.GetValue(token) + 1, width = ratio_ * t_.head_dim;
    const int64_t at = (static_cast<int64_t>(token) * t_.heads + kv_head * ratio_) * t_.head_dim;
    LocalTensor<float> q = q_in_.AllocTensor<float>();
    sigmoe_rows::load_row(q, q_[at], width);
    q_in_.EnQue(q);
    q = q_in_.DeQue<float>();
    LocalTensor<float> sums = sums_out_.AllocTensor<float>();
    PipeBarrier<PIPE_V>();
    Duplicate(heads_.Get<float>(), 0.0f, 5 * kAttentionRows);
    Duplicate(sums, 0.0f, width);
    PipeBarrier<PIPE_V>();
    Duplicate(highest(), kNever, kAttentionRows);
    PipeBarrier<PIPE_V>();
    for (int32_t first = 0; first < length; first += kPositions) {
      const int32_t n = first + kPositions < length ? kPositions : length - first;
      const int64_t page = page_tables_.GetValue(static_cast<int64_t>(seq) * t_.max_pages + first / kPagePositions);
      const int64_t cached = ((page * t_.kv_heads + kv_head) * kPagePositions + first % kPagePositions) * t_.head_dim;
      score(q, cached, n);
      soften();
      add_values(sums, cached, n);
    }
    q_in_.FreeTensor(q);
    const LocalTensor<float> blocks = spread(total(), ratio_);
    for (int32_t lane = 0; lane < t_.head_dim; lane += kLanes)
      Div(sums[lane], sums[lane], blocks, lanes_from(lane), static_cast<uint8_t>(ratio_),
          BinaryRepeatParams{1, 1, 0, pitch_, pitch_, 1});
    sums_out_.EnQue(sums);
    sums = sums_out_.DeQue<float>();
    sigmoe_rows::store_row(out_[at], sums, width);
    sums_out_.FreeTensor(sums);
  }

  __aicore__ inline LocalTensor<float> copy_in(const GlobalTensor<float>& cache, int32_t n) {
    LocalTensor<float> piece = kv_in_.AllocTensor<float>();
    sigmoe_rows::load_row(piece, cache, n * t_.head_dim);
    kv_in_.EnQue(piece);
    return kv_in_.DeQue<float>();
  }

  // scores (ratio, 32) = q k^T / sqrt(Dh), past the n-th position never.
  __aicore__ inline void score(const LocalTensor<float>& q, int64_t cached, int32_t n) {
    LocalTensor<float> k = copy_in(k_[cached], n), products = products_.Get<float>(), scores = scores_.Get<float>();
    const uint8_t repeats = static_cast<uint8_t>(n);
    Duplicate(scores, kNever, ratio_ * kPositions);
    PipeBarrier<PIPE_V>();
    for (int32_t head = 0; head < ratio_; ++head) {
      for (int32_t lane = 0; lane < t_.head_dim; lane += kLanes)
        Mul(products[lane], k[lane], q[head * t_.head_dim + lane], lanes_from(lane), repeats,
            BinaryRepeatParams{1, 1, 1, pitch_, pitch_, 0});
      PipeBarrier<PIPE_V>();
      for (int32_t lane = kLanes; lane < t_.head_dim; lane += kLanes) {
        Add(products, products, products[lane], lanes_from(lane), repeats, BinaryRepeatParams{1, 1, 1, pitch_, pitch_, pitch_});
        PipeBarrier<PIPE_V>();
      }
      WholeReduceSum(scores[head * kPositions], products, static_cast<int32_t>(lanes_from(0)), n, 1, 1, pitch_);
      PipeBarrier<PIPE_V>();
      Muls(scores[head * kPositions], scores[head * kPositions], t_.scale, n);
      PipeBarrier<PIPE_V>();
    }
    kv_in_.FreeTensor(k);
  }

  // scores = exp(scores - highest so far); decay is what sums and total of before are worth now.
  __aicore__ inline void soften() {
    constexpr uint8_t kRowBlocks = kPositions / kSame;
    LocalTensor<float> scores = scores_.Get<float>();
    WholeReduceMax(new_highest(), scores, kPositions, ratio_, 1, 1, kRowBlocks, ReduceOrder::ORDER_ONLY_VALUE);
    PipeBarrier<PIPE_V>();
    Max(new_highest(), new_highest(), highest(), ratio_);
    PipeBarrier<PIPE_V>();
    Sub(decay(), highest(), new_highest(), ratio_);
    PipeBarrier<PIPE_V>();
    Exp(decay(), decay(), ratio_);
    Muls(highest(), new_highest(), 1.0f, ratio_);
    PipeBarrier<PIPE_V>();
    Sub(scores, scores, spread(highest(), ratio_), static_cast<uint64_t>(kPositions), static_cast<uint8_t>(ratio_),
        BinaryRepeatParams{1, 1, 0, kRowBlocks, kRowBlocks, 1});
    PipeBarrier<PIPE_V>();
    Exp(scores, scores, ratio_ * kPositions);
    PipeBarrier<PIPE_V>();
    WholeReduceSum(new_total(), scores, kPositions, ratio_, 1, 1, kRowBlocks);
    Mul(total(), total(), decay(), ratio_);
    PipeBarrier<PIPE_V>();
    Add(total(), total(), new_total(), ratio_);
    PipeBarrier<PIPE_V>();
  }

  // sums (ratio, Dh) = sums * decay + scores v.
  __aicore__ inline void add_values(const LocalTensor<float>& sums, int64_t cached, int32_t n) {
    LocalTensor<float> v = copy_in(v_[cached], n), products = products_.Get<float>(), scores = scores_.Get<float>();
    const LocalTensor<float> decays = spread(decay(), ratio_);
    for (int32_t lane = 0; lane < t_.head_dim; lane += kLanes)
      Mul(sums[lane], sums[lane], decays, lanes_from(lane), static_cast<uint8_t>(ratio_),
          BinaryRepeatParams{1, 1, 0, pitch_, pitch_, 1});
    PipeBarrier<PIPE_V>();
    for (int32_t head = 0; head < ratio_; ++head) {
      const LocalTensor<float> blocks = spread(scores[head * kPositions], kPositions);
      for (int32_t lane = 0; lane < t_.head_dim; lane += kLanes)
        Mul(products[lane], v[lane], blocks, lanes_from(lane), static_cast<uint8_t>(n),
            BinaryRepeatParams{1, 1, 0, pitch_, pitch_, 1});
      PipeBarrier<PIPE_V>();
      for (int32_t rows = n; rows > 1;) {  // the second half of the rows onto the first
        const int32_t kept = (rows + 1) / 2;
        Add(products, products, products[kept * t_.head_dim], (rows - kept) * t_.head_dim);
        PipeBarrier<PIPE_V>();
        rows = kept;
      }
      Add(sums[head * t_.head_dim], sums[head * t_.head_dim], products, t_.head_dim);
      PipeBarrier<PIPE_V>();
    }
    kv_in_.FreeTensor(v);
  }

  AttentionTiling t_;
  int32_t ratio_;
  uint8_t pitch_;  // blocks of 32 bytes in a row of a head
  GlobalTensor<float> q_, k_, v_, out_;
  GlobalTensor<int32_t> positions_, seq_offsets_, page_tables_;
  TQue<TPosition::VECIN, 1> q_in_, kv_in_;
  TQue<TPosition::VECOUT, 1> sums_out_;
  TBuf<TPosition::VECCALC> products_, scores_, blocks_, heads_;
};

}  // namespace sigmoe_attention_f32_kernel

extern "C" __global__ __aicore__ void sigmoe_attention_f32(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR positions,
                                                           GM_ADDR seq_offsets, GM_ADDR page_tables, GM_ADDR out,
                                                           sigmoe::ascend::AttentionTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  AscendC::TPipe pipe;
  sigmoe_attention_f32_kernel::Attention attention(q, k, v, positions, seq_offsets, page_tables, out, tiling, &pipe);
  attention.process();
}
