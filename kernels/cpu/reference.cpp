#include "cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

namespace sigmoe {
namespace {

// W (n, k) in float32, dequantised when it is built: slow and large, and nothing about it can be doubted.
struct ReferenceWeight : LinearWeight {
  explicit ReferenceWeight(int64_t n, int64_t k) : n(n), k(k), values(static_cast<size_t>(n) * k) {}
  size_t bytes() const override { return values.size() * sizeof(float); }

  int64_t n, k;
  std::vector<float> values;
};

class ReferenceBuilder : public LinearBuilder {
 public:
  explicit ReferenceBuilder(const LinearDesc& desc)
      : desc_(desc),
        n_blocks_(desc.k_bounds.empty() ? 0 : desc.k_bounds.size() - 1),
        scales_(n_blocks_ * desc.n),
        weight_(std::make_unique<ReferenceWeight>(desc.n, desc.k)) {}

  void put_rows(int64_t row, int64_t n_rows, const std::byte* source, size_t stride_bytes) override {
    for (int64_t n = row; n < row + n_rows; ++n, source += stride_bytes)
      for (int64_t k = 0; k < desc_.k; ++k) {
        const float value = stored_weight(desc_.format, source, k);
        if (!std::isfinite(value))
          throw EngineError(ErrorCode::bad_checkpoint, desc_.name + " holds a NaN or an infinity in row " + std::to_string(n),
                            "the file is damaged; fetch it again and compare its checksum");
        weight_->values[n * desc_.k + k] = value;
      }
  }

  void put_scales(int64_t row, int64_t n_rows, const float* scales) override {
    std::copy(scales, scales + n_rows * n_blocks_, scales_.begin() + row * n_blocks_);
  }

  std::unique_ptr<LinearWeight> finish() override {
    for (int64_t n = 0; n < desc_.n; ++n)
      for (size_t block = 0; block < n_blocks_; ++block)
        for (int64_t k = desc_.k_bounds[block]; k < desc_.k_bounds[block + 1]; ++k)
          weight_->values[n * desc_.k + k] *= scales_[n * n_blocks_ + block];
    return std::move(weight_);
  }

