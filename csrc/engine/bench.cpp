// `sigmoe bench`: decode and prefill of one sequence, whole and by part, each beside its counted bound and the machine's
// own ceilings measured in the same run; and the cost of loading a folder beside the cost of reading it.
//
// Bytes are counted from what a step must read: attention weights, the experts its tokens were routed to (each once), the
// head, and the cached K and V. FLOP are two per multiply-add. A fraction is the bound's time over the measured median.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include "backend/registry.h"
#include "engine/engine.h"
#include "engine/forward/runner.h"
#include "engine/model_folder.h"
#include "engine/schedule/page_pool.h"
#include "engine/weights/synthetic.h"
#include "nlohmann/json.hpp"

namespace sigmoe {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct BenchOptions {
  std::string model, shape;
  std::string format = "fp8";
  int context = 128, prefill = 512, repeats = 21;
  bool load = false;
  EngineOptions engine;
};

BenchOptions parse_options(const std::string& text) {
  BenchOptions options;
  const Json in = Json::parse(text, nullptr, false);
  if (!in.is_object()) throw EngineError(ErrorCode::invalid_argument, "bench options are not a JSON object");
  // A JSON number that is no whole one, or is past its range, must not reach a cast.
  const auto whole = [&](const char* name, int fallback, int low, int high) {
    if (!in.contains(name)) return fallback;
    const Json& value = in[name];
    if (!value.is_number_integer() || value.get<double>() < low || value.get<double>() > high)
      throw EngineError(ErrorCode::invalid_argument, std::string("bench ") + name + " is " + value.dump() +
                                                         ", not a whole number in [" + std::to_string(low) + ", " +
                                                         std::to_string(high) + "]");
    return value.get<int>();
  };
  options.context = whole("context", options.context, 1, 1 << 20);
  options.prefill = whole("prefill", options.prefill, 0, 1 << 20);
  options.repeats = whole("repeats", options.repeats, 1, 1000);
  options.engine.n_threads = whole("threads", 0, 0, 1024);
  try {
    options.model = in.value("model", "");
    options.shape = in.value("shape", "");
    options.format = in.value("format", options.format);
    options.load = in.value("load", false);
    options.engine.kernels = in.value("kernels", "auto");
    options.engine.compute = in.value("compute", "bfloat16");
    options.engine.kv_cache_dtype = in.value("kvCacheDtype", "auto");
  } catch (const Json::exception& error) {
    throw EngineError(ErrorCode::invalid_argument, std::string("bench options: ") + error.what());
  }
  const auto require = [](bool condition, const char* message) {
    if (!condition) throw EngineError(ErrorCode::invalid_argument, message);
  };
  require(options.model.empty() != options.shape.empty(), "bench needs either a model folder or a shape");
  require(options.format == "fp8" || options.format == "bf16" || options.format == "int4",
          "bench format must be fp8, bf16 or int4");
  return options;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double milliseconds(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// What one step has to move and compute.
struct Cost {
  double bytes = 0, flop = 0;
  void add_linear(const LinearWeight* weight, double macs_per_token, int n_tokens) {
    if (!weight) return;
    bytes += static_cast<double>(weight->bytes());
    flop += 2.0 * macs_per_token * n_tokens;
  }
};

class Bench {
 public:
  Bench(const BenchOptions& options, const std::function<void(const std::string&)>& on_line, const std::atomic<bool>* cancelled)
      : options_(options), on_line_(on_line), cancelled_(cancelled), random_(7) {}

  std::string run() {
    if (options_.load) measure_load();
    build();
    result_["machine"] = {
        {"name", backend_->info().name}, {"threads", backend_->info().n_threads}, {"kernels", backend_->info().kernels}};
    result_["shape"] = options_.shape.empty() ? std::filesystem::path(options_.model).filename().string() : options_.shape;
    probe_ = make_ceiling_probe(backend_->info().n_threads);
    if (options_.prefill > 0) measure_prefill();
    prepare_decode();
    measure_decode("whole", whole_cost(), [this] { decode_step(); });
    measure_decode("attention", attention_cost(1), [this] { attention_pass(); });
    measure_decode("experts", expert_cost(), [this] { expert_pass(); });
    measure_decode("head", head_cost(), [this] { head_pass(); });
    result_["machine"]["readGbps"] = median(all_read_gbps_);
    result_["machine"]["matrixGflops"] = median(all_matrix_gflops_);
    result_["memory"] = {{"weightBytes", runner_->weights().bytes},
                         {"kvBytes", runner_->kv_bytes()},
                         {"workspaceBytes", runner_->workspace_bytes()},
                         {"peakResidentBytes", peak_resident_bytes()}};
    Json out = result_;
    out["rows"] = rows_;
    return out.dump();
  }

 private:
  void check_cancelled() const {
    if (cancelled_ && cancelled_->load()) throw EngineError(ErrorCode::aborted, "the benchmark was aborted");
  }

  void build() {
    auto backend = create_backend("cpu", backend_options(options_.engine));
    backend_ = backend.get();
    ModelWeights weights;
    if (options_.model.empty()) {
      on_line_("making random " + options_.format + " weights of shape " + options_.shape);
      config_ = shape_config(options_.shape);
      const WeightFormat format = options_.format == "fp8"    ? WeightFormat::fp8
                                  : options_.format == "bf16" ? WeightFormat::bf16
                                                              : WeightFormat::int4;
      weights = synthetic_weights(config_, format, *backend, 7, backend->info().n_threads);
    } else {
      on_line_("loading " + options_.model);
      const ModelFolder folder = open_model_folder(options_.model);
      config_ = folder.config;
      weights = load_weights(config_, folder.checkpoint, *backend, load_options());
    }
    check_cancelled();
    const int64_t longest = std::max<int64_t>(options_.prefill, options_.context) + options_.repeats + 16;
    if (longest > config_.context && options_.shape.empty())
      throw EngineError(
          ErrorCode::invalid_argument,
          "bench needs " + std::to_string(longest) + " positions; the model's context is " + std::to_string(config_.context),
          "lower --context or --prefill");
    RunnerLimits limits;
    limits.max_tokens = options_.engine.max_batched_tokens;
    limits.max_seqs = 1;
    limits.n_positions = longest;
    limits.n_pages = pages_for(longest);
    heads_ = shard_heads(config_, 0, 1);
    runner_ = std::make_unique<RankRunner>(config_, std::move(backend), std::move(weights), nullptr, 0, 1, limits);
    workspace_ = std::make_unique<Workspace>(config_, heads_, *backend_, 1, longest, false);
    kv_ = std::make_unique<KvCache>(*backend_, config_.n_layers, limits.n_pages, config_.n_kv_heads, config_.head_dim);
  }

  LoadOptions load_options() const {
    LoadOptions load;
    load.n_threads = backend_options(options_.engine).n_threads;
    load.cancelled = cancelled_;
    return load;
  }

  // Tokens [begin, begin + n) of one sequence whose pages are 0, 1, 2, ...; the last row is sampled greedily.
  StepInputs step_inputs(int64_t begin, const std::vector<int32_t>& tokens, bool sample) const {
    StepInputs in;
    in.token_ids = tokens;
    const int n = static_cast<int>(tokens.size());
    for (int i = 0; i < n; ++i) in.positions.push_back(static_cast<int32_t>(begin + i));
    in.seq_offsets = {0, n};
    in.max_pages = static_cast<int>(pages_for(begin + n));
    for (int page = 0; page < in.max_pages; ++page) in.page_tables.push_back(page);
    if (sample) {
      SampleRow row;
      row.temperature = 0;
      row.position = static_cast<int32_t>(begin + n);
      in.sample_rows = {row};
      in.sample_row_ids = {n - 1};
    }
    return in;
  }

  std::vector<int32_t> random_tokens(int n) {
    std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(config_.vocab_size) - 1);
    std::vector<int32_t> tokens(n);
    for (int32_t& token : tokens) token = any(random_);
    return tokens;
  }

  // A prompt in chunks; returns the choices of the router where asked.
  void run_prompt(const std::vector<int32_t>& tokens, Trace* trace, double* total_ms) {
    const int chunk = options_.engine.max_batched_tokens;
    for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
      const size_t end = std::min(tokens.size(), begin + chunk);
      const StepInputs in =
          step_inputs(static_cast<int64_t>(begin), {tokens.begin() + begin, tokens.begin() + end}, end == tokens.size());
      const double ms = milliseconds([&] { runner_->run(in, outputs_, trace); });
      if (total_ms) *total_ms += ms;
    }
  }

  // ---- prefill ----

  void measure_prefill() {
    on_line_("prefill of " + std::to_string(options_.prefill) + " tokens");
    Trace trace;  // of the warm-up: the count of experts touched
    run_prompt(random_tokens(options_.prefill), &trace, nullptr);
    const Cost cost = prefill_cost(trace);
    Samples samples;
    for (int i = 0; i < std::max(3, options_.repeats / 3); ++i) {
      check_cancelled();
      const std::vector<int32_t> tokens = random_tokens(options_.prefill);
      double ms = 0;
      probe(samples);
      run_prompt(tokens, nullptr, &ms);
      probe(samples);
      samples.ms.push_back(ms);
    }
    add_row("prefill", "whole", options_.prefill, samples, cost);
  }

  Cost prefill_cost(const Trace& trace) const {
    const int n = options_.prefill;
    Cost cost = attention_cost(n);
    add_dense_layers(cost, n);
    const size_t chunks = (n + options_.engine.max_batched_tokens - 1) / options_.engine.max_batched_tokens;
    const size_t moe_layers = trace.router_ids.size() / std::max<size_t>(1, chunks);
    for (size_t i = 0; i < trace.router_ids.size(); ++i) {
      const std::set<int32_t> touched(trace.router_ids[i].begin(), trace.router_ids[i].end());
      const LayerWeights& layer = runner_->weights().layers[config_.n_dense_layers + i % moe_layers];
      const int tokens = static_cast<int>(trace.router_ids[i].size() / config_.n_active);
      add_moe_layer(cost, layer, static_cast<double>(touched.size()), tokens);
    }
    const Cost head = head_cost();
    cost.bytes += head.bytes;
    cost.flop += head.flop;
    return cost;
  }

  // ---- decode ----

  void prepare_decode() {
    on_line_("decode at context " + std::to_string(options_.context));
    run_prompt(random_tokens(options_.context), nullptr, nullptr);
    position_ = options_.context;
    next_token_ = outputs_.tokens.at(0);
    // K and V for the attention pass: the same context, through the same kernels.
    std::normal_distribution<float> normal;
    noise_.resize(std::max<int64_t>(config_.hidden_size, (config_.n_heads + 2 * config_.n_kv_heads) * config_.head_dim) * 64);
    for (float& value : noise_) value = normal(random_);
    for (int64_t layer = 0; layer < config_.n_layers; ++layer)
      for (int64_t position = 0; position < options_.context; ++position) store_noise(layer, position);
  }

  const float* noise(int64_t n) { return noise_.data() + random_() % (noise_.size() - n); }

  BatchView single_row(int64_t position) {
    row_.assign({0, static_cast<int32_t>(position), 0, 1});
    for (int64_t page = 0; page < pages_for(position + 1); ++page) row_.push_back(static_cast<int32_t>(page));
    return {1, 1, static_cast<int>(pages_for(position + 1)), &row_[0], &row_[1], &row_[2], &row_[4]};
  }

  void store_noise(int64_t layer, int64_t position) {
    const LayerWeights& w = runner_->weights().layers[layer];
    backend_->qk_norm_rope_store(single_row(position), attention_shape(),
                                 noise((config_.n_heads + 2 * config_.n_kv_heads) * config_.head_dim), w.q_norm.as<float>(),
                                 w.k_norm.as<float>(), config_.rms_eps, workspace_->rope_cos.as<float>(),
                                 workspace_->rope_sin.as<float>(), kv_->layer(layer), workspace_->query.as<float>());
  }

  AttentionShape attention_shape() const {
    return {static_cast<int>(config_.n_heads), static_cast<int>(config_.n_kv_heads), static_cast<int>(config_.head_dim),
            static_cast<int>(config_.rotary_dim)};
  }

  void decode_step() {
    const StepInputs in = step_inputs(position_, {next_token_}, true);
    runner_->run(in, outputs_);
    next_token_ = outputs_.tokens[0];
    if (++position_ >= options_.context + options_.repeats + 8) position_ = options_.context;
  }

  void attention_pass() {
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
      const LayerWeights& w = runner_->weights().layers[layer];
      backend_->linear(noise(config_.hidden_size), *w.qkv, 1, workspace_->qkv.as<float>());
      const BatchView batch = single_row(options_.context);
      backend_->qk_norm_rope_store(batch, attention_shape(), workspace_->qkv.as<float>(), w.q_norm.as<float>(),
                                   w.k_norm.as<float>(), config_.rms_eps, workspace_->rope_cos.as<float>(),
                                   workspace_->rope_sin.as<float>(), kv_->layer(layer), workspace_->query.as<float>());
      backend_->attention(batch, attention_shape(), workspace_->query.as<float>(), kv_->layer(layer),
                          workspace_->attended.as<float>());
      backend_->linear(workspace_->attended.as<float>(), *w.attn_out, 1, workspace_->normed.as<float>());
    }
    backend_->synchronize();
  }

