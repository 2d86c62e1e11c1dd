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
#include "engine/model_folder.h"
#include "engine/runner.h"
#include "engine/synthetic.h"
#include "nlohmann/json.hpp"

namespace sigmoe {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct BenchOptions {
  std::string model, shape;
  std::string format = "fp8";
  int context = 128, prefill = 512, repeats = 9;
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
    on_line_("measuring the matrix peak");
    matrix_gflops_ = measure_matrix_gflops(backend_->info().n_threads);
    if (options_.prefill > 0) measure_prefill();
    prepare_decode();
    measure_decode("whole", whole_cost(), false, [this] { decode_step(); });
    measure_decode("attention", attention_cost(1), true, [this] { attention_pass(); });
    measure_decode("experts", expert_cost(), true, [this] { expert_pass(); });
    measure_decode("head", head_cost(), true, [this] { head_pass(); });
    finish_rows();
    result_["machine"]["readGbps"] = median(read_gbps_);
    result_["machine"]["matrixGflops"] = matrix_gflops_;
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
    std::vector<double> times;
    Cost cost;
    const int n_runs = std::max(3, options_.repeats / 3);
    for (int i = 0; i <= n_runs; ++i) {
      check_cancelled();
      const std::vector<int32_t> tokens = random_tokens(options_.prefill);
      if (i == 0) {  // warm-up, and the count of experts touched
        Trace trace;
        run_prompt(tokens, &trace, nullptr);
        cost = prefill_cost(trace);
        continue;
      }
      read_gbps_.push_back(measure_read_gbps(backend_->info().n_threads));
      double ms = 0;
      run_prompt(tokens, nullptr, &ms);
      times.push_back(ms);
    }
    add_row("prefill", "whole", options_.prefill, median(times), cost);
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

  // Parts are small enough to stay in a large last-level cache between repeats, which no real step allows: the read
  // stream that is measured before each repeat also evicts them.
  void measure_decode(const char* part, const Cost& cost, bool evict, const std::function<void()>& pass) {
    if (cost.bytes == 0) return;
    std::vector<double> times;
    pass();
    const int n_runs = evict ? options_.repeats : std::max(options_.repeats, 9);
    for (int i = 0; i < n_runs; ++i) {
      check_cancelled();
      if (evict || i % 3 == 0) read_gbps_.push_back(measure_read_gbps(backend_->info().n_threads));
      times.push_back(milliseconds(pass));
    }
    add_row("decode", part, 1, median(times), cost);
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

  // Reads every file of the folder's checkpoint with the loader's thread count and chunk size, and throws the bytes away.
  void measure_load() {
    if (options_.model.empty()) throw EngineError(ErrorCode::invalid_argument, "bench of loading needs a model folder");
    const ModelFolder folder = open_model_folder(options_.model);
    const double bytes = static_cast<double>(folder.checkpoint.total_bytes());
    const int n_threads = load_options().n_threads;
    for (const bool cold : {false, true}) {
      std::vector<double> reads, loads;
      for (int i = 0; i < (cold ? 3 : 5); ++i) {
        check_cancelled();
        on_line_(std::string(cold ? "cold" : "warm") + " load " + std::to_string(i + 1));
        if (cold) drop_cached_files();
        reads.push_back(milliseconds([&] { read_files(folder.checkpoint, n_threads); }));
        if (cold) drop_cached_files();
        auto backend = create_backend("cpu", backend_options(options_.engine));
        loads.push_back(milliseconds([&] {
          const ModelFolder again = open_model_folder(options_.model);
          load_weights(again.config, again.checkpoint, *backend, load_options());
        }));
      }
      const std::string kind = cold ? "cold" : "warm";
      const double read_ms = median(reads), load_ms = median(loads);
      rows_.push_back({{"phase", "load"},
                       {"part", kind + " read"},
                       {"milliseconds", read_ms},
                       {"bytes", bytes},
                       {"gbps", bytes / read_ms / 1e6}});
      rows_.push_back({{"phase", "load"},
                       {"part", kind + " load"},
                       {"milliseconds", load_ms},
                       {"bytes", bytes},
                       {"gbps", bytes / load_ms / 1e6},
                       {"boundMilliseconds", read_ms},
                       {"boundBy", kind + " read"},
                       {"fraction", read_ms / load_ms}});
    }
  }

  static void read_files(const Checkpoint& checkpoint, int n_threads) {
    constexpr size_t kChunk = 4u << 20;
    std::set<const FileReader*> files;
    for (const auto& [name, entry] : checkpoint.tensors()) files.insert(entry.file);
    std::vector<std::pair<const FileReader*, uint64_t>> chunks;
    for (const FileReader* file : files)
      for (uint64_t at = 0; at < file->size(); at += kChunk) chunks.emplace_back(file, at);
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < n_threads; ++i)
      threads.emplace_back([&] {
        std::vector<std::byte> buffer(kChunk);
        for (size_t c; (c = next++) < chunks.size();)
          chunks[c].first->read(chunks[c].second, buffer.data(),
                                std::min<uint64_t>(kChunk, chunks[c].first->size() - chunks[c].second));
      });
    for (std::thread& thread : threads) thread.join();
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

  void add_row(const char* phase, const char* part, int n_tokens, double ms, const Cost& cost) {
    rows_.push_back({{"phase", phase},
                     {"part", part},
                     {"tokensPerSecond", n_tokens / ms * 1e3},
                     {"milliseconds", ms},
                     {"bytes", cost.bytes},
                     {"gbps", cost.bytes / ms / 1e6},
                     {"flop", cost.flop},
                     {"gflops", cost.flop / ms / 1e6}});
  }

  void finish_rows() {
    const double gbps = median(read_gbps_);
    for (Json& row : rows_) {
      if (row["phase"] == "load") continue;
      const double read_ms = row["bytes"].get<double>() / gbps / 1e6,
                   matrix_ms = row["flop"].get<double>() / matrix_gflops_ / 1e6;
      row["boundMilliseconds"] = std::max(read_ms, matrix_ms);
      row["boundBy"] = read_ms >= matrix_ms ? "read bandwidth" : "matrix peak";
      row["fraction"] = std::max(read_ms, matrix_ms) / row["milliseconds"].get<double>();
    }
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
  std::vector<double> read_gbps_;
  double matrix_gflops_ = 0;
  std::vector<Json> rows_;
  Json result_;
};

}  // namespace

std::string run_benchmark(const std::string& options_json, const std::function<void(const std::string&)>& on_line,
                          const std::atomic<bool>* cancelled) {
  return Bench(parse_options(options_json), on_line, cancelled).run();
}

}  // namespace sigmoe
