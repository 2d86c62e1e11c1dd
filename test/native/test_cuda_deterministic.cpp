// `deterministic: true` on a GPU: the bits of a token's hidden state depend neither on how its prompt was cut nor on how many
// other rows were in the step, however many kernels the backend has for different row counts.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "doctest/doctest.h"
#include "engine/bench/bench_model.h"
#include "engine/engine.h"
#include "engine/forward/graph.h"
#include "engine/forward/kv_cache.h"
#include "engine/schedule/page_pool.h"

using namespace sigmoe;

namespace {

bool have_cuda() {
  for (const DeviceLine& line : engine_devices())
    if (line.device == "cuda") {
      if (!line.available) std::printf("cuda determinism: skipped, %s\n", line.detail.c_str());
      return line.available;
    }
  return false;
}

constexpr int kPrompt = 600, kSeqs = 200;
constexpr int64_t kPagesEach = 5;  // room for the prompt and a token more

// Rows of a step: tokens [begin, begin + n) of a sequence.
struct Rows {
  int seq, begin, n;
};

class Runner {
 public:
  explicit Runner(bench::BenchModel& model)
      : model_(model),
        heads_(shard_heads(model.config, 0, 1)),
        kv_(*model.backend, model.config.n_layers, kSeqs * kPagesEach, model.config.n_kv_heads, model.config.head_dim),
        workspace_(model.config, heads_, *model.backend, kPrompt + kSeqs, kPrompt + 1, false),
        graph_(model.config, model.weights, heads_, *model.backend, nullptr, kv_, workspace_) {}

  // The final hidden states of the rows, in order.
  std::vector<float> run(const std::vector<Rows>& rows) {
    std::vector<int32_t> ids, positions, offsets = {0}, pages;
    for (const Rows& part : rows) {
      for (int i = part.begin; i < part.begin + part.n; ++i) {
        // Every sequence has a text of its own.
        ids.push_back(static_cast<int32_t>((i * 7919 + part.seq * 104729 + 17) % model_.config.vocab_size));
        positions.push_back(i);
      }
      offsets.push_back(static_cast<int32_t>(ids.size()));
      for (int64_t page = 0; page < kPagesEach; ++page)
        pages.push_back(static_cast<int32_t>(part.seq * kPagesEach + (page * 3 + part.seq) % kPagesEach));
    }
    std::vector<DeviceBuffer> held;
    const auto put = [&](const std::vector<int32_t>& values) {
      held.push_back(model_.backend->alloc(values.size() * sizeof(int32_t), "test inputs"));
      model_.backend->upload(held.back().data(), values.data(), values.size() * sizeof(int32_t));
      return held.back().as<const int32_t>();
    };
    BatchView view;
    view.n_tokens = static_cast<int>(ids.size());
    view.n_seqs = static_cast<int>(rows.size());
    view.max_pages = static_cast<int>(kPagesEach);
    view.token_ids = put(ids);
    view.positions = put(positions);
    view.seq_offsets = put(offsets);
    view.page_tables = put(pages);
    graph_.forward(view);
    std::vector<float> out(ids.size() * model_.config.hidden_size);
    model_.backend->download(out.data(), workspace_.normed.data(), out.size() * sizeof(float));
    return out;
  }

  // Sequence 0's prompt, cut into chunks.
  std::vector<float> prompt(int chunk) {
    std::vector<float> all;
    for (int begin = 0; begin < kPrompt; begin += chunk) {
      const std::vector<float> part = run({{0, begin, std::min(chunk, kPrompt - begin)}});
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

 private:
  bench::BenchModel& model_;
  HeadShard heads_;
  KvCache kv_;
  Workspace workspace_;
  Graph graph_;
};

size_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  size_t i = 0;
  while (i < a.size() && i < b.size() && std::memcmp(&a[i], &b[i], sizeof(float)) == 0) ++i;
  return i;
}

}  // namespace

TEST_CASE("cuda deterministic: bits depend neither on chunks, nor on neighbours, nor on the size of the batch") {
  if (!have_cuda()) return;
  for (const char* dtype : {"fp8", "bf16"}) {
    CAPTURE(dtype);
    bench::Options options;
    options.shape = "ling-mini-2.0:2";
    options.dtype = dtype;
    options.engine.device = "cuda";
    options.engine.deterministic = true;
    bench::BenchModel model = bench::make_model(
        options, [](const std::string&) {}, nullptr);
    CHECK(model.backend->info().kernels.find("deterministic") != std::string::npos);
    Runner runner(model);

    const std::vector<float> whole = runner.prompt(kPrompt);
    const size_t width = model.config.hidden_size;
    double squares = 0;
    for (const float value : whole) squares += static_cast<double>(value) * value;
    REQUIRE(squares / static_cast<double>(whole.size()) == doctest::Approx(1.0).epsilon(0.1));  // normed rows, none missing
    for (const int chunk : {512, 200, 64, 33, 9}) {
      CAPTURE(chunk);
      const std::vector<float> cut = runner.prompt(chunk);
      REQUIRE(cut.size() == whole.size());
      CHECK(first_difference(cut, whole) == whole.size());
    }

    // The next token of sequence 0 alone, and among others: tokens of their own, and a prompt beside it.
    const std::vector<float> alone = runner.run({{0, kPrompt, 1}});
    for (const int n_seqs : {2, 8, 33, 64, 128, kSeqs}) {
      CAPTURE(n_seqs);
      std::vector<Rows> rows = {{0, kPrompt, 1}};
      for (int seq = 1; seq < n_seqs; ++seq) rows.push_back({seq, 0, 1});
      const std::vector<float> among = runner.run(rows);
      CHECK(first_difference({among.begin(), among.begin() + width}, alone) == width);
      rows.back() = {n_seqs - 1, 0, 300};
      const std::vector<float> beside = runner.run(rows);
      CHECK(first_difference({beside.begin(), beside.begin() + width}, alone) == width);
    }
  }
}
