// A whole model at the longest context: two layers with the real shape of a KV head (heads of 128 dims, several query heads on it), YaRN, a
// prompt of 131,072 tokens read in chunks. The CUDA kernels in BF16 are compared with CUDA's own float32 mode (naive kernels,
// no tensor cores) over the whole length, that mode with the CPU in float32 over as many tokens as a CPU can read. Without a
// device the case prints why and returns.
#include <numeric>

#include "cuda_testing.h"
#include "engine/forward/graph.h"
#include "engine/weights/synthetic.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

constexpr int kChunk = 8192, kLast = 64, kThreads = 16;

ModelConfig small_model() {
  ModelConfig config = shape_config("ling-flash-2.0:2");
  config.vocab_size = 512, config.hidden_size = 256;
  config.n_heads = 2, config.n_kv_heads = 1;
  config.dense_width = 256, config.expert_width = config.shared_width = 128;
  config.n_experts = config.n_active = 8;  // all of them: no rounding can change a choice
  config.n_groups = config.n_groups_kept = 1;
  config.yarn.factor = 4.0;
  config.yarn.original_context = 32768;
  config.context = 131072;
  return config;
}

// Logits of the last kLast of n_tokens positions, (kLast, V). other_half: the first half of the tokens are others.
std::vector<float> last_logits(Backend& backend, int n_tokens, bool other_half = false) {
  const ModelConfig config = small_model();
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
    for (int i = 0; i < n_tokens / 2; ++i) ids[i] = static_cast<int32_t>(ids[i] + 1 + i % 7) % 512;
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), random);
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
  }
  std::vector<int32_t> rows(kLast);
  std::iota(rows.begin(), rows.end(), chunk - kLast);
  const OnDevice<int32_t> device_rows(backend, rows);
  const OnDevice<float> logits(backend, std::vector<float>(kLast * config.vocab_size, kPoison));
  backend.head_logits(workspace.normed.as<float>(), device_rows.get(), kLast, *weights.lm_head, nullptr, weights.vocab_widths,
                      logits.get());
  return logits.read();
}

// The worst position's relative error.
double worst(const std::vector<float>& found, const std::vector<float>& expected) {
  const size_t width = expected.size() / kLast;
  double most = 0.0;
  for (size_t at = 0; at < expected.size(); at += width)
    most = std::max(most, relative_error({found.begin() + at, found.begin() + at + width},
                                         {expected.begin() + at, expected.begin() + at + width}));
  return most;
}

}  // namespace

TEST_CASE("cuda long model: two layers, YaRN, 131,072 tokens: the last positions' logits") {
  if (!have_cuda()) return;
  const std::unique_ptr<Backend> exact = cuda(DType::f32), fast = cuda(DType::bf16),
                                 cpu = make_backend({"generic", DType::f32}, kThreads);
  const double of_exact = worst(last_logits(*exact, 2048), last_logits(*cpu, 2048));
  const std::vector<float> whole = last_logits(*exact, 131072);
  const std::vector<float> found = last_logits(*fast, 131072);
  const double of_fast = worst(found, whole), of_tokens = worst(last_logits(*fast, 131072, true), found);
  std::printf(
      "cuda long model, worst position: float32 mode against the CPU at 2,048 tokens %.2e; BF16 against float32 mode at "
      "131,072 %.2e; other tokens in the first half %.2e\n",
      of_exact, of_fast, of_tokens);
  CHECK(of_exact < 1e-4);
  CHECK(of_fast < 0.02);
  CHECK(of_tokens > 0.1);  // what lies 65,536 tokens back counts
}
