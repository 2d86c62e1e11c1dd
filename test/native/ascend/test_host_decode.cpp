// A whole model over the mock: decode steps are recorded and replayed with the answer of steps that are launched, and a layer
// of experts is eight launches.
#include "engine/forward/runner.h"
#include "engine/model_folder.h"
#include "engine/schedule/page_pool.h"
#include "mock_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;

namespace {

constexpr int kPrompt = 7, kAnswer = 6;

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> launches;  // of each step
  uint64_t n_replays = 0;
};

Answer answer_of(std::unique_ptr<AscendBackend> owned) {
  const ModelFolder model = open_model_folder(SIGMOE_SOURCE_DIR "/models/nano");
  AscendBackend& backend = *owned;
  ModelWeights weights = load_weights(model.config, model.checkpoint, backend, {});
  RunnerLimits limits;
  limits.max_tokens = 32;
  limits.max_seqs = 2;
  limits.n_positions = kPageTokens;
  limits.n_pages = 2;
  RankRunner runner(model.config, std::move(owned), std::move(weights), nullptr, 0, 1, limits);

  Answer answer;
  std::vector<int32_t> tokens;
  for (int i = 0; i < kPrompt; ++i) tokens.push_back(100 + 37 * i);
  for (size_t begin = 0; answer.tokens.size() < kAnswer;) {
    StepInputs in;
    for (size_t i = begin; i < tokens.size(); ++i) {
      in.token_ids.push_back(tokens[i]);
      in.positions.push_back(static_cast<int32_t>(i));
    }
    in.seq_offsets = {0, in.n_tokens()};
    in.page_tables = {1};
    in.max_pages = 1;
    if (begin == 0) in.resets.push_back({0, tokens, {}});
    SampleRow row;
    row.temperature = 0;
    row.position = static_cast<int32_t>(tokens.size());
    in.sample_rows = {row};
    in.sample_row_ids = {in.n_tokens() - 1};
    begin = tokens.size();
    StepOutputs out;
    const uint64_t before = backend.device().n_launches();
    runner.run(in, out);
    answer.launches.push_back(backend.device().n_launches() - before);
    tokens.push_back(out.tokens[0]);
    answer.tokens.push_back(out.tokens[0]);
  }
  answer.n_replays = backend.device().n_replays();
  return answer;
}

}  // namespace

TEST_CASE("ascend host: a decode step is recorded and replayed, eight launches a layer of experts") {
  for (const DType compute : {DType::bf16, DType::i8}) {
    CAPTURE(dtype_name(compute));
    const Answer replayed = answer_of(mock_backend(compute));
    std::unique_ptr<AscendBackend> eager;
    {
      const Fault fault("capture");
      eager = mock_backend(compute);
    }
    const Answer launched = answer_of(std::move(eager));
    CHECK(replayed.tokens == launched.tokens);
    CHECK(replayed.launches == launched.launches);
    CHECK(launched.n_replays == 0);
    CHECK(replayed.n_replays == kAnswer - 2);  // the prompt's step and the first of a token are launched

    // Six layers, the first of them dense and so without a router; embedding, last norm, the head's rows made narrow, head,
    // sampler.
    constexpr uint64_t kLayer = 8, kLayers = 6, kBesides = 5;
    for (size_t step = 1; step < replayed.launches.size(); ++step)
      CHECK(replayed.launches[step] == kLayers * kLayer - 1 + kBesides);
  }
}