  void expert_pass() {
    const RouterShape router{static_cast<int>(config_.n_experts),
                             static_cast<int>(config_.n_active),
                             static_cast<int>(config_.n_groups),
                             static_cast<int>(config_.n_groups_kept),
                             config_.normalise_topk,
                             config_.routed_scaling};
    const Routing routing{workspace_->expert_ids.as<int32_t>(), workspace_->expert_weights.as<float>(),
                          workspace_->expert_offsets.as<int32_t>(), workspace_->slot_order.as<int32_t>()};
    for (const LayerWeights& layer : runner_->weights().layers) {
      if (layer.dense) continue;
      const float* x = noise(config_.hidden_size);
      backend_->route(x, *layer.router, layer.router_bias.as<float>(), router, 1, nullptr,
                      workspace_->router_logits.as<float>(), routing);
      backend_->experts(x, layer.experts, routing, router.n_active, 1, static_cast<int>(config_.hidden_size),
                        workspace_->partial.as<float>());
    }
    backend_->synchronize();
  }

  void head_pass() {
    const int32_t row = 0;
    head_logits_.resize(config_.vocab_size);
    backend_->head_logits(noise(config_.hidden_size), &row, 1, *runner_->weights().lm_head, nullptr, {config_.vocab_size},
                          head_logits_.data());
    backend_->synchronize();
  }

