#include "golden.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "backend/registry.h"
#include "engine/model_folder.h"
#include "engine/schedule/page_pool.h"

// The linker puts this one in the place of create_cpu_backend, which keeps the other name (test/native/CMakeLists.txt).
extern "C" std::unique_ptr<sigmoe::Backend> __real__ZN6sigmoe18create_cpu_backendERKNS_14BackendOptionsE(
    const sigmoe::BackendOptions& options);
extern "C" std::unique_ptr<sigmoe::Backend> __wrap__ZN6sigmoe18create_cpu_backendERKNS_14BackendOptionsE(
    const sigmoe::BackendOptions& options) {
  if (sigmoe::test::make_cpu_backend) return sigmoe::test::make_cpu_backend(options);
  return __real__ZN6sigmoe18create_cpu_backendERKNS_14BackendOptionsE(options);
}

namespace sigmoe::test {

int n_test_gpus() {
  const char* set = std::getenv("SIGMOE_TEST_GPUS");
  return set ? std::max(1, std::atoi(set)) : 1;
}

std::function<std::unique_ptr<Backend>(const BackendOptions&)> make_cpu_backend;

std::string golden_dir() { return SIGMOE_GOLDEN_DIR; }
std::string source_dir() { return SIGMOE_SOURCE_DIR; }

const std::vector<std::string>& random_checkpoints() {
  static const std::vector<std::string> names = {"base",         "fp8-block",  "fp8-ragged", "full-rotary",
                                                 "mtp",          "no-qk-norm", "real-heads", "real-routing",
                                                 "single-group", "two-dense",  "two-shared", "yarn"};
  return names;
}

GoldenFile::GoldenFile(const std::string& path) : file_(open_file(path)) {
  for (TensorEntry& entry : read_safetensors_header(*file_)) tensors_[entry.name] = entry;
}

const TensorEntry& GoldenFile::find(const std::string& name) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end()) throw std::runtime_error("golden tensor " + name + " is missing from " + file_->path());
  return at->second;
}

std::vector<int64_t> GoldenFile::shape(const std::string& name) const { return find(name).shape; }

std::vector<float> GoldenFile::floats(const std::string& name) const {
  const TensorEntry& entry = find(name);
  std::vector<std::byte> raw(entry.bytes);
  file_->read(entry.offset, raw.data(), raw.size());
  std::vector<float> values(entry.bytes / dtype_bytes(entry.dtype));
  if (entry.dtype == DType::f32) {
    std::memcpy(values.data(), raw.data(), raw.size());
  } else {
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, raw.data() + 2 * i, 2);
      values[i] = bf16_to_f32(bits);
    }
  }
  return values;
}

