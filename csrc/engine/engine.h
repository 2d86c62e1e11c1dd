// The engine as the binding sees it: load a folder, submit requests, listen to steps. Knows no device and no Node.
//
// One engine thread runs steps; every method here may be called from any thread and returns at once unless it says
// otherwise. Events reach the listener from the engine thread, one per step.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/error.h"
#include "backend/node_options.h"

namespace sigmoe {

struct EngineOptions {
  std::string device = "auto";             // auto | cpu | cuda | ascend | ascend-twin
  std::string kernels = "auto";            // cpu path: auto | reference | generic | avx2 | avx512 | avx512bf16 | amx
  std::string compute = "bfloat16";        // bfloat16 | float32 | int8 (Ascend)
  std::string kv_cache_dtype = "auto";     // auto (of the compute type) | bfloat16 | fp8 (CUDA)
  std::string prefill_attention = "auto";  // what it multiplies in: auto (of the compute type) | bfloat16 | fp8 (CUDA)
  bool deterministic = false;     // bits of an answer depend neither on its neighbours nor on chunking; the CPU is always so
  int n_threads = 0;              // per rank; 0 = cores the process may use, shared by all ranks of all copies
  int tensor_parallel = 1;        // ranks; the CPU runs them as threads of one process
  bool expert_parallel = false;   // ranks hold whole experts instead of a part of each
  int data_parallel = 1;          // copies of the model, of tensor_parallel ranks each, that share the requests
  int first_device = 0;           // of the accelerators the ranks take, one each
  NodeOptions node;               // the tensor_parallel ranks are spread evenly over as many processes
  int64_t max_model_len = 0;      // tokens; 0 = the model's context
  int max_num_seqs = 32;          // sequences in one step of one copy
  int max_batched_tokens = 0;     // token budget of one step: prefill is cut into chunks of this; 0 = chosen for the device
  int64_t kv_cache_tokens = 0;    // capacity over all sequences; 0 = chosen from max_model_len and memory_utilization
  double memory_utilization = 0;  // share of the free memory that weights and KV cache may take; 0 = the device's default
  int max_waiting = 1024;         // requests beyond those running that are accepted before submit says busy
  bool prefix_cache = true;       // pages of ended sequences are found again by prompts that begin alike
  bool with_mtp = false;          // load MTP layers, so that logits(mtp) works
  // Speculation: tokens are drafted ahead and checked several in one step. It changes how fast tokens come, never which
  // (on a GPU: with deterministic).
  std::string speculation = "none";  // none | auto | eagle3 (needs draft) | mtp (the checkpoint's own layer) | ngram
  std::string draft;                 // folder of an EAGLE3 draft
  int max_draft = 0;                 // most tokens drafted at once; 0 = what suits the method
  bool adaptive_depth = true;        // draft fewer, down to none, where it would not pay
  bool run_ahead = true;             // false, in tests: the host knows a step's tokens before it launches the next
};

struct EngineLoadProgress {
  uint64_t bytes_done = 0, bytes_total = 0;
};

struct PartBytes {
  std::string part;  // "routed experts"
  int64_t parameters = 0;
};

struct RankMemory {
  uint64_t weight_bytes = 0, kv_bytes_per_token = 0;
};

struct EngineInfo {
  std::string architecture, device, device_name, device_reason, kernels, compute, kv_cache_dtype, prefill_attention,
      weight_format;
  int64_t context = 0;  // tokens a sequence may hold: min(model, max_model_len)
  int64_t vocab_size = 0, hidden_size = 0, n_layers = 0, n_dense_layers = 0, n_mtp_layers = 0, n_heads = 0, n_kv_heads = 0,
          head_dim = 0, n_experts = 0, n_active = 0, n_shared = 0;
  int64_t parameters = 0, active_parameters = 0;
  std::vector<PartBytes> parts;
  uint64_t checkpoint_bytes = 0, weight_bytes = 0, kv_bytes_per_token = 0, kv_bytes = 0, workspace_bytes = 0;
  int64_t kv_cache_tokens = 0;
  int n_threads = 0, tensor_parallel = 1, data_parallel = 1;
  int max_batched_tokens = 0;        // of copies that chose differently, the least
  int max_num_seqs = 0;              // over all copies, like kv_cache_tokens and the bytes above
  std::string speculation = "none";  // the method that runs
  int max_draft = 0;
  std::vector<int32_t> eos_ids;   // of config.json
  std::vector<RankMemory> ranks;  // of inspect_model: each one's share of checkpoint and KV cache
};

enum class FinishReason : uint8_t { none, stop, length, aborted, error, deadline };

// Bounds the reasoning of an answer: once `budget` tokens were sampled between the two marks, the end is forced.
struct ThinkingLimit {
  int64_t budget = -1;             // -1: no bound
  bool open = false;               // the prompt ends inside the reasoning
  std::vector<int32_t> begin_ids;  // what opens it, as tokens
  std::vector<int32_t> end_ids;    // what closes it
};

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
  int n_logprobs = -1;                          // -1: none; 0..20 alternatives
  int n_prompt_logprobs = -1;                   // likewise, of every prompt token but the first
  std::vector<int32_t> allowed_ids;             // empty: all; else only these can be sampled
  std::vector<std::vector<int32_t>> bad_words;  // sequences of ids that must not be generated
  ThinkingLimit thinking;
  bool masked = false;                   // every token waits for its set_masks()
  int32_t priority = 0;                  // lower runs first
  int64_t deadline_ms = -1;              // from now; -1: none
  int max_draft = -1;                    // tokens drafted at once; 0: none; -1: as many as the model was loaded for
  std::array<uint64_t, 2> cache_salt{};  // prompts share cached pages only with prompts of the same salt
};

