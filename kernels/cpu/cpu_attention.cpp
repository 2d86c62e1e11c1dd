// Paged attention. The query rows of a block of tokens and of all heads that share one KV head go through each page
// together: scores = rows x K panels, a softmax over the page's positions, then rows x V panels.
//
// One order for every row, however the work is cut: within a page as the kernels sum; pages are folded one after another
// into the state of their group of eight; groups are folded one after another into the result. Long sequences of few
// tokens are cut by group among threads, and the partial states folded afterwards in the same order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_backend.h"
#include "cpu/kv_layout.h"

namespace sigmoe {
namespace {

constexpr int kGroupPages = 8;
constexpr int kGroupTokens = kGroupPages * kPageTokens;
constexpr int kBlockRows = 64;    // query rows that go through a page together, about
constexpr int kSplitTokens = 16;  // sequences of at most this many tokens are cut by group

// The softmax so far of one query row: sum of exp(score - max) times v, not yet divided by `sum`.
struct RowState {
  float max, sum;
  float* values;  // (Dh)
};

// state <- state followed by next. A state with sum 0 is empty.
void fold(const SimdKernels& simd, int head_dim, RowState& state, const RowState& next) {
  if (next.sum == 0.0f) return;
  if (state.sum == 0.0f) {
    std::memcpy(state.values, next.values, head_dim * sizeof(float));
    state.max = next.max;
    state.sum = next.sum;
    return;
  }
  const float max = std::max(state.max, next.max);
  const float keep = std::exp(state.max - max), take = std::exp(next.max - max);
  simd.scale_add(state.values, keep, next.values, take, head_dim);
  state.sum = state.sum * keep + next.sum * take;
  state.max = max;
}

}  // namespace

struct CpuBackend::AttentionStep {
  const BatchView& batch;
  const AttentionShape& shape;
  const KvView& kv;
  bool narrow = false;                 // activations are BF16: the cache is, and the path has BF16 products
  const std::byte* queries = nullptr;  // (T, H, Dh) BF16 when narrow, else float32
  int n_k_segments = 0;                // Dh cut into kernel segments
  int32_t k_segments[kMostHeadDim / kMaxSegment + 1] = {};
  GemmFn score_gemm = nullptr, value_gemm = nullptr;
  float* partials = nullptr;  // (partial rows, Dh + 2): values, max, sum
  float* out = nullptr;

