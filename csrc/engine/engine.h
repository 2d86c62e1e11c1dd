// The engine as the binding sees it: load a folder, submit requests, listen to steps. Knows no device and no Node.
//
// One engine thread runs steps; every method here may be called from any thread and returns at once unless it says
// otherwise. Events reach the listener from the engine thread, one per step.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/error.h"

namespace sigmoe {

struct EngineOptions {
  std::string device = "auto";       // auto | cpu | cuda
  std::string kernels = "auto";      // cpu path: auto | reference | generic | avx2 | avx512 | avx512bf16 | amx
  std::string compute = "bfloat16";  // bfloat16 | float32
  int n_threads = 0;                 // per rank; 0 = cores the process may use
  int tensor_parallel = 1;           // ranks; the CPU runs them as threads of one process
  int64_t max_model_len = 0;         // tokens; 0 = the model's context
  int max_num_seqs = 32;             // sequences in one step
  int max_batched_tokens = 512;      // token budget of one step: prefill is cut into chunks of at most this
  int64_t kv_cache_tokens = 0;       // capacity over all sequences; 0 = chosen from max_model_len and free memory
  bool with_mtp = false;             // load MTP layers, so that logits(mtp) works
};

struct EngineLoadProgress {
  uint64_t bytes_done = 0, bytes_total = 0;
};

struct PartBytes {
  std::string part;  // "routed experts"
  int64_t parameters = 0;
};

struct EngineInfo {
  std::string architecture, device, device_name, device_reason, kernels, compute, weight_format;
  int64_t context = 0;  // tokens a sequence may hold: min(model, max_model_len)
  int64_t vocab_size = 0, hidden_size = 0, n_layers = 0, n_dense_layers = 0, n_mtp_layers = 0, n_heads = 0, n_kv_heads = 0,
          head_dim = 0, n_experts = 0, n_active = 0, n_shared = 0;
  int64_t parameters = 0, active_parameters = 0;
  std::vector<PartBytes> parts;
  uint64_t checkpoint_bytes = 0, weight_bytes = 0, kv_bytes_per_token = 0, kv_bytes = 0, workspace_bytes = 0;
  int64_t kv_cache_tokens = 0;
  int n_threads = 0, tensor_parallel = 1, max_num_seqs = 0, max_batched_tokens = 0;
  std::vector<int32_t> eos_ids;  // of config.json
};

enum class FinishReason : uint8_t { none, stop, length, aborted, error };

struct GenerateRequest {
  std::vector<int32_t> prompt;    // at least one id in [0, vocab)
  int64_t max_tokens = -1;        // -1: to the end of the context
  int64_t min_tokens = 0;         // stop ids are not sampled before this many
  std::vector<int32_t> stop_ids;  // sampling one of these ends the sequence; the id is reported
  uint64_t seed = 0;
  float temperature = 1.0f, top_p = 1.0f, min_p = 0.0f, repetition_penalty = 1.0f, presence_penalty = 0.0f,
        frequency_penalty = 0.0f;
  int top_k = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  int n_logprobs = -1;  // -1: none; 0..20 alternatives
};

struct LogitsRequest {
  std::vector<int32_t> tokens;
  bool mtp = false;  // logits of the first MTP layer instead: row t predicts token t + 2 from tokens <= t + 1
};

// What one step produced, as flat arrays: entry i is one sampled token, or one request's end without a token (-1).
struct StepEvent {
  std::vector<uint64_t> requests;
  std::vector<int32_t> tokens;
  std::vector<FinishReason> finish;
  std::vector<float> logprobs;   // per entry when any request asked for logprobs, else empty
  std::vector<int32_t> top_ids;  // (entries, 20), -1 where absent; empty like logprobs
  std::vector<float> top_logprobs;
  struct Failure {
    uint64_t request;
    ErrorCode code;
    std::string message, hint;
  };
  std::vector<Failure> failures;  // detail of entries that finished with `error`
  struct Logits {
    uint64_t request;
    int64_t rows, vocab;
    std::vector<float> values;  // (rows, vocab)
  };
  std::vector<Logits> logits;  // finished LogitsRequests
};

struct EngineStats {
  int64_t free_pages = 0, held_pages = 0, total_pages = 0;
  int64_t running = 0, waiting = 0;
  uint64_t steps = 0, prefill_tokens = 0, decode_tokens = 0, preemptions = 0;
};

class Engine {
 public:
  using ProgressFn = std::function<void(const EngineLoadProgress&)>;
  using ListenerFn = std::function<void(StepEvent&&)>;

  // Blocks while loading. `cancelled` may be set from any thread: the load ends with ErrorCode::aborted.
  static std::unique_ptr<Engine> load(const std::string& folder, const EngineOptions& options,
                                      const ProgressFn& on_progress = {}, const std::atomic<bool>* cancelled = nullptr);

  virtual ~Engine() = default;  // ends all work first; the listener is not called after it returns

  virtual const EngineInfo& info() const = 0;
  virtual void set_listener(ListenerFn listener) = 0;  // before the first submit
  // Throws invalid_argument for requests no run could satisfy. Ids are never reused.
  virtual uint64_t submit(GenerateRequest request) = 0;
  virtual uint64_t submit(LogitsRequest request) = 0;
  virtual void abort(uint64_t request) = 0;  // unknown or finished ids are ignored; ends with `aborted`
  virtual EngineStats stats() const = 0;
  // Ends all requests with `aborted`, joins the engine thread, frees device memory. Idempotent; blocks for one step.
  virtual void shut_down() = 0;
};

// What `sigmoe inspect` shows without loading weights: config and tensor headers only.
EngineInfo inspect_model(const std::string& folder);

struct DeviceLine {
  std::string device;
  bool available;
  std::string detail;
};
std::vector<DeviceLine> engine_devices();

// `sigmoe bench`: engine/bench.cpp says what is measured. Returns JSON text.
std::string run_benchmark(const std::string& options_json, const std::function<void(const std::string&)>& on_line,
                          const std::atomic<bool>* cancelled = nullptr);

}  // namespace sigmoe
