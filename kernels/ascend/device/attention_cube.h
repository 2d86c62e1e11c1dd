// The cube half of attention: scores of a chunk, and its probabilities times the values.
#pragma once

#include "ascend/device/attention.h"

namespace sigmoe_cube_kernels {

class AttentionCube {
 public:
  using T = bfloat16_t;
  static constexpr int32_t kLanes = kBlockBytes / sizeof(T);
  static constexpr int32_t kL0Bytes = 32 * 1024;  // of a buffer: L0A and L0B hold two

  __aicore__ inline void init(const AttentionMemory& memory, const AttentionTiling& t, TPipe* pipe) {
    memory_ = memory;
    t_ = t;
    group_ = static_cast<int32_t>(GetBlockIdx());
    ratio_ = t.heads / t.kv_heads;
    dim_blocks_ = t.head_dim / kLanes;
    const int32_t fit = kL0Bytes / (t.head_dim * static_cast<int32_t>(sizeof(T))) / kLanes * kLanes;
    step_ = fit < kAttentionChunk ? fit : kAttentionChunk;
    k_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(memory.k));
    v_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(memory.v));
    page_tables_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.page_tables));
    q_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(memory.work));
    scores_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.scores_at));
    probs_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(memory.work + t.probs_at));
    values_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(memory.work + t.values_at));
    pipe->InitBuffer(q1_, 1, kAttentionRows * t.head_dim * sizeof(T));
    pipe->InitBuffer(p1_, 2, kAttentionRows * kAttentionChunk * sizeof(T));
    pipe->InitBuffer(kv1_, 2, kAttentionChunk * t.head_dim * sizeof(T));
    pipe->InitBuffer(a2_, 2, kL0Bytes);
    pipe->InitBuffer(b2_, 2, kL0Bytes);
    pipe->InitBuffer(co1_, 2, kAttentionRows * kAttentionChunk * sizeof(float));
  }

  __aicore__ inline void process() {
    AttentionWalk walk(memory_, t_, group_, static_cast<int32_t>(GetBlockNum()));
    while (walk.next(item_)) {
      rows_ = item_.tokens * ratio_;
      rows16_ = static_cast<int32_t>(round_up(rows_, kGroupRows));
      copy_q();
      LocalTensor<T> q1 = q1_.DeQue<T>();
      const int32_t chunks = static_cast<int32_t>(ceil_div(item_.end - item_.begin, kAttentionChunk));
      scores(q1, 0);
      for (int32_t chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks) scores(q1, chunk + 1);
        values(chunk);
      }
      q1_.FreeTensor(q1);
    }
  }

 private:
  __aicore__ inline static Nd2NzParams nz(int32_t rows, int32_t columns, int32_t pitch, int32_t held_rows) {
    Nd2NzParams params;
    params.ndNum = 1;
    params.nValue = static_cast<uint16_t>(rows);
    params.dValue = static_cast<uint16_t>(columns);
    params.srcNdMatrixStride = 0;
    params.srcDValue = static_cast<uint16_t>(pitch);
    params.dstNzC0Stride = static_cast<uint16_t>(held_rows);
    params.dstNzNStride = 1;
    params.dstNzMatrixStride = 1;
    return params;
  }

  // The query heads of the tile's tokens, one matrix of `ratio` rows a token.
  __aicore__ inline void copy_q() {
    LocalTensor<T> q1 = q1_.AllocTensor<T>();
    Nd2NzParams params = nz(ratio_, t_.head_dim, t_.head_dim, rows16_);
    params.ndNum = static_cast<uint16_t>(item_.tokens);
    params.srcNdMatrixStride = static_cast<uint16_t>(t_.heads * t_.head_dim);
    params.dstNzMatrixStride = static_cast<uint16_t>(ratio_ * kLanes);
    DataCopy(q1, q_[(static_cast<int64_t>(item_.token) * t_.heads + item_.kv_head * ratio_) * t_.head_dim], params);
    q1_.EnQue(q1);
  }

  // Positions [first, first + n) of a cache as [Dh / lanes][n to 16][lanes]. Rows are filled up to 16 with copies of the first:
  // what lies past the sequence's end may be anything, and 0 times NaN is NaN.
  __aicore__ inline LocalTensor<T> copy_kv(const GlobalTensor<T>& cache, int32_t first, int32_t n, int32_t n16) {
    LocalTensor<T> kv1 = kv1_.AllocTensor<T>();
    for (int32_t at = 0; at < n; at += kPagePositions) {
      const int32_t rows = at + kPagePositions < n ? kPagePositions : n - at;
      DataCopy(kv1[at * kLanes], cache[address(first + at)], nz(rows, t_.head_dim, t_.head_dim, n16));
    }
    for (int32_t at = n; at < n16; ++at)
      DataCopy(kv1[at * kLanes], cache[address(first)], nz(1, t_.head_dim, t_.head_dim, n16));
    kv1_.EnQue(kv1);
    return kv1_.DeQue<T>();
  }

  // Element of a position that starts a page or a chunk.
  __aicore__ inline int64_t address(int32_t position) const {
    const int64_t page = page_tables_.GetValue(static_cast<int64_t>(item_.seq) * t_.max_pages + position / kPagePositions);
    return ((page * t_.kv_heads + item_.kv_head) * kPagePositions + position % kPagePositions) * t_.head_dim;
  }

  // Blocks [first, first + count) along k of [k / lanes][rows16][lanes] in L1, for L0A.
  __aicore__ inline LocalTensor<T> load_rows(const LocalTensor<T>& from, int32_t first, int32_t count) {
    LocalTensor<T> a2 = a2_.AllocTensor<T>();
    LoadData2DParams load;
    load.repeatTimes = static_cast<uint8_t>(count);
    load.srcStride = static_cast<uint16_t>(rows16_ / kGroupRows);
    for (int32_t row = 0; row < rows16_; row += kGroupRows)
      LoadData(a2[row * count * kLanes], from[(first * rows16_ + row) * kLanes], load);
    a2_.EnQue(a2);
    return a2_.DeQue<T>();
  }

  __aicore__ inline void multiply(const LocalTensor<float>& sums, const LocalTensor<T>& a2, const LocalTensor<T>& b2, int32_t n,
                                  int32_t k, bool first) {
    MmadParams mmad;
    mmad.m = cube_rows(rows_);
    mmad.n = static_cast<uint16_t>(n);
    mmad.k = static_cast<uint16_t>(k);
    mmad.cmatrixInitVal = first;
    Mmad(sums, a2, b2, mmad);
    PipeBarrier<PIPE_M>();
  }

  __aicore__ inline void bring_out(const GlobalTensor<float>& to, LocalTensor<float>& sums, int32_t columns, int32_t pitch) {
    co1_.EnQue(sums);
    sums = co1_.DeQue<float>();
    FixpipeParamsV220 fix;
    fix.nSize = static_cast<uint16_t>(columns);
    fix.mSize = static_cast<uint16_t>(rows_);
    fix.srcStride = static_cast<uint16_t>(rows16_);
    fix.dstStride = static_cast<uint32_t>(pitch);
    fix.ndNum = 1;
    Fixpipe<float, float, CFG_ROW_MAJOR>(to, sums, fix);
    co1_.FreeTensor(sums);
  }

  __aicore__ inline void scores(const LocalTensor<T>& q1, int32_t chunk) {
    const int32_t first = item_.begin + chunk * kAttentionChunk;
    const int32_t n = first + kAttentionChunk < item_.end ? kAttentionChunk : item_.end - first;
    const int32_t n16 = static_cast<int32_t>(round_up(n, kGroupRows));
    LocalTensor<T> k1 = copy_kv(k_, first, n, n16);
    LocalTensor<T> a2 = load_rows(q1, 0, dim_blocks_);
    LocalTensor<float> sums = co1_.AllocTensor<float>();
    for (int32_t at = 0; at < n16; at += step_) {
      const int32_t columns = at + step_ < n16 ? step_ : n16 - at;
      LocalTensor<T> b2 = b2_.AllocTensor<T>();
      LoadData2DParams load;
      load.repeatTimes = static_cast<uint8_t>(columns / kGroupRows);
      load.srcStride = 1;
      for (int32_t block = 0; block < dim_blocks_; ++block)
        LoadData(b2[block * columns * kLanes], k1[(block * n16 + at) * kLanes], load);
      b2_.EnQue(b2);
      b2 = b2_.DeQue<T>();
      multiply(sums[at * rows16_], a2, b2, columns, t_.head_dim, true);
      b2_.FreeTensor(b2);
    }
    a2_.FreeTensor(a2);
    kv1_.FreeTensor(k1);
    bring_out(scores_[attention_slot(group_, chunk, kAttentionChunk)], sums, n16, kAttentionChunk);
    CrossCoreSetFlag<2, PIPE_FIX>(kScoresReady);
  }

  __aicore__ inline void values(int32_t chunk) {
    const int32_t first = item_.begin + chunk * kAttentionChunk;
    const int32_t n = first + kAttentionChunk < item_.end ? kAttentionChunk : item_.end - first;
    const int32_t n16 = static_cast<int32_t>(round_up(n, kGroupRows));
    LocalTensor<T> v1 = copy_kv(v_, first, n, n16);
    CrossCoreWaitFlag(kProbsReady);
    LocalTensor<T> p1 = p1_.AllocTensor<T>();
    DataCopy(p1, probs_[attention_slot(group_, chunk, kAttentionChunk)], nz(rows_, n16, kAttentionChunk, rows16_));
    p1_.EnQue(p1);
    p1 = p1_.DeQue<T>();
    LocalTensor<float> sums = co1_.AllocTensor<float>();
    for (int32_t at = 0; at < n16; at += step_) {
      const int32_t count = at + step_ < n16 ? step_ : n16 - at;
      LocalTensor<T> a2 = load_rows(p1, at / kLanes, count / kLanes);
      LocalTensor<T> b2 = b2_.AllocTensor<T>();
      // A row of fractals along Dh, each turned: v has positions as rows. Documented for half, whose bits are as many.
      LoadData2DParams load;
      load.repeatTimes = static_cast<uint8_t>(dim_blocks_);
      load.srcStride = static_cast<uint16_t>(n16 / kGroupRows);
      load.ifTranspose = true;
      for (int32_t row = 0; row < count; row += kGroupRows)
        LoadData(b2[row * t_.head_dim].ReinterpretCast<half>(), v1[(at + row) * kLanes].ReinterpretCast<half>(), load);
      b2_.EnQue(b2);
      b2 = b2_.DeQue<T>();
      multiply(sums, a2, b2, t_.head_dim, count, at == 0);
      a2_.FreeTensor(a2);
      b2_.FreeTensor(b2);
    }
    p1_.FreeTensor(p1);
    kv1_.FreeTensor(v1);
    bring_out(values_[attention_slot(group_, chunk, t_.head_dim)], sums, t_.head_dim, t_.head_dim);
    CrossCoreSetFlag<2, PIPE_FIX>(kValuesReady);
  }

  AttentionMemory memory_;
  AttentionTiling t_;
  AttentionItem item_;
  int32_t group_ = 0, ratio_ = 1, dim_blocks_ = 1, step_ = 16, rows_ = 0, rows16_ = 0;
  GlobalTensor<T> q_, k_, v_, probs_;
  GlobalTensor<float> scores_, values_;
  GlobalTensor<int32_t> page_tables_;
  TQue<TPosition::A1, 1> q1_, p1_;
  TQue<TPosition::B1, 1> kv1_;
  TQue<TPosition::A2, 1> a2_;
  TQue<TPosition::B2, 1> b2_;
  TQue<TPosition::CO1, 1> co1_;
};

}  // namespace sigmoe_cube_kernels