  // The ceilings are sampled right before each pass, because those of a shared machine drift; the read sample also evicts
  // what a part would otherwise find in the last-level cache, which no real step allows.
  void measure_decode(const char* part, const Cost& cost, const std::function<void()>& pass) {
    if (cost.bytes == 0) return;
    pass();
    Samples samples;
    for (int i = 0; i < options_.repeats; ++i) {
      check_cancelled();
      probe(samples);
      samples.ms.push_back(milliseconds(pass));
    }
    add_row("decode", part, 1, samples, cost);
  }

  // ---- counting ----

  Cost attention_cost(int n_tokens) const {
    Cost cost;
    const double q_width = static_cast<double>(config_.n_heads) * config_.head_dim,
                 kv_width = static_cast<double>(config_.n_kv_heads) * config_.head_dim;
    const double d = static_cast<double>(config_.hidden_size);
    const double start = n_tokens == 1 ? options_.context : 0;
    const double read_positions = n_tokens == 1 ? start + 1 : n_tokens;       // cached tokens read once
    const double pairs = n_tokens * start + n_tokens * (n_tokens + 1.0) / 2;  // (query, key) pairs
    for (const LayerWeights& layer : runner_->weights().layers) {
      cost.add_linear(layer.qkv.get(), d * (q_width + 2 * kv_width), n_tokens);
      cost.add_linear(layer.attn_out.get(), d * q_width, n_tokens);
      cost.bytes += 2 * kv_width * dtype_bytes(backend_->info().kv_dtype) * read_positions;
      cost.flop += 4.0 * q_width * pairs;
    }
    return cost;
  }