 private:
  LinearDesc desc_;
  size_t n_blocks_;
  std::vector<float> scales_;  // (n, n_blocks)
  std::unique_ptr<ReferenceWeight> weight_;
};

const ReferenceWeight& reference_weight(const LinearWeight& weight) { return static_cast<const ReferenceWeight&>(weight); }

// y (n) = W x for one row.
void multiply_row(const float* x, const ReferenceWeight& weight, float* y) {
  for (int64_t n = 0; n < weight.n; ++n) {
    float sum = 0.0f;
    for (int64_t k = 0; k < weight.k; ++k) sum += x[k] * weight.values[n * weight.k + k];
    y[n] = sum;
  }
}

void rms_norm(const float* x, const float* weight, float eps, int width, float* out) {
  float squares = 0.0f;
  for (int i = 0; i < width; ++i) squares += x[i] * x[i];
  const float inverse = 1.0f / std::sqrt(squares / width + eps);
  for (int i = 0; i < width; ++i) out[i] = x[i] * inverse * weight[i];
}

float load_kv(const void* base, DType dtype, int64_t index) {
  return dtype == DType::f32 ? static_cast<const float*>(base)[index] : bf16_to_f32(static_cast<const uint16_t*>(base)[index]);
}

void store_kv(void* base, DType dtype, int64_t index, float value) {
  if (dtype == DType::f32)
    static_cast<float*>(base)[index] = value;
  else
    static_cast<uint16_t*>(base)[index] = f32_to_bf16(value);
}

// Element offset of (position, head, 0) in one layer's K or V.
int64_t kv_offset(const BatchView& batch, const AttentionShape& shape, int seq, int64_t position, int head) {
  const int64_t page = batch.page_tables[static_cast<int64_t>(seq) * batch.max_pages + position / kPageTokens];
  return ((page * shape.n_kv_heads + head) * kPageTokens + position % kPageTokens) * shape.head_dim;
}

}  // namespace

ReferenceBackend::ReferenceBackend(const BackendOptions& options) {
  info_.device = "cpu";
  info_.name = "reference kernels";
  info_.kernels = "reference";
  info_.compute = DType::f32;
  info_.kv_dtype = kv_cache_dtype(options, options.compute, false);  // the float32 mode keeps a float32 cache
  info_.fp8_prefill = fp8_prefill(options, options.compute, false);
  info_.n_threads = 1;
}

DeviceBuffer ReferenceBackend::alloc(size_t bytes, const char* what) {
  void* data = std::calloc(bytes ? bytes : 1, 1);
  if (!data)
    throw EngineError(ErrorCode::out_of_memory,
                      std::string(what) + ": " + std::to_string(bytes) + " bytes asked for, not available",
                      "lower kvCacheTokens or maxModelLen, or use a smaller model");
  return DeviceBuffer(data, bytes, [](void* memory, size_t) { std::free(memory); });
}

void ReferenceBackend::upload(void* device, const void* host, size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}
void ReferenceBackend::download(void* host, const void* device, size_t bytes) {
  if (bytes) std::memcpy(host, device, bytes);
}
void ReferenceBackend::zero(void* device, size_t bytes) { std::memset(device, 0, bytes); }

std::unique_ptr<LinearBuilder> ReferenceBackend::begin_linear(const LinearDesc& desc) {
  return std::make_unique<ReferenceBuilder>(desc);
}

void ReferenceBackend::embed(const Tensor& table, const int32_t* ids, int n_tokens, float* out) {
  const int64_t width = table.shape[1];
  for (int t = 0; t < n_tokens; ++t)
    for (int64_t i = 0; i < width; ++i) out[t * width + i] = load_kv(table.data, table.dtype, ids[t] * width + i);
}

void ReferenceBackend::reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight,
                                           float eps, int n_tokens, int width, float* out) {
  if (addend) {
    std::vector<float> sums(static_cast<size_t>(n_tokens) * width, 0.0f);
    for (int t = 0; t < n_tokens; ++t)
      for (int s = 0; s < n_slots; ++s)
        for (int i = 0; i < width; ++i)
          sums[static_cast<size_t>(t) * width + i] += addend[(static_cast<int64_t>(t) * n_slots + s) * width + i];
    if (comm) comm->all_reduce_sum(sums.data(), static_cast<int64_t>(sums.size()));
    for (size_t i = 0; i < sums.size(); ++i) residual[i] += sums[i];
  }
  if (!out) return;
  for (int64_t t = 0; t < n_tokens; ++t) rms_norm(residual + t * width, weight, eps, width, out + t * width);
}

void ReferenceBackend::linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) {
  const ReferenceWeight& w = reference_weight(weight);
  for (int64_t t = 0; t < n_tokens; ++t) multiply_row(x + t * w.k, w, y + t * w.n);
}

void ReferenceBackend::qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv,
                                          const float* q_norm, const float* k_norm, float eps, const float* cos,
                                          const float* sin, const KvView& kv, float* q_out) {
  const int head_dim = shape.head_dim, half = shape.rotary_dim / 2;
  const int64_t row_width = static_cast<int64_t>(shape.n_heads + 2 * shape.n_kv_heads) * head_dim;
  std::vector<float> head(head_dim);

  // head <- the normed and turned head at `source`.
  const auto norm_and_turn = [&](const float* source, const float* norm, int64_t position) {
    if (norm)
      rms_norm(source, norm, eps, head_dim, head.data());
    else
      std::copy(source, source + head_dim, head.begin());
    for (int j = 0; j < half; ++j) {
      const float c = cos[position * half + j], s = sin[position * half + j];
      const float a = head[j], b = head[j + half];
      head[j] = a * c - b * s;
      head[j + half] = b * c + a * s;
    }
  };

  for (int b = 0; b < batch.n_seqs; ++b)
    for (int64_t t = batch.seq_offsets[b]; t < batch.seq_offsets[b + 1]; ++t) {
      const int64_t position = batch.positions[t];
      const float* row = qkv + t * row_width;
      for (int h = 0; h < shape.n_heads; ++h, row += head_dim) {
        norm_and_turn(row, q_norm, position);
        std::copy(head.begin(), head.end(), q_out + (t * shape.n_heads + h) * head_dim);
      }
      for (int g = 0; g < shape.n_kv_heads; ++g, row += head_dim) {
        norm_and_turn(row, k_norm, position);
        const int64_t at = kv_offset(batch, shape, b, position, g);
        for (int i = 0; i < head_dim; ++i) store_kv(kv.k, kv.dtype, at + i, head[i]);
      }
      for (int g = 0; g < shape.n_kv_heads; ++g, row += head_dim) {
        const int64_t at = kv_offset(batch, shape, b, position, g);
        for (int i = 0; i < head_dim; ++i) store_kv(kv.v, kv.dtype, at + i, row[i]);
      }
    }
}

