// What the vector stages of attention share: the buffers in UB, used by one stage after the other, and what moves rows in them.
#pragma once

#include "ascend/device/attention.h"
#include "ascend/device/rows.h"

namespace sigmoe_cube_kernels {

constexpr int32_t kVectorRows = kAttentionRows / 2;  // of a tile that one vector core has, at most
constexpr int32_t kVectorLanes = 64;                 // floats of a vector instruction
constexpr int32_t kSame = 8;                         // floats of a block: a scalar of a row, repeated
constexpr int32_t kScores = kVectorRows * kAttentionChunk;
constexpr float kNever = -1.0e30f;  // finite, so that rows without a valid position stay free of NaN

struct AttentionBuffers {
  TQue<TPosition::VECIN, 1> wide_in;  // two of kScores floats, which is a row of H * Dh as well
  TQue<TPosition::VECIN, 1> small_in;
  TQue<TPosition::VECOUT, 1> narrow_out;  // BF16 or INT8
  TQue<TPosition::VECOUT, 1> sums_out;
  TQue<TPosition::VECOUT, 1> scalars_out;
  TBuf<TPosition::VECCALC> work;  // three scalars of every head, repeated
  TBuf<TPosition::VECCALC> rows;  // six scalars of every row

  __aicore__ inline void init(TPipe* pipe) {
    static_assert(kScores == kMaxAttentionWidth, "a buffer serves for scores and for a row of the result");
    pipe->InitBuffer(wide_in, 2, kScores * sizeof(float));
    pipe->InitBuffer(small_in, 1, kMaxAttentionWidth * sizeof(float));
    pipe->InitBuffer(narrow_out, 1, kScores * sizeof(bfloat16_t));
    pipe->InitBuffer(sums_out, 1, kMaxAttentionWidth * sizeof(float));
    pipe->InitBuffer(scalars_out, 2, 2 * kVectorRows * kSame * sizeof(float));
    pipe->InitBuffer(work, 3 * kMaxHeads * kSame * sizeof(float));
    pipe->InitBuffer(rows, 6 * kVectorRows * sizeof(float));
  }
};

template <typename Q, typename V>
__aicore__ inline LocalTensor<V> copy_in(Q& queue, const GlobalTensor<V>& from, int32_t n) {
  LocalTensor<V> in = queue.template AllocTensor<V>();
  sigmoe_rows::load_row(in, from, n);
  queue.EnQue(in);
  return queue.template DeQue<V>();
}

template <typename Q, typename V>
__aicore__ inline void copy_out(Q& queue, const GlobalTensor<V>& to, LocalTensor<V>& from, int32_t n) {
  queue.EnQue(from);
  from = queue.template DeQue<V>();
  sigmoe_rows::store_row(to, from, n);
  queue.FreeTensor(from);
}

// rows (n, head_dim) times a scalar of each row.
__aicore__ inline void scale_rows(const LocalTensor<float>& rows, const LocalTensor<float>& blocks, int32_t n,
                                  int32_t head_dim) {
  const uint8_t pitch = static_cast<uint8_t>(head_dim * sizeof(float) / kBlockBytes);
  for (int32_t lane = 0; lane < head_dim; lane += kVectorLanes)
    Mul(rows[lane], rows[lane], blocks, static_cast<uint64_t>(lane + kVectorLanes < head_dim ? kVectorLanes : head_dim - lane),
        static_cast<uint8_t>(n), BinaryRepeatParams{1, 1, 0, pitch, pitch, 1});
  PipeBarrier<PIPE_V>();
}

// Number of the first head of a token's split among the splits' results.
__aicore__ inline int64_t part_of(const AttentionTiling& t, int32_t token, int32_t split) {
  return (static_cast<int64_t>(token) * t.max_splits + split) * t.heads;
}

}  // namespace sigmoe_cube_kernels
