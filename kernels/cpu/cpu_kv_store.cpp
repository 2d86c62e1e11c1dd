// Splits qkv rows into heads, norms and turns q and k, and stores k and v into their pages.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.h"
#include "cpu/kv_layout.h"

namespace sigmoe {
namespace {

constexpr int64_t kSmallWork = 32 * 1024;  // values: below this, handing work to threads costs more than it saves
// head (Dh) <- RoPE of its first 2 * half dims, pairs (j, j + half).
void turn(float* head, int half, const float* cos, const float* sin) {
  for (int j = 0; j < half; ++j) {
    const float a = head[j], b = head[j + half];
    head[j] = a * cos[j] - b * sin[j];
    head[j + half] = b * cos[j] + a * sin[j];
  }
}

// One position's values to their places in a block of the cache (kv_layout.h); kLineK of them lie side by side in a line.
template <int kLineK, typename T>
void scatter_k(const T* head, int head_dim, int position, T* block) {
  T* out = block + block_element(kPageTokens, head_dim, kLineK, position, 0);
  for (int d = 0; d < head_dim; d += kLineK, out += kGroupPanels * kPanelRows * kLineK)  // from line to line of the panel
    for (int j = 0; j < kLineK; ++j) out[j] = head[d + j];
}

template <int kLineK, typename T>
void scatter_v(const T* head, int head_dim, int position, T* block) {
  for (int d = 0; d < head_dim; d += kPanelRows) {
    T* out = block + block_element(head_dim, kPageTokens, kLineK, d, position);
    for (int lane = 0; lane < kPanelRows; ++lane) out[lane * kLineK] = head[d + lane];
  }
}

}  // namespace

void CpuBackend::qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv, const float* q_norm,
                                    const float* k_norm, float eps, const float* cos, const float* sin, const KvView& kv,
                                    float* q_out) {
  check_head_dim(shape);
  const int head_dim = shape.head_dim, half = shape.rotary_dim / 2, n_q = shape.n_heads, n_kv = shape.n_kv_heads;
  const int n_parts = n_q + 2 * n_kv;
  const bool bf16 = kv.dtype == DType::bf16;

  // A page is filled by one thread, in order: its first position clears the block (below), and BF16 pairs share a dword.
  std::vector<PageRun>& runs = page_runs_;
  runs.clear();
  for (int b = 0; b < batch.n_seqs; ++b)
    for (int t = batch.seq_offsets[b]; t < batch.seq_offsets[b + 1];) {
      const int left = kPageTokens - batch.positions[t] % kPageTokens;
      const int n = std::min(left, batch.seq_offsets[b + 1] - t);
      runs.push_back({b, t, n});
      t += n;
    }

  const auto store_run = [&](const PageRun& run, int part) {
    float head[kMostHeadDim];
    uint16_t narrow[kMostHeadDim];
    const bool is_q = part < n_q, is_k = !is_q && part < n_q + n_kv;
    const float* norm = is_q ? q_norm : is_k ? k_norm : nullptr;
    const int kv_head = is_q ? 0 : (part - n_q) % n_kv;
    for (int t = run.first; t < run.first + run.n; ++t) {
      const int64_t position = batch.positions[t];
      const float* source = qkv + (static_cast<int64_t>(t) * n_parts + part) * head_dim;
      float* target = is_q ? q_out + (static_cast<int64_t>(t) * n_q + part) * head_dim : head;
      if (norm)
        simd_->rms_norm(source, norm, eps, head_dim, target);
      else
        std::copy(source, source + head_dim, target);
      if (is_q || is_k) turn(target, half, cos + position * half, sin + position * half);
      if (is_q) continue;

      const int64_t page = batch.page_tables[static_cast<int64_t>(run.seq) * batch.max_pages + position / kPageTokens];
      const int at = static_cast<int>(position % kPageTokens);
      const int64_t block = kv_block(shape, page, kv_head);
      const int64_t element_bytes = bf16 ? 2 : 4;
      std::byte* base = static_cast<std::byte*>(is_k ? kv.k : kv.v) + block * element_bytes;
      // Attention multiplies the values past a sequence's end by zero, so they must be finite.
      if (!is_k && at == 0) std::memset(base, 0, static_cast<size_t>(kPageTokens) * head_dim * element_bytes);
      if (bf16) {
        simd_->to_bf16(head, head_dim, narrow);
        uint16_t* out = reinterpret_cast<uint16_t*>(base);
        is_k ? scatter_k<2>(narrow, head_dim, at, out) : scatter_v<2>(narrow, head_dim, at, out);
      } else {
        float* out = reinterpret_cast<float*>(base);
        is_k ? scatter_k<1>(head, head_dim, at, out) : scatter_v<1>(head, head_dim, at, out);
      }
    }
  };

  const int64_t n_items = static_cast<int64_t>(runs.size()) * n_parts;
  if (static_cast<int64_t>(batch.n_tokens) * n_parts * head_dim <= kSmallWork)
    for (int64_t item = 0; item < n_items; ++item) store_run(runs[item / n_parts], static_cast<int>(item % n_parts));
  else
    pool_.parallel_for(n_items, [&](int64_t item, int) { store_run(runs[item / n_parts], static_cast<int>(item % n_parts)); });
}

}  // namespace sigmoe