void ReferenceBackend::attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv,
                                 float* out) {
  const int head_dim = shape.head_dim, heads_per_kv = shape.n_heads / shape.n_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  std::vector<float> scores;
  for (int b = 0; b < batch.n_seqs; ++b)
    for (int64_t t = batch.seq_offsets[b]; t < batch.seq_offsets[b + 1]; ++t)
      for (int h = 0; h < shape.n_heads; ++h) {
        const int g = h / heads_per_kv;
        const int64_t length = batch.positions[t] + 1;
        const float* query = q + (t * shape.n_heads + h) * head_dim;
        scores.resize(length);
        float highest = -std::numeric_limits<float>::infinity();
        for (int64_t p = 0; p < length; ++p) {
          const int64_t at = kv_offset(batch, shape, b, p, g);
          float dot = 0.0f;
          for (int i = 0; i < head_dim; ++i) dot += query[i] * load_kv(kv.k, kv.dtype, at + i);
          scores[p] = dot * scale;
          highest = std::max(highest, scores[p]);
        }
        float total = 0.0f;
        for (float& score : scores) total += score = std::exp(score - highest);
        float* result = out + (t * shape.n_heads + h) * head_dim;
        std::fill(result, result + head_dim, 0.0f);
        for (int64_t p = 0; p < length; ++p) {
          const int64_t at = kv_offset(batch, shape, b, p, g);
          for (int i = 0; i < head_dim; ++i) result[i] += scores[p] / total * load_kv(kv.v, kv.dtype, at + i);
        }
      }
}

void ReferenceBackend::route(const float* x, const LinearWeight& gate, const float* bias, const RouterShape& shape,
                             int n_tokens, const int32_t* forced_ids, float* logits, const Routing& out) {
  linear(x, gate, n_tokens, logits);
  choose_experts(logits, bias, shape, n_tokens, forced_ids, out);
}

void choose_experts(const float* logits, const float* bias, const RouterShape& shape, int n_tokens, const int32_t* forced_ids,
                    const Routing& out) {
  const int n_experts = shape.n_experts, n_active = shape.n_active, group_size = n_experts / shape.n_groups;
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  std::vector<float> scores(n_experts), choice(n_experts), group_scores(shape.n_groups);
  std::vector<int32_t> order(n_experts), groups(shape.n_groups);

  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int e = 0; e < n_experts; ++e) {
      scores[e] = 1.0f / (1.0f + std::exp(-logits[t * n_experts + e]));
      choice[e] = scores[e] + bias[e];
    }
    int32_t* ids = out.expert_ids + t * n_active;
    if (forced_ids) {
      std::copy(forced_ids + t * n_active, forced_ids + (t + 1) * n_active, ids);
    } else {
      for (int g = 0; g < shape.n_groups; ++g) {  // a group counts with its two best experts
        float best = kNever, second = kNever;
        for (int e = g * group_size; e < (g + 1) * group_size; ++e) {
          if (choice[e] > best)
            second = best, best = choice[e];
          else
            second = std::max(second, choice[e]);
        }
        groups[g] = g;
        group_scores[g] = group_size > 1 ? best + second : best;
      }
      std::stable_sort(groups.begin(), groups.end(), [&](int a, int b) { return group_scores[a] > group_scores[b]; });
      for (int i = shape.n_groups_kept; i < shape.n_groups; ++i)
        std::fill_n(choice.begin() + groups[i] * group_size, group_size, kNever);
      for (int e = 0; e < n_experts; ++e) order[e] = e;
      std::partial_sort(order.begin(), order.begin() + n_active, order.end(),
                        [&](int a, int b) { return choice[a] != choice[b] ? choice[a] > choice[b] : a < b; });
      std::copy_n(order.begin(), n_active, ids);
    }
    float sum = 0.0f;
    for (int a = 0; a < n_active; ++a) sum += scores[ids[a]];
    const float divisor = shape.normalise ? sum + 1e-20f : 1.0f;
    for (int a = 0; a < n_active; ++a) out.weights[t * n_active + a] = scores[ids[a]] / divisor * shape.scaling;
  }

  // Counting sort of the (token, choice) slots by expert; tokens stay in order within an expert.
  std::fill(out.expert_offsets, out.expert_offsets + n_experts + 1, 0);
  const int64_t n_slots = static_cast<int64_t>(n_tokens) * n_active;
  for (int64_t i = 0; i < n_slots; ++i) ++out.expert_offsets[out.expert_ids[i] + 1];
  for (int e = 0; e < n_experts; ++e) out.expert_offsets[e + 1] += out.expert_offsets[e];
  std::vector<int32_t> next(out.expert_offsets, out.expert_offsets + n_experts);
  for (int64_t i = 0; i < n_slots; ++i) out.slot_order[next[out.expert_ids[i]]++] = static_cast<int32_t>(i);
}