  int heads_per_kv() const { return shape.n_heads / shape.n_kv_heads; }
  int64_t cache_bytes() const { return kv.dtype == DType::bf16 ? 2 : 4; }  // of one element
  int64_t query_bytes() const { return narrow ? 2 : 4; }
};

void CpuBackend::attend(const AttentionStep& step, const AttentionItem& item, int worker) {
  const AttentionShape& shape = step.shape;
  const int head_dim = shape.head_dim, per_kv = step.heads_per_kv(), n_rows = item.n_tokens * per_kv;
  const int64_t element_bytes = step.cache_bytes();
  const float score_scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

  // Thread scratch: scores and probabilities (rows, P), the values of three states (rows, Dh), the states, row pointers.
  const int64_t n_scores = static_cast<int64_t>(n_rows) * kPageTokens, n_values = static_cast<int64_t>(n_rows) * head_dim;
  std::byte* memory = workers_[worker].tile.get<std::byte>((2 * n_scores + 3 * n_values) * sizeof(float) +
                                                           n_rows * (3 * sizeof(RowState) + sizeof(void*)));
  float* scores = reinterpret_cast<float*>(memory);
  float* probabilities = step.narrow ? scores + n_scores : scores;
  float* values = scores + 2 * n_scores;
  RowState* page_state = reinterpret_cast<RowState*>(values + 3 * n_values);
  RowState *group_state = page_state + n_rows, *total = group_state + n_rows;
  const void** rows = reinterpret_cast<const void**>(total + n_rows);
  const auto clear = [&](RowState* states, float* state_values) {
    for (int r = 0; r < n_rows; ++r) states[r] = {0.0f, 0.0f, state_values + static_cast<int64_t>(r) * head_dim};
  };

  GemmArgs args;
  args.rows = rows;
  args.m = n_rows;
  args.scratch = workers_[worker].gemm_scratch.data();
  // c (rows, n) = rows times the first n output rows of a block of n_k values each.
  const auto multiply_block = [&](GemmFn gemm, const void* cache, int64_t offset, int n, int n_k, float* c, int64_t c_stride) {
    args.c_stride = c_stride;
    for (int first = 0; first < n; first += kGroupRows) {
      args.w.lines = static_cast<const uint8_t*>(cache) + offset + static_cast<int64_t>(first) * n_k * element_bytes;
      args.w.n_panels = std::min(kGroupRows, n - first) / kPanelRows;
      args.c = c + first;
      gemm(args);
    }
  };

  const int32_t* page_table = step.batch.page_tables + static_cast<int64_t>(item.seq) * step.batch.max_pages;
  const int last_position = step.batch.positions[item.first_token + item.n_tokens - 1];
  const int n_pages = last_position / kPageTokens + 1;
  clear(total, values);
  for (int group = item.first_group; group < item.first_group + item.n_groups; ++group) {
    clear(group_state, values + n_values);
    for (int page = group * kGroupPages; page < std::min((group + 1) * kGroupPages, n_pages); ++page) {
      const int first_position = page * kPageTokens;
      const int n_keys = std::min(last_position - first_position + 1, kPageTokens);  // that the last row sees
      const int64_t block = kv_block(shape, page_table[page], item.kv_head) * element_bytes;

      for (int r = 0; r < n_rows; ++r) {
        const int64_t token = item.first_token + r / per_kv, head = item.kv_head * per_kv + r % per_kv;
        rows[r] = step.queries + (token * shape.n_heads + head) * head_dim * step.query_bytes();
      }
      args.w.segment_begin = step.k_segments;
      args.w.n_segments = step.n_k_segments;
      multiply_block(step.score_gemm, step.kv.k, block, (n_keys + kGroupRows - 1) / kGroupRows * kGroupRows, head_dim, scores,
                     kPageTokens);

      // Probabilities past a row's own position are zeros, up to the multiple of its unit at which the kernel stops.
      const int32_t value_segment[2] = {0, (n_keys + kSegmentUnit - 1) / kSegmentUnit * kSegmentUnit};
      clear(page_state, values + 2 * n_values);
      for (int r = 0; r < n_rows; ++r) {
        float* row = scores + static_cast<int64_t>(r) * kPageTokens;
        const int seen = std::clamp(step.batch.positions[item.first_token + r / per_kv] - first_position + 1, 0, kPageTokens);
        if (seen > 0) page_state[r].sum = simd_->softmax_part(row, score_scale, seen, &page_state[r].max);
        std::fill(row + seen, row + std::max(value_segment[1], seen), 0.0f);
        rows[r] = probabilities + static_cast<int64_t>(r) * kPageTokens;
        if (step.narrow)
          simd_->to_bf16(row, value_segment[1],
                         reinterpret_cast<uint16_t*>(probabilities + static_cast<int64_t>(r) * kPageTokens));
      }
      args.w.segment_begin = value_segment;
      args.w.n_segments = 1;
      multiply_block(step.value_gemm, step.kv.v, block, head_dim, kPageTokens, values + 2 * n_values, head_dim);
      for (int r = 0; r < n_rows; ++r) fold(*simd_, head_dim, group_state[r], page_state[r]);
    }
    for (int r = 0; r < n_rows; ++r) fold(*simd_, head_dim, total[r], group_state[r]);
  }

  for (int r = 0; r < n_rows; ++r) {
    if (item.partial < 0) {
      write_row(step, item, r, total[r].values, total[r].sum);
    } else {
      float* partial = step.partials + (item.partial + r) * (head_dim + 2);
      std::memcpy(partial, total[r].values, head_dim * sizeof(float));
      partial[head_dim] = total[r].max;
      partial[head_dim + 1] = total[r].sum;
    }
  }
}

void CpuBackend::write_row(const AttentionStep& step, const AttentionItem& item, int row, const float* values,
                           float sum) const {
  const int head_dim = step.shape.head_dim, per_kv = step.heads_per_kv();
  const int64_t token = item.first_token + row / per_kv, head = item.kv_head * per_kv + row % per_kv;
  simd_->scale(values, 1.0f / sum, head_dim, step.out + (token * step.shape.n_heads + head) * head_dim);
}

void CpuBackend::attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv, float* out) {
  check_head_dim(shape);
  const LineFormat format = kv.dtype == DType::bf16 ? LineFormat::bf16 : LineFormat::f32;
  const int head_dim = shape.head_dim, per_kv = shape.n_heads / shape.n_kv_heads;
  const int64_t n_queries = static_cast<int64_t>(batch.n_tokens) * shape.n_heads;

  AttentionStep step{batch, shape, kv};
  step.narrow = bf16_gemm_ && format == LineFormat::bf16;
  step.queries = reinterpret_cast<const std::byte*>(q);
  step.out = out;
  step.score_gemm = step.value_gemm = simd_->gemm[static_cast<int>(format)];
  if (step.narrow) {
    uint16_t* narrow = queries_.get<uint16_t>(n_queries * head_dim);
    pool_.parallel_for(batch.n_tokens, [&](int64_t t, int) {
      const int64_t at = t * shape.n_heads * head_dim;
      simd_->to_bf16(q + at, static_cast<int64_t>(shape.n_heads) * head_dim, narrow + at);
    });
    step.queries = reinterpret_cast<const std::byte*>(narrow);
    step.value_gemm = bf16_gemm_[static_cast<int>(format)];
    step.score_gemm = head_dim % kSegmentUnit == 0 ? step.value_gemm : odd_bf16_gemm_[static_cast<int>(format)];
  }
  step.n_k_segments = (head_dim + kMaxSegment - 1) / kMaxSegment;
  for (int s = 0; s <= step.n_k_segments; ++s) step.k_segments[s] = std::min(s * kMaxSegment, head_dim);

  // Work: the longest blocks first, so that the last to finish is short.
  attention_items_.clear();
  int64_t n_partials = 0;
  const int block_tokens = std::max(1, kBlockRows / per_kv);
  for (int b = 0; b < batch.n_seqs; ++b) {
    const int begin = batch.seq_offsets[b], n_tokens = batch.seq_offsets[b + 1] - begin;
    for (int block = (n_tokens + block_tokens - 1) / block_tokens - 1; block >= 0; --block) {
      const int first = begin + block * block_tokens, n = std::min(block_tokens, begin + n_tokens - first);
      const int n_groups = batch.positions[first + n - 1] / kGroupTokens + 1;
      const bool split = n_tokens <= kSplitTokens && n_groups > 1;
      for (int head = 0; head < shape.n_kv_heads; ++head) {
        if (!split) attention_items_.push_back({b, first, n, head, 0, n_groups, -1});
        for (int group = 0; split && group < n_groups; ++group, n_partials += n * per_kv)
          attention_items_.push_back({b, first, n, head, group, 1, n_partials});
      }
    }
  }
  step.partials = partials_.get<float>(n_partials * (head_dim + 2));
  const int64_t n_items = static_cast<int64_t>(attention_items_.size());
  pool_.parallel_for(n_items, [&](int64_t i, int worker) { attend(step, attention_items_[i], worker); });

  // Partial states of one block and head follow each other in group order.
  pool_.parallel_for(n_partials > 0 ? n_items : 0, [&](int64_t i, int) {
    if (attention_items_[i].partial >= 0 && attention_items_[i].first_group == 0) fold_partials(step, i);
  });
}

void CpuBackend::fold_partials(const AttentionStep& step, int64_t first_item) {
  const AttentionItem& first = attention_items_[first_item];
  const int head_dim = step.shape.head_dim, per_kv = step.heads_per_kv(), n_rows = first.n_tokens * per_kv;
  const int64_t n_items = static_cast<int64_t>(attention_items_.size()), stride = head_dim + 2;
  for (int r = 0; r < n_rows; ++r) {
    float* values = step.partials + (first.partial + r) * stride;  // of the first group: the rest is folded into it
    RowState total{values[head_dim], values[head_dim + 1], values};
    for (int64_t i = first_item + 1; i < n_items && attention_items_[i].first_group > 0; ++i) {
      float* next = step.partials + (attention_items_[i].partial + r) * stride;
      fold(*simd_, head_dim, total, {next[head_dim], next[head_dim + 1], next});
    }
    write_row(step, first, r, total.values, total.sum);
  }
}

}  // namespace sigmoe
