// The token budget of a step where nobody says it: by device, memory and context; and what a token of it takes.
#include "doctest/doctest.h"
#include "engine/engine.h"
#include "engine/model_folder.h"
#include "engine/speculation/draft_checkpoint.h"
#include "golden.h"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

const std::string kNano = source_dir() + "/models/nano", kDraft = source_dir() + "/models/nano-eagle3";
constexpr uint64_t kTokenBytes = 250'000, kRoom = 3 * 8192 * kTokenBytes;  // a step of 8,192 just fits, scratch and all
constexpr int64_t kContext = 131'072;

int chosen(const EngineOptions& options, const std::string& device, uint64_t spare_bytes = kRoom, int64_t context = kContext) {
  return step_tokens(options, device, context, kTokenBytes, spare_bytes);
}

uint64_t workspace_of(EngineOptions options, int max_batched_tokens) {
  options.max_batched_tokens = max_batched_tokens;
  return Engine::load(kNano, options)->info().workspace_bytes;
}

}  // namespace

TEST_CASE("memory plan: a step that is left open is long on CUDA and short elsewhere") {
  const EngineOptions open;
  CHECK(chosen(open, "cuda") == 8192);
  for (const char* device : {"cpu", "ascend", "ascend-twin"}) {
    CAPTURE(device);
    CHECK(chosen(open, device) == 512);
    CHECK(chosen(open, device, 0) == 512);  // their memory is not looked at
  }
}

TEST_CASE("memory plan: a step that is asked for stays as it is") {
  EngineOptions asked;
  asked.max_num_seqs = 4096;
  for (const int tokens : {1, 512, 700, 65536}) {
    asked.max_batched_tokens = tokens;
    for (const char* device : {"cpu", "cuda"}) CHECK(chosen(asked, device, 0, 1) == tokens);
  }
}

TEST_CASE("memory plan: tight memory halves the step, to no less than 512 or a row for every sequence") {
  EngineOptions open;
  CHECK(chosen(open, "cuda", kRoom - 1) == 4096);
  CHECK(chosen(open, "cuda", kRoom / 2) == 4096);
  CHECK(chosen(open, "cuda", kRoom / 2 - 1) == 2048);
  CHECK(chosen(open, "cuda", kRoom / 16) == 512);
  CHECK(chosen(open, "cuda", 0) == 512);  // the KV cache has all of it
  open.max_num_seqs = 3000;
  CHECK(chosen(open, "cuda") == 8192);
  CHECK(chosen(open, "cuda", kRoom / 2) == 4096);
  CHECK(chosen(open, "cuda", 0) == 3000);
  CHECK(chosen(open, "cpu") == 3000);
}

TEST_CASE("memory plan: nodes choose alike, whatever the memory of each") {
  EngineOptions open;
  open.node.count = 2;
  CHECK(chosen(open, "cuda", kRoom) == 8192);
  CHECK(chosen(open, "cuda", 0) == 8192);
  CHECK(chosen(open, "cpu", 0) == 512);
}

TEST_CASE("memory plan: a step is no longer than all sequences together") {
  EngineOptions open;
  CHECK(chosen(open, "cuda", kRoom, 100) == 3200);
  open.max_num_seqs = 1;
  CHECK(chosen(open, "cuda", kRoom, 2048) == 2048);
  for (const char* device : {"cpu", "cuda"}) {
    CHECK(chosen(open, device, kRoom, 64) == 64);
    CHECK(chosen(open, device, kRoom, 1) == 1);
  }
  open.max_num_seqs = 4096;
  CHECK(chosen(open, "cuda", kRoom, int64_t{1} << 31) == 8192);
}

TEST_CASE("memory plan: a loaded model reports the step that was chosen, or the one that was asked for") {
  EngineOptions options = on_test_device({});
  const EngineInfo info = Engine::load(kNano, options)->info();
  CHECK(info.max_batched_tokens == (info.device == "cuda" ? 8192 : 512));
  options.data_parallel = 2;
  if (enough_gpus(2)) CHECK(Engine::load(kNano, options)->info().max_batched_tokens == info.max_batched_tokens);
  options.data_parallel = 1;
  options.max_model_len = 7;
  CHECK(Engine::load(kNano, options)->info().max_batched_tokens == 7 * 32);
  options.max_batched_tokens = 700;
  CHECK(Engine::load(kNano, options)->info().max_batched_tokens == 700);
  for (const int refused : {-1, 65537}) {
    options.max_batched_tokens = refused;
    CHECK_THROWS_WITH_AS(Engine::load(kNano, options),
                         ("maxBatchedTokens is " + std::to_string(refused) + ", outside [0, 65536]").c_str(), EngineError);
  }
}

TEST_CASE("memory plan: what a token of the step takes is what the buffers of a longer one have more") {
  const ModelConfig config = open_model_folder(kNano).config;
  const DraftConfig draft = open_draft_folder(kDraft, config).config;
  const uint64_t row = sizeof(float) * config.hidden_size;
  for (const int world : {1, 2})
    for (const std::string method : {"none", "mtp", "eagle3"}) {
      if (world > 1 && method == "eagle3") continue;  // the same buffers on one of them
      CAPTURE(world);
      CAPTURE(method);
      EngineOptions options;
      options.device = "cpu";
      options.n_threads = 1;
      options.tensor_parallel = world;
      options.speculation = method;
      if (method == "eagle3") options.draft = kDraft;
      uint64_t expected = 0;
      for (int rank = 0; rank < world; ++rank) {
        expected += Workspace::bytes_per_token(config, shard_heads(config, rank, world), method == "mtp");
        if (method == "mtp") expected += row;
        if (method == "eagle3") expected += 3 * row + eagle3_bytes_per_row(draft, config.hidden_size);
      }
      CHECK(workspace_of(options, 164) - workspace_of(options, 64) == 100 * expected);
    }
}
