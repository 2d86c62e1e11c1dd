// Storage formats no golden checkpoint comes in, derived from golden ones: the quantised checkpoint on every path against the
// naive kernels on a float32 checkpoint that holds what the stored values mean.
#include <algorithm>
#include <fstream>

#include "doctest/doctest.h"
#include "engine/model_folder.h"
#include "golden.h"
#include "make_checkpoint.h"

using namespace sigmoe;
using namespace sigmoe::test;
using sigmoe::testing::memory_checkpoint;
using sigmoe::testing::Storage;
using sigmoe::testing::store_model;

TEST_CASE(
    "formats: FP8 per channel, per tensor and blocks, INT4 groups, INT8 per channel equal their dequantised weights in "
    "float32") {
  for (const char* name : {"base", "two-shared", "real-heads"}) {
    const std::string folder = golden_dir() + "/random/" + name;
    std::ifstream config_file(folder + "/config.json");
    const nlohmann::json config = nlohmann::json::parse(config_file);
    const sigmoe::testing::FloatTensors tensors = sigmoe::testing::read_tensors(Checkpoint::open(folder));
    const std::vector<int32_t> tokens = GoldenFile(folder + "/golden.safetensors").ints("input_ids");
    for (const Storage storage :
         {Storage::fp8_channel, Storage::fp8_tensor, Storage::fp8_block, Storage::int4_group, Storage::int8_channel}) {
      const auto stored = store_model(config, tensors, storage);
      const auto truth = store_model(config, stored.truth, Storage::f32);
      TestModel reference(parse_model_config(truth.config.dump()), memory_checkpoint(truth), {}, 64);
      const std::vector<float> expected = run_logits(reference, tokens, {64});
      for (const std::string& path : available_paths(DType::f32))
        for (const auto [world, expert_parallel] : {Ranks{1}, Ranks{2}, Ranks{8}, Ranks{4, true}}) {
          CAPTURE(name);
          CAPTURE(path);
          CAPTURE(world);
          CAPTURE(expert_parallel);
          CAPTURE(sigmoe::testing::storage_name(storage));
          WorldSpec spec;
          spec.kernels = path;
          spec.world = world;
          spec.expert_parallel = expert_parallel;
          TestModel model(parse_model_config(stored.config.dump()), memory_checkpoint(stored, 2), spec, 64);
          const std::vector<double> errors = row_errors(run_logits(model, tokens, {64}), expected, model.config.vocab_size);
          CHECK(*std::max_element(errors.begin(), errors.end()) <= 1e-4);
        }
    }
  }
}
