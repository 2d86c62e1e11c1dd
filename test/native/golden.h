// Golden checkpoints and vectors for the C++ tests; test/golden/README.md says where they come from.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/engine.h"
#include "engine/forward/world.h"

namespace sigmoe::test {

// Makes the CPU backends of the engines that a test loads; null: those that users get.
extern std::function<std::unique_ptr<Backend>(const BackendOptions&)> make_cpu_backend;

std::string golden_dir();                              // folder with random/NAME/, unpacked by the build
std::string source_dir();                              // the repository
const std::vector<std::string>& random_checkpoints();  // the twelve names

// A whole safetensors file in memory.
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path);
  bool has(const std::string& name) const { return tensors_.count(name) > 0; }
  std::vector<int64_t> shape(const std::string& name) const;
  std::vector<float> floats(const std::string& name) const;  // F32 or BF16
  std::vector<int32_t> ints(const std::string& name) const;  // I32 or I64

 private:
  const TensorEntry& find(const std::string& name) const;
  std::unique_ptr<FileReader> file_;
  std::map<std::string, TensorEntry> tensors_;
};

// What this machine can run in the given compute type: the CPU paths, "reference" first, then devices. SIGMOE_TEST_PATHS
// (names, comma-separated) narrows it, for runs on a device where CPU paths need no second look; "ascend-twin" runs only when
// it is named there.
std::vector<std::string> available_paths(DType compute);

// The device of SIGMOE_TEST_DEVICE in place of "auto": the engine's tests on another device. On a GPU with deterministic
// kernels, because these tests compare bits across batches and chunks.
EngineOptions on_test_device(EngineOptions options);
// False where that device has fewer pieces than an engine of so many ranks takes.
bool enough_gpus(int world);

// Over how many GPUs the ranks of a device are spread: SIGMOE_TEST_GPUS, else 1. Ranks that share a GPU meet through the host.
int n_test_gpus();

// The worlds that every golden runs in.
struct Ranks {
  int world = 1;
  bool expert_parallel = false;
};
const std::vector<Ranks>& all_worlds();

struct WorldSpec {
  std::string kernels = "reference";  // a CPU path, or a device: "cuda", "ascend", "ascend-twin"
  DType compute = DType::f32;
  std::string kv_cache = "auto", prefill_attention = "auto";
  bool deterministic = false;  // one class of kernels at every number of rows; the CPU has no other
  int world = 1;
  bool expert_parallel = false;
  int n_threads = 2;
  bool mtp = false;
  int64_t max_tokens = 512;
  FeatureTap features;  // kept for a draft model
};

// Whether steps of many rows multiply FP8 weights with FP8 activations there (W8A8): CUDA on Hopper, unless deterministic.
bool has_w8a8(const WorldSpec& spec);

// A checkpoint folder loaded into a world of ranks, with pages enough for a few sequences of n_positions tokens.
struct TestModel {
  TestModel(const std::string& folder, const WorldSpec& spec, int64_t n_positions);
  TestModel(const ModelConfig& config, const Checkpoint& checkpoint, const WorldSpec& spec, int64_t n_positions);
  ModelConfig config;
  std::unique_ptr<World> world;
};

// Logits of every position, (T, V), fed in chunks of the given sizes (the last one repeats). Pages start at first_page.
std::vector<float> run_logits(TestModel& model, const std::vector<int32_t>& tokens, const std::vector<int64_t>& chunks,
                              Trace* trace = nullptr, int32_t first_page = 0);
std::vector<float> run_mtp_logits(TestModel& model, const std::vector<int32_t>& tokens, const std::vector<int32_t>& next_ids);
// Greedy continuation of n tokens through the sampler, one token a step.
std::vector<int32_t> run_greedy(TestModel& model, const std::vector<int32_t>& prompt, int n);

// ||a - b|| / ||b|| of each row of width n.
std::vector<double> row_errors(const std::vector<float>& a, const std::vector<float>& b, int64_t n);
double median_of(std::vector<double> values);

}  // namespace sigmoe::test