  void add_dense_layers(Cost& cost, int n_tokens) const {
    const double d = static_cast<double>(config_.hidden_size), width = static_cast<double>(config_.dense_width);
    for (const LayerWeights& layer : runner_->weights().layers) {
      if (!layer.dense) continue;
      cost.add_linear(layer.shared_gate_up.get(), 2 * d * width, n_tokens);
      cost.add_linear(layer.shared_down.get(), d * width, n_tokens);
    }
  }

  void add_moe_layer(Cost& cost, const LayerWeights& layer, double n_touched, int n_tokens) const {
    const double d = static_cast<double>(config_.hidden_size);
    cost.bytes += n_touched * static_cast<double>(layer.gate_up[0]->bytes() + layer.down[0]->bytes());
    cost.flop += 2.0 * 3 * d * config_.expert_width * config_.n_active * n_tokens;
    cost.add_linear(layer.router.get(), d * config_.n_experts, n_tokens);
    cost.add_linear(layer.shared_gate_up.get(), 2 * d * config_.shared_width, n_tokens);
    cost.add_linear(layer.shared_down.get(), d * config_.shared_width, n_tokens);
  }

  Cost expert_cost() const {
    Cost cost;
    for (const LayerWeights& layer : runner_->weights().layers)
      if (!layer.dense) add_moe_layer(cost, layer, static_cast<double>(config_.n_active), 1);
    return cost;
  }

