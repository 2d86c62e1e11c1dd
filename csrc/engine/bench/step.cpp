#include "engine/bench/step.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "engine/schedule/page_pool.h"

namespace sigmoe::bench {
Step::Step(BenchModel& model, int n_seqs, int n_tokens, int64_t context, int chunk)
    : model_(model),
      config_(model.config),
      n_seqs_(n_seqs),
      context_(context),
      n_pages_each_(pages_for(context)),
      heads_(shard_heads(config_, model.rank, model.world)),
      kv_(*model.backend, config_.n_layers, n_pages_each_ * n_seqs, heads_.kv.size(), config_.head_dim),
      workspace_(config_, heads_, *model.backend, static_cast<int64_t>(n_seqs) * std::min(chunk, n_tokens), context, false),
      graph_(config_, model.weights, heads_, *model.backend, model.comm, kv_, workspace_) {
  SIGMOE_CHECK(n_seqs == 1 || n_tokens == 1, "a step is many sequences of one row or one sequence of many");
  make_views(n_tokens, chunk);
  make_sampler();
}

const int32_t* Step::put(const std::vector<int32_t>& values) {
  held_.push_back(model_.backend->alloc(values.size() * sizeof(int32_t), "step inputs"));
  model_.backend->upload(held_.back().data(), values.data(), values.size() * sizeof(int32_t));
  return held_.back().as<const int32_t>();
}

void Step::make_views(int n_tokens, int chunk) {
  std::mt19937_64 random(7);
  pages_.resize(static_cast<size_t>(n_pages_each_) * n_seqs_);
  std::iota(pages_.begin(), pages_.end(), 0);
  std::shuffle(pages_.begin(), pages_.end(), random);  // as they lie after hours of serving
  page_tables_ = put(pages_);
  for (int begin = 0; begin < n_tokens; begin += chunk) {
    const int each = std::min(chunk, n_tokens - begin), rows = each * n_seqs_;
    std::vector<int32_t> ids(rows), positions(rows), offsets(n_seqs_ + 1);
    for (int row = 0; row < rows; ++row) {
      ids[row] = static_cast<int32_t>(random() % static_cast<uint64_t>(config_.vocab_size));
      positions[row] = static_cast<int32_t>(context_ - n_tokens + begin + row % each);
    }
    for (int seq = 0; seq <= n_seqs_; ++seq) offsets[seq] = seq * each;
    BatchView view;
    view.n_tokens = rows;
    view.n_seqs = n_seqs_;
    // One sequence's table serves as its own beginning; those of many are as wide as they are.
    view.max_pages = static_cast<int>(n_seqs_ == 1 ? pages_for(context_ - n_tokens + begin + each) : n_pages_each_);
    view.token_ids = put(ids);
    view.positions = put(positions);
    view.seq_offsets = put(offsets);
    view.page_tables = page_tables_;
    views_.push_back(view);
    contexts_.push_back(context_ - n_tokens + begin + each);
  }
}

void Step::make_sampler() {
  Backend& backend = *model_.backend;
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  std::vector<int32_t> rows(n_seqs_);
  for (int seq = 0; seq < n_seqs_; ++seq) rows[seq] = (seq + 1) * (views_.back().n_tokens / n_seqs_) - 1;
  head_rows_ = put(rows);
  logits_ = backend.alloc(n_seqs_ * vocab * sizeof(float), "logits");
  counts_ = backend.alloc(n_seqs_ * vocab * sizeof(uint32_t), "token counts");
  outputs_ = backend.alloc(static_cast<size_t>(n_seqs_) * (2 + 2 * kMaxLogprobs) * 4, "sampled tokens");
  sample_rows_ = backend.alloc(n_seqs_ * sizeof(SampleRow), "rows to sample");
  sample_.logits = logits_.as<float>();
  sample_.n_rows = n_seqs_;
  sample_.vocab_size = static_cast<int>(vocab);
  sample_.rows = sample_rows_.as<SampleRow>();
  sample_.counts = counts_.as<uint32_t>();
  sample_.tokens = outputs_.as<int32_t>();
  sample_.logprobs = outputs_.as<float>() + n_seqs_;
  sample_.top_ids = outputs_.as<int32_t>() + 2 * n_seqs_;
  sample_.top_logprobs = outputs_.as<float>() + (2 + kMaxLogprobs) * static_cast<size_t>(n_seqs_);
  sample_with(0, 1, 0);
}

void Step::sample_with(float temperature, float top_p, int top_k) {
  std::vector<SampleRow> rows(n_seqs_);
  for (int seq = 0; seq < n_seqs_; ++seq) {
    rows[seq].slot = seq;
    rows[seq].seed = static_cast<uint64_t>(seq) + 1;
    rows[seq].temperature = temperature;
    rows[seq].top_p = top_p;
    rows[seq].top_k = top_k;
  }
  model_.backend->upload(sample_rows_.data(), rows.data(), rows.size() * sizeof(SampleRow));
  model_.backend->synchronize();
}

Routing Step::routing() const {
  return {workspace_.expert_ids.as<int32_t>(), workspace_.expert_weights.as<float>(), workspace_.expert_offsets.as<int32_t>(),
          workspace_.slot_order.as<int32_t>()};
}

void Step::use_noise() {
  float* residual = workspace_.residual.as<float>();
  model_.device->fill(residual, DType::f32, static_cast<size_t>(rows()) * config_.hidden_size, 1.7f, 11);
  model_.backend->reduce_add_rms_norm(residual, nullptr, 0, nullptr, model_.weights.final_norm.as<float>(), config_.rms_eps,
                                      rows(), static_cast<int>(config_.hidden_size), workspace_.normed.as<float>());
}

void Step::head() {
  model_.backend->head_logits(workspace_.normed.as<float>(), head_rows_, n_seqs_, *model_.weights.lm_head, model_.comm,
                              model_.weights.vocab_widths, logits_.as<float>());
}

void Step::sample() { model_.backend->sample(sample_); }

std::vector<double> Step::touched_by_forward() {
  Trace trace;
  graph_.forward(last(), &trace);
  std::vector<double> touched;
  for (const auto& ids : trace.router_ids)
    touched.push_back(static_cast<double>(std::set<int32_t>(ids.begin(), ids.end()).size()));
  return touched;
}

void Step::fill_cache() {
  constexpr int kRows = 4096;
  Backend& backend = *model_.backend;
  const int64_t width = (heads_.q.size() + 2 * heads_.kv.size()) * config_.head_dim;
  const AttentionShape shape{static_cast<int>(heads_.q.size()), static_cast<int>(heads_.kv.size()),
                             static_cast<int>(config_.head_dim), static_cast<int>(config_.rotary_dim)};
  const int64_t total = context_ * n_seqs_;
  const int rows_at_once = static_cast<int>(std::min<int64_t>(kRows, total));
  const size_t n_noise = static_cast<size_t>(rows_at_once) * width;
  const DeviceBuffer qkv = backend.alloc(n_noise * sizeof(float), "random keys and values");
  const DeviceBuffer query = backend.alloc(
      static_cast<size_t>(rows_at_once) * heads_.q.size() * config_.head_dim * sizeof(float), "queries that nobody reads");
  model_.device->fill(qkv.data(), DType::f32, n_noise, 1.7f, 13);
  // Every row is a sequence of its own here, so that one step may hold any positions of all sequences.
  for (int64_t first = 0; first < total; first += rows_at_once) {
    const int n = static_cast<int>(std::min<int64_t>(rows_at_once, total - first));
    std::vector<int32_t> positions(n), offsets(n + 1), tables(n);
    for (int row = 0; row < n; ++row) {
      const int64_t seq = (first + row) / context_, position = (first + row) % context_;
      // A table of one page: the position inside it, the rotation of a page's first tokens.
      tables[row] = pages_[seq * n_pages_each_ + position / kPageTokens];
      positions[row] = static_cast<int32_t>(position % kPageTokens);
      offsets[row + 1] = row + 1;
    }
    BatchView view;
    view.n_tokens = view.n_seqs = n;
    view.max_pages = 1;
    view.positions = put(positions);
    view.seq_offsets = put(offsets);
    view.page_tables = put(tables);
    for (size_t layer = 0; layer < model_.weights.layers.size(); ++layer) {
      const LayerWeights& weights = model_.weights.layers[layer];
      backend.qk_norm_rope_store(view, shape, qkv.as<float>(), weights.q_norm.as<float>(), weights.k_norm.as<float>(),
                                 config_.rms_eps, workspace_.rope_cos.as<float>(), workspace_.rope_sin.as<float>(), kv(layer),
                                 query.as<float>());
    }
    backend.synchronize();
    held_.resize(held_.size() - 3);
  }
}

}  // namespace sigmoe::bench
