// Attention in BF16: softmax(q k^T / sqrt(Dh)) v over a paged cache, the products on the cube, the softmax on the vector cores.
//
//   vector  q in BF16
//   -- all cores --
//   cube    scores(c) = q k^T of chunk c          vector  probs(c) = exp(scores - highest so far), BF16
//   cube    values(c) = probs(c) v                vector  sums = sums * exp(highest before - highest) + values(c)
//   -- all cores --
//   vector  out of a token = its splits, weighted by exp(their highest - the highest); and its narrow copy
//
// A group (one cube core, two vector cores with half of the rows each) works on an item by itself; it passes chunks through
// two slots of GM, so that the cube computes scores(c + 1) while the vector cores turn scores(c) into probabilities.
#pragma once

#include "ascend/device/args/attention.h"
#include "ascend/device/cube_gemm.h"

namespace sigmoe_cube_kernels {

struct AttentionMemory {
  GM_ADDR q;
  GM_ADDR k;
  GM_ADDR v;
  GM_ADDR positions;
  GM_ADDR seq_offsets;
  GM_ADDR page_tables;
  GM_ADDR work;
  GM_ADDR out;
  GM_ADDR shadow;
  GM_ADDR scales;
};

// Flags between the cube core of a group and its vector cores.
constexpr uint16_t kScoresReady = 0;
constexpr uint16_t kProbsReady = 1;
constexpr uint16_t kValuesReady = 2;

// One item: rows of a tile against the positions [begin, end) of one KV head.
struct AttentionItem {
  int32_t seq, token, tokens;  // of the batch
  int32_t kv_head, split;
  int32_t begin, end;
};

// Walks all items in one order and stops at those of this group.
class AttentionWalk {
 public:
  __aicore__ inline AttentionWalk(const AttentionMemory& memory, const AttentionTiling& t, int32_t group, int32_t groups)
      : t_(t), group_(group), groups_(groups) {
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.positions));
    seq_offsets_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.seq_offsets));
    end_of_seq_ = seq_offsets_.GetValue(0);
    next_token_ = end_of_seq_;
  }

  __aicore__ inline bool next(AttentionItem& item) {
    while (number_ >= items_) {
      number_ -= items_;
      if (!next_tile()) return false;
    }
    item.seq = seq_;
    item.token = token_;
    item.tokens = tokens_;
    item.kv_head = number_ / splits_;
    item.split = number_ % splits_;
    item.begin = item.split * t_.split_tokens;
    item.end = item.begin + t_.split_tokens < length_ ? item.begin + t_.split_tokens : length_;
    number_ += groups_;
    return true;
  }

 private:
  __aicore__ inline bool next_tile() {
    while (next_token_ >= end_of_seq_) {
      if (++seq_ >= t_.seqs) return false;
      end_of_seq_ = seq_offsets_.GetValue(seq_ + 1);
    }
    token_ = next_token_;
    tokens_ = token_ + t_.tile_tokens < end_of_seq_ ? t_.tile_tokens : end_of_seq_ - token_;
    next_token_ = token_ + tokens_;
    length_ = positions_.GetValue(next_token_ - 1) + 1;
    splits_ = static_cast<int32_t>(ceil_div(length_, t_.split_tokens));
    items_ = splits_ * t_.kv_heads;
    if (first_) number_ = group_, first_ = false;
    return true;
  }

  const AttentionTiling& t_;
  GlobalTensor<int32_t> positions_, seq_offsets_;
  int32_t group_, groups_;
  bool first_ = true;
  int32_t seq_ = -1, token_ = 0, tokens_ = 0, next_token_ = 0, end_of_seq_ = 0;
  int32_t length_ = 0, splits_ = 1, items_ = 0, number_ = 0;
};

// Element of slot c % 2 of this group's scores, probabilities or products, rows * columns each.
__aicore__ inline int64_t attention_slot(int32_t group, int32_t chunk, int32_t columns) {
  return (static_cast<int64_t>(group) * 2 + chunk % 2) * kAttentionRows * columns;
}

}  // namespace sigmoe_cube_kernels