void ReferenceBackend::experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n_tokens,
                               int width, float* out) {
  const bool shared_slot = n_active == 0 || weights.shared_gate_up;
  const int n_slots = n_active + (shared_slot ? 1 : 0);
  std::vector<float> gate_up, inner;

  // out (D) = scale * down(silu(gate x) * up x)
  const auto run = [&](const LinearWeight* gate_up_weight, const LinearWeight* down_weight, const float* token, float scale,
                       float* result) {
    std::fill(result, result + width, 0.0f);
    if (!gate_up_weight) return;  // this rank has no share of the width
    const ReferenceWeight& first = reference_weight(*gate_up_weight);
    const int64_t inner_width = first.n / 2;
    gate_up.resize(first.n);
    inner.resize(inner_width);
    multiply_row(token, first, gate_up.data());
    for (int64_t i = 0; i < inner_width; ++i) inner[i] = gate_up[i] / (1.0f + std::exp(-gate_up[i])) * gate_up[inner_width + i];
    multiply_row(inner.data(), reference_weight(*down_weight), result);
    for (int i = 0; i < width; ++i) result[i] *= scale;
  };

  for (int64_t t = 0; t < n_tokens; ++t) {
    float* token_out = out + t * n_slots * width;
    for (int a = 0; a < n_active; ++a) {
      const int32_t e = routing.expert_ids[t * n_active + a];
      run(weights.gate_up[e], weights.down[e], x + t * width, routing.weights[t * n_active + a], token_out + a * width);
    }
    if (shared_slot) run(weights.shared_gate_up, weights.shared_down, x + t * width, 1.0f, token_out + n_active * width);
  }
}

void ReferenceBackend::head_logits(const float* x, const int32_t* row_ids, int n_rows, const LinearWeight& lm_head, Comm* comm,
                                   const std::vector<int64_t>& vocab_widths, float* logits) {
  const ReferenceWeight& w = reference_weight(lm_head);
  std::vector<float> part;
  float* target = logits;
  if (comm) {
    part.resize(static_cast<size_t>(n_rows) * w.n);
    target = part.data();
  }
  for (int64_t r = 0; r < n_rows; ++r) multiply_row(x + (row_ids ? row_ids[r] : r) * w.k, w, target + r * w.n);
  if (comm) comm->all_gather_columns(part.data(), logits, n_rows, vocab_widths);
}

void ReferenceBackend::copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to,
                                 const int32_t* to_ids, int64_t to_stride, int n_rows, int width) {
  for (int64_t i = 0; i < n_rows; ++i)
    for (int d = 0; d < width; ++d)
      to[(to_ids ? to_ids[i] : i) * to_stride + d] = from[(from_ids ? from_ids[i] : i) * from_stride + d];
}

void ReferenceBackend::join_norms(const float* embedding, const float* embedding_norm, const float* hidden,
                                  const float* hidden_norm, float eps, int n_tokens, int width, float* out) {
  for (int64_t t = 0; t < n_tokens; ++t) {
    rms_norm(embedding + t * width, embedding_norm, eps, width, out + 2 * t * width);
    rms_norm(hidden + t * width, hidden_norm, eps, width, out + (2 * t + 1) * width);
  }
}

}  // namespace sigmoe