  Cost head_cost() const {
    Cost cost;
    cost.add_linear(runner_->weights().lm_head.get(), static_cast<double>(config_.hidden_size) * config_.vocab_size, 1);
    return cost;
  }

  Cost whole_cost() const {
    Cost cost = attention_cost(1);
    add_dense_layers(cost, 1);
    for (const Cost& part : {expert_cost(), head_cost()}) {
      cost.bytes += part.bytes;
      cost.flop += part.flop;
    }
    return cost;
  }

  // ---- loading ----

  // Three times of one folder: reading its files and throwing the bytes away, reading them into memory new to the process
  // (the least a loader can do: on a virtual machine the memory may cost more than the reading), and loading it.
  void measure_load() {
    if (options_.model.empty()) throw EngineError(ErrorCode::invalid_argument, "bench of loading needs a model folder");
    const ModelFolder folder = open_model_folder(options_.model);
    for (const bool cold : {false, true}) {
      auto backend = create_backend("cpu", backend_options(options_.engine));
      std::vector<double> reads, kept_reads, loads;
      const auto time = [&](std::vector<double>& times, const std::function<void()>& body) {
        if (cold) drop_cached_files();
        times.push_back(milliseconds(body));
      };
      for (int i = 0; i < (cold ? 3 : 5); ++i) {
        check_cancelled();
        on_line_(std::string(cold ? "cold" : "warm") + " load " + std::to_string(i + 1));
        time(reads, [&] { read_files(folder.checkpoint); });
        {
          std::vector<DeviceBuffer> kept;
          time(kept_reads, [&] { kept = read_files(folder.checkpoint, backend.get()); });
        }
        ModelWeights weights;
        time(loads, [&] {
          const ModelFolder again = open_model_folder(options_.model);
          weights = load_weights(again.config, again.checkpoint, *backend, load_options());
        });
      }
      const std::string kind = cold ? "cold " : "warm ";
      add_load_row(folder, kind + "read, discarded", median(reads));
      add_load_row(folder, kind + "read into memory", median(kept_reads));
      add_load_row(folder, kind + "load", median(loads), kind + "read into memory", median(kept_reads));
    }
  }

  void add_load_row(const ModelFolder& folder, const std::string& part, double ms, const std::string& bound = "",
                    double bound_ms = 0) {
    const double bytes = static_cast<double>(folder.checkpoint.total_bytes());
    Json row = {{"phase", "load"}, {"part", part}, {"milliseconds", ms}, {"bytes", bytes}, {"gbps", bytes / ms / 1e6}};
    if (!bound.empty()) row.update({{"boundMilliseconds", bound_ms}, {"boundBy", bound}, {"fraction", bound_ms / ms}});
    rows_.push_back(std::move(row));
  }