struct LogitsRequest {
  std::vector<int32_t> tokens;
  bool mtp = false;  // logits of the first MTP layer instead: row t predicts token t + 2 from tokens <= t + 1
};

// What one step produced, as flat arrays: entry i is one sampled token, or one request's end without a token (-1). A request
// whose drafts came true has several entries, in order.
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
  // A generation's prompt is computed: its first token is in this event.
  struct Start {
    uint64_t request;
    int64_t n_cached;  // prompt tokens that the prefix cache held
    double queue_ms;   // from submit to the first step that took some of it
  };
  std::vector<Start> starts;
  // Log-probabilities of prompt tokens [begin, begin + n): as many rows of alternatives as logprobs.
  struct PromptLogprobs {
    uint64_t request;
    int64_t begin;
    std::vector<float> logprobs;      // (n)
    std::vector<int32_t> top_ids;     // (n, 20), -1 where absent
    std::vector<float> top_logprobs;  // (n, 20)
  };
  std::vector<PromptLogprobs> prompt_logprobs;
  // Drafts of a request that the step checked, and those of them that are among its tokens above.
  struct Drafts {
    uint64_t request;
    int64_t n_drafted, n_accepted;
  };
  std::vector<Drafts> drafts;
  // Drafts behind the last token of a masked request, made in this step: its next masks may be those of all of them.
  struct Proposal {
    uint64_t request;
    std::vector<int32_t> tokens;
  };
  std::vector<Proposal> proposals;

  bool empty() const { return requests.empty() && prompt_logprobs.empty(); }
};

struct EngineStats {
  int64_t free_pages = 0, cached_pages = 0, held_pages = 0, total_pages = 0;
  int64_t running = 0, waiting = 0;
  uint64_t steps = 0, steps_ahead = 0;  // and how many were launched before the one before them was taken in
  uint64_t prefill_tokens = 0, decode_tokens = 0, preemptions = 0;
  uint64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0;  // of prompts looked up in the prefix cache
  uint64_t draft_checks = 0;                                  // chains of drafts that steps checked
  uint64_t drafted_tokens = 0, accepted_tokens = 0;           // tokens in them, and those that came true
  std::vector<uint64_t> accepted_at;                          // by place in the chain, as many as are drafted at most
  // What steps without prompts took, those without drafts and those that checked some, and what drafting took.
  uint64_t plain_steps = 0, verify_steps = 0, draft_passes = 0;
  double plain_ms = 0, verify_ms = 0, draft_ms = 0;
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
  // What a masked request may sample as its token number `position` (0 is the first): bit id % 32 of word id / 32, as many
  // words as the vocabulary needs; empty allows all. Until it comes the sequence sits out, the others go on. Behind it may
  // come the masks of the following tokens, each for the case that the proposed drafts before it come true; drafts whose
  // masks are not there are not checked.
  virtual void set_masks(uint64_t request, int64_t position, std::vector<uint32_t> masks) = 0;
  virtual void abort(uint64_t request) = 0;  // unknown or finished ids are ignored; ends with `aborted`
  virtual EngineStats stats() const = 0;
  // Ends all requests with `aborted`, joins the engine thread, frees device memory. Idempotent; blocks for one step.
  virtual void shut_down() = 0;
};

// A process of several (EngineOptions::node) that does not lead: computes what the leader says, until the leader ends. Throws
// when the world fails on any node, and aborted once `cancelled` is set. The other options must be those of the leader.
void follow(const std::string& folder, const EngineOptions& options, const Engine::ProgressFn& on_progress,
            const std::function<void(const EngineInfo&)>& on_ready, const std::atomic<bool>* cancelled);

// What `sigmoe inspect` shows without loading weights: config and tensor headers only.
EngineInfo inspect_model(const std::string& folder, int tensor_parallel = 1, bool expert_parallel = false);

struct DeviceLine {
  std::string device;
  bool available;
  std::string detail;
};
std::vector<DeviceLine> engine_devices();

// Where a package holds the library of a device backend, by file name; said before the first of the other calls.
void offer_backend_library(const std::string& file, const std::string& path);

// `sigmoe bench`: engine/bench says what is measured. Returns JSON text.
std::string run_benchmark(const std::string& options_json, const std::function<void(const std::string&)>& on_line,
                          const std::atomic<bool>* cancelled = nullptr);

// `sigmoe quantize`, shard by shard; `format` is fp8 or int8. The plan as JSON: {unchanged, shards: [{file, bytes,
// sourceBytes}], config, index}, the last two being the texts of those files (index empty for one model.safetensors).
std::string plan_quantization(const std::string& folder, const std::string& format);
// Writes one shard of the plan to a new file `out`, which is gone again after an error. Returns [{name, kind, relativeError}].
std::string quantize_shard(const std::string& folder, const std::string& format, const std::string& file,
                           const std::string& out, int n_threads, const Engine::ProgressFn& on_progress,
                           const std::atomic<bool>* cancelled = nullptr);

// 10^9 bytes/s of reading memory once, all cores together: the best of a few samples, in about a second.
double measure_memory_gbps();

}  // namespace sigmoe