std::vector<int32_t> GoldenFile::ints(const std::string& name) const {
  const TensorEntry& entry = find(name);
  std::vector<std::byte> raw(entry.bytes);
  file_->read(entry.offset, raw.data(), raw.size());
  std::vector<int32_t> values(entry.bytes / dtype_bytes(entry.dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    int64_t wide = 0;
    if (entry.dtype == DType::i64)
      std::memcpy(&wide, raw.data() + 8 * i, 8);
    else {
      int32_t narrow;
      std::memcpy(&narrow, raw.data() + 4 * i, 4);
      wide = narrow;
    }
    values[i] = static_cast<int32_t>(wide);
  }
  return values;
}

namespace {

// Paths that are devices of their own, by the registry's name.
bool is_device(const std::string& path) { return path == "cuda" || path == "ascend" || path == "ascend-twin"; }

std::unique_ptr<Backend> make_backend(const WorldSpec& spec, int rank = 0) {
  BackendOptions options;
  options.device_index = rank % n_test_gpus();
  options.compute = spec.compute;
  options.n_threads = spec.n_threads;
  options.kv_cache = spec.kv_cache;
  options.prefill_attention = spec.prefill_attention;
  options.deterministic = spec.deterministic;
  if (is_device(spec.kernels)) return create_backend(spec.kernels, options);
  options.kernels = spec.kernels;
  return create_backend("cpu", options);
}

bool wanted(const std::string& path) {
  const char* names = std::getenv("SIGMOE_TEST_PATHS");
  if (!names) return path != "ascend-twin";  // slow: a run of its own
  std::string list(1, ',');
  list.append(names).append(1, ',');
  return list.find("," + path + ",") != std::string::npos;
}

}  // namespace

std::vector<std::string> available_paths(DType compute) {
  std::vector<std::string> paths;
  for (const char* path : {"reference", "generic", "avx2", "avx512", "avx512bf16", "amx"}) {
    WorldSpec spec;
    spec.kernels = path;
    spec.compute = compute;
    spec.n_threads = 1;
    try {
      if (wanted(path) && make_backend(spec)->info().compute == compute) paths.push_back(path);
    } catch (const EngineError& error) {
      if (error.code() != ErrorCode::not_found) throw;
    }
  }
  for (const DeviceReport& report : list_devices()) {
    if (!is_device(report.device) || !wanted(report.device)) continue;
    if (report.available)
      paths.push_back(report.device);
    else if (static bool told = false; !std::exchange(told, true))
      std::printf("%s: skipped, %s\n", report.device.c_str(), report.detail.c_str());
  }
  // The twin is listed only where it is; asked for by name it must not be missed in silence.
  const char* names = std::getenv("SIGMOE_TEST_PATHS");
  if (names && std::string(names) == "ascend-twin" && paths.empty()) create_backend("ascend-twin", {});
  return paths;
}

bool enough_gpus(int world) {
  const char* device = std::getenv("SIGMOE_TEST_DEVICE");
  return !device || std::string(device) == "cpu" || world <= n_test_gpus();
}

const std::vector<Ranks>& all_worlds() {
  static const std::vector<Ranks> worlds{{1}, {2}, {4}, {8}, {2, true}, {4, true}, {8, true}};
  return worlds;
}

EngineOptions on_test_device(EngineOptions options) {
  const char* device = std::getenv("SIGMOE_TEST_DEVICE");
  if (device && *device && options.device == "auto") options.device = device;
  if (options.device == "cuda") options.deterministic = true;
  return options;
}

bool has_w8a8(const WorldSpec& spec) {
  return spec.kernels == "cuda" && spec.compute == DType::bf16 && !spec.deterministic &&
         create_backend("cuda", {})->info().kernels == "sm_90";
}

TestModel::TestModel(const std::string& folder, const WorldSpec& spec, int64_t n_positions) {
  const ModelFolder model = open_model_folder(folder);
  *this = TestModel(model.config, model.checkpoint, spec, n_positions);
}

TestModel::TestModel(const ModelConfig& model_config, const Checkpoint& checkpoint, const WorldSpec& spec, int64_t n_positions)
    : config(model_config) {
  world = std::make_unique<World>(spec.world, [&](int rank, Comm* comm) {
    auto backend = make_backend(spec, rank);
    LoadOptions load;
    load.rank = rank;
    load.world = spec.world;
    load.expert_parallel = spec.expert_parallel;
    load.with_mtp = spec.mtp;
    load.n_threads = 2;
    ModelWeights weights = load_weights(config, checkpoint, *backend, load);
    RunnerLimits limits;
    limits.max_tokens = spec.max_tokens;
    limits.max_seqs = 8;
    limits.n_positions = n_positions;
    limits.n_pages = 4 * pages_for(n_positions);
    limits.mtp = spec.mtp;
    limits.features = spec.features;
    return std::make_unique<RankRunner>(config, std::move(backend), std::move(weights), comm, rank, spec.world, limits);
  });
}

namespace {

StepInputs chunk_inputs(const std::vector<int32_t>& tokens, int64_t begin, int64_t end, int32_t first_page) {
  StepInputs in;
  for (int64_t i = begin; i < end; ++i) {
    in.token_ids.push_back(tokens[i]);
    in.positions.push_back(static_cast<int32_t>(i));
  }
  in.seq_offsets = {0, static_cast<int32_t>(end - begin)};
  in.max_pages = static_cast<int>(pages_for(end));
  for (int page = 0; page < in.max_pages; ++page) in.page_tables.push_back(first_page + page);
  return in;
}

}  // namespace

std::vector<float> run_logits(TestModel& model, const std::vector<int32_t>& tokens, const std::vector<int64_t>& chunks,
                              Trace* trace, int32_t first_page) {
  std::vector<float> logits;
  const int64_t n = static_cast<int64_t>(tokens.size());
  size_t c = 0;
  for (int64_t begin = 0; begin < n;) {
    const int64_t end = std::min(n, begin + chunks[std::min(c++, chunks.size() - 1)]);
    StepInputs in = chunk_inputs(tokens, begin, end, first_page);
    for (int64_t row = 0; row < end - begin; ++row) in.logits_row_ids.push_back(static_cast<int32_t>(row));
    StepOutputs out;
    model.world->run(in, out, trace);
    logits.insert(logits.end(), out.logits.begin(), out.logits.end());
    begin = end;
  }
  return logits;
}

std::vector<float> run_mtp_logits(TestModel& model, const std::vector<int32_t>& tokens, const std::vector<int32_t>& next_ids) {
  const int64_t n = static_cast<int64_t>(tokens.size());
  StepInputs in = chunk_inputs(tokens, 0, n, 0);
  in.next_ids = next_ids;
  for (int64_t row = 0; row < n; ++row) in.mtp_row_ids.push_back(static_cast<int32_t>(row));
  StepOutputs out;
  model.world->run(in, out);
  return out.mtp_logits;
}

std::vector<int32_t> run_greedy(TestModel& model, const std::vector<int32_t>& prompt, int n) {
  std::vector<int32_t> tokens = prompt;
  int64_t begin = 0;
  for (int i = 0; i < n; ++i) {
    const int64_t end = static_cast<int64_t>(tokens.size());
    StepInputs in = chunk_inputs(tokens, begin, end, 0);
    if (i == 0) in.resets.push_back({0, prompt, {}});
    SampleRow row;
    row.temperature = 0;
    row.position = static_cast<int32_t>(end);
    in.sample_rows = {row};
    in.sample_row_ids = {static_cast<int32_t>(end - begin - 1)};
    StepOutputs out;
    model.world->run(in, out);
    tokens.push_back(out.tokens[0]);
    begin = end;
  }
  return {tokens.begin() + prompt.size(), tokens.end()};
}

std::vector<double> row_errors(const std::vector<float>& a, const std::vector<float>& b, int64_t n) {
  std::vector<double> errors;
  for (size_t row = 0; row < b.size() / n; ++row) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = a[row * n + i], y = b[row * n + i];
      difference += (x - y) * (x - y);
      norm += y * y;
    }
    errors.push_back(std::sqrt(difference / norm));
  }
  return errors;
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace sigmoe::test
