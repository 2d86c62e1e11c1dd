#include "long_model.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "cuda_testing.h"
#include "engine/forward/graph.h"
#include "engine/weights/synthetic.h"
#include "golden.h"

namespace sigmoe::testing {
namespace {

constexpr int kChunk = 8192, kThreads = 16;

ModelConfig long_model() {
  ModelConfig config = shape_config("ling-flash-2.0:2");
  config.vocab_size = 512, config.hidden_size = 256;
  config.dense_width = 256, config.expert_width = config.shared_width = 128;
  config.n_experts = config.n_active = 8;  // all of them: no rounding can change a choice
  config.n_groups = config.n_groups_kept = 1;
  config.yarn.factor = 4.0;
  config.yarn.original_context = 32768;
  config.context = kLongContext;
  return config;
}

}  // namespace

std::vector<float> long_model_logits(Backend& backend, int n_tokens, bool other_half, void (*progress)(int)) {
  const ModelConfig config = long_model();
  const ModelWeights weights = synthetic_weights(config, WeightFormat::bf16, backend, 17, kThreads);
  // Scores of standard deviation 3: a row looks at some tens of keys, wherever they lie.
  const std::vector<float> sharp(config.head_dim, 1.7f);
  for (const LayerWeights& layer : weights.layers)
    for (const DeviceBuffer* norm : {&layer.q_norm, &layer.k_norm})
      backend.upload(norm->data(), sharp.data(), sharp.size() * sizeof(float));

  const HeadShard heads = shard_heads(config, 0, 1);
  const int n_pages = n_tokens / kPageTokens, chunk = std::min(kChunk, n_tokens);
  KvCache kv(backend, config.n_layers, n_pages, config.n_kv_heads, config.head_dim);
  Workspace workspace(config, heads, backend, chunk, config.context, false);
  Graph graph(config, weights, heads, backend, nullptr, kv, workspace);
  std::vector<int32_t> ids(n_tokens), positions(n_tokens), pages(n_pages);
  std::mt19937_64 random(5);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % config.vocab_size);
  if (other_half)
    for (int i = 0; i < n_tokens / 2; ++i) ids[i] = static_cast<int32_t>((ids[i] + 1 + i % 7) % config.vocab_size);
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  std::reverse(pages.begin(), pages.end());
  const OnDevice<int32_t> device_ids(backend, ids), device_positions(backend, positions), device_pages(backend, pages),
      offsets(backend, {0, chunk});
  for (int first = 0; first < n_tokens; first += chunk) {
    BatchView batch;
    batch.n_tokens = chunk;
    batch.n_seqs = 1;
    batch.max_pages = (first + chunk) / kPageTokens;
    batch.token_ids = device_ids.get() + first;
    batch.positions = device_positions.get() + first;
    batch.seq_offsets = offsets.get();
    batch.page_tables = device_pages.get();
    graph.forward(batch);
    if (progress) progress(first + chunk);
  }
  std::vector<int32_t> rows(kLongLast);
  std::iota(rows.begin(), rows.end(), chunk - kLongLast);
  const OnDevice<int32_t> device_rows(backend, rows);
  const OnDevice<float> logits(backend, std::vector<float>(kLongLast * config.vocab_size, kPoison));
  backend.head_logits(workspace.normed.as<float>(), device_rows.get(), kLongLast, *weights.lm_head, nullptr,
                      weights.vocab_widths, logits.get());
  return logits.read();
}

std::string long_model_file() { return test::source_dir() + "/test/reference/long-model.safetensors"; }

std::vector<float> stored_long_model_logits(int n_tokens) {
  return test::GoldenFile(long_model_file()).floats("logits." + std::to_string(n_tokens));
}

}  // namespace sigmoe::testing
