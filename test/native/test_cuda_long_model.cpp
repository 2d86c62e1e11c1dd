// A whole model at the longest context: two layers, heads of 128 dims that turn as the model's do, YaRN, a prompt of 131,072
// tokens read in chunks. The CUDA kernels in BF16 are compared with CUDA's own float32 mode (naive kernels, no tensor cores)
// over the whole length, that mode with the CPU in float32 over as many tokens as a CPU reads in a second. Two query heads, for
// the naive kernels take the square of the length for each; attention of 32 heads over the same length: test_cuda_context.cpp.
// Half a minute on a GPU and as many cores: SIGMOE_TEST_LONG=1 asks for it, without that and without a device the case prints
// why and returns.
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

// Relative errors of the positions, the least first.
std::vector<double> errors(const std::vector<float>& found, const std::vector<float>& expected) {
  const size_t width = expected.size() / kLast;
  std::vector<double> all;
  for (size_t at = 0; at < expected.size(); at += width)
    all.push_back(relative_error({found.begin() + at, found.begin() + at + width},
                                 {expected.begin() + at, expected.begin() + at + width}));
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace

TEST_CASE("cuda long model: two layers, YaRN, 131,072 tokens: the last positions' logits") {
  if (!have_cuda()) return;
  if (!std::getenv("SIGMOE_TEST_LONG")) {
    std::printf("cuda long model: skipped, it takes long; set SIGMOE_TEST_LONG=1\n");
    return;
  }
  const std::unique_ptr<Backend> exact = cuda(DType::f32), fast = cuda(DType::bf16),
                                 cpu = make_backend({"generic", DType::f32}, kThreads);
  const std::vector<float> brief = last_logits(*exact, 2048), whole = last_logits(*exact, 131072),
                           found = last_logits(*fast, 131072);
  const std::vector<double> of_exact = errors(brief, last_logits(*cpu, 2048)),
                            of_brief = errors(last_logits(*fast, 2048), brief), of_whole = errors(found, whole),
                            of_tokens = errors(last_logits(*fast, 131072, true), found);
  const double usual = of_brief[kLast / 2];
  std::printf(
      "cuda long model, relative errors of the last %d positions: float32 mode against the CPU at 2,048 tokens, worst %.2e; "
      "BF16 "
      "against float32 mode, median and worst, at 2,048 %.2e %.2e, at 131,072 %.2e %.2e; other tokens in the first half, least "
      "%.2e\n",
      kLast, of_exact.back(), usual, of_brief.back(), of_whole[kLast / 2], of_whole.back(), of_tokens.front());
  CHECK(of_exact.back() < 1e-4);
  // The goldens' rule for BF16, twice the usual error and 0.5%, with that of a short prompt as the usual one: length costs
  // nothing.
  const double allowed = 2 * usual + 0.005;
  CHECK(usual < 0.02);
  CHECK(of_whole.back() < allowed);
  CHECK(of_tokens.front() > 2 * allowed);  // what lies 65,536 tokens back counts
}