  // With the loader's number of threads; into memory of `keep` when given, else over one buffer a thread.
  std::vector<DeviceBuffer> read_files(const Checkpoint& checkpoint, Backend* keep = nullptr) const {
    constexpr size_t kChunk = 1u << 20;
    std::set<const FileReader*> files;
    for (const auto& [name, entry] : checkpoint.tensors()) files.insert(entry.file);
    struct Chunk {
      const FileReader* file;
      uint64_t at;
      size_t bytes;
      std::byte* to;
    };
    std::vector<DeviceBuffer> kept;
    std::vector<Chunk> chunks;
    for (const FileReader* file : files) {
      if (keep) kept.push_back(keep->alloc(file->size(), "a file"));
      for (uint64_t at = 0; at < file->size(); at += kChunk)
        chunks.push_back({file, at, static_cast<size_t>(std::min<uint64_t>(kChunk, file->size() - at)),
                          keep ? kept.back().as<std::byte>() + at : nullptr});
    }
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < load_options().n_threads; ++i)
      threads.emplace_back([&] {
        std::vector<std::byte> buffer(kChunk);
        for (size_t c; (c = next++) < chunks.size();)
          chunks[c].file->read(chunks[c].at, chunks[c].to ? chunks[c].to : buffer.data(), chunks[c].bytes);
      });
    for (std::thread& thread : threads) thread.join();
    return kept;
  }

  // Asks the kernel to forget clean pages of the folder's files, so that the next read comes from the disk.
  void drop_cached_files() const {
    for (const auto& entry : std::filesystem::directory_iterator(options_.model)) {
      const int file = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
      if (file < 0) continue;
      posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
      close(file);
    }
  }

  static double peak_resident_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
      if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) * 1024;
    return 0;
  }

  // ---- rows ----

  // Times of one row and the ceilings sampled beside them.
  struct Samples {
    std::vector<double> ms, read_gbps, matrix_gflops;
  };

  void probe(Samples& samples) {
    samples.read_gbps.push_back(probe_->read_gbps());
    samples.matrix_gflops.push_back(probe_->matrix_gflops());
  }

  void add_row(const char* phase, const char* part, int n_tokens, const Samples& samples, const Cost& cost) {
    const double ms = median(samples.ms), gbps = median(samples.read_gbps), gflops = median(samples.matrix_gflops);
    const double read_ms = cost.bytes / gbps / 1e6, matrix_ms = cost.flop / gflops / 1e6,
                 bound_ms = std::max(read_ms, matrix_ms);
    all_read_gbps_.insert(all_read_gbps_.end(), samples.read_gbps.begin(), samples.read_gbps.end());
    all_matrix_gflops_.insert(all_matrix_gflops_.end(), samples.matrix_gflops.begin(), samples.matrix_gflops.end());
    rows_.push_back({{"phase", phase},
                     {"part", part},
                     {"tokensPerSecond", n_tokens / ms * 1e3},
                     {"milliseconds", ms},
                     {"bytes", cost.bytes},
                     {"gbps", cost.bytes / ms / 1e6},
                     {"flop", cost.flop},
                     {"gflops", cost.flop / ms / 1e6},
                     {"readGbps", gbps},
                     {"matrixGflops", gflops},
                     {"boundMilliseconds", bound_ms},
                     {"boundBy", read_ms >= matrix_ms ? "read bandwidth" : "matrix peak"},
                     {"fraction", bound_ms / ms}});
  }

  BenchOptions options_;
  const std::function<void(const std::string&)>& on_line_;
  const std::atomic<bool>* cancelled_;
  std::mt19937_64 random_;
  ModelConfig config_;
  HeadShard heads_;
  Backend* backend_ = nullptr;  // owned by runner_
  std::unique_ptr<RankRunner> runner_;
  std::unique_ptr<Workspace> workspace_;  // of one row, for the parts
  std::unique_ptr<KvCache> kv_;
  StepOutputs outputs_;
  std::vector<float> noise_, head_logits_;
  std::vector<int32_t> row_;
  int64_t position_ = 0;
  int32_t next_token_ = 0;
  std::unique_ptr<CeilingProbe> probe_;
  std::vector<double> all_read_gbps_, all_matrix_gflops_;
  std::vector<Json> rows_;
  Json result_;
};

}  // namespace

std::string run_benchmark(const std::string& options_json, const std::function<void(const std::string&)>& on_line,
                          const std::atomic<bool>* cancelled) {
  return Bench(parse_options(options_json), on_line, cancelled).run();
}

}  // namespace sigmoe
