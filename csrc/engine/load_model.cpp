#include <algorithm>
#include <optional>
#include <thread>

#include "backend/registry.h"
#include "engine/checkpoint/checkpoint_spec.h"
#include "engine/model_folder.h"
#include "engine/schedule/page_pool.h"
#include "engine/speculation/draft_checkpoint.h"
#include "engine/speculation/speculation.h"

namespace sigmoe {
namespace {

// What the KV cache may take when nothing is said, unless one context alone needs more: little of a host, which has other
// users, and most of an accelerator, which has none.
constexpr uint64_t kHostKvBytes = 1ull << 30;
constexpr double kDeviceUtilization = 0.9;

// One step that nobody asked for: faults in the activations, wakes the threads, and finds a kernel that fails before the
// first user does. What it leaves in its pages is overwritten by whoever gets them.
void warm_up(World& world, int64_t n_tokens) {
  StepInputs in;
  for (int32_t i = 0; i < n_tokens; ++i) {
    in.token_ids.push_back(0);
    in.positions.push_back(i);
  }
  in.seq_offsets = {0, static_cast<int32_t>(n_tokens)};
  in.max_pages = static_cast<int>(pages_for(n_tokens));
  for (int32_t page = 0; page < in.max_pages; ++page) in.page_tables.push_back(page);
  SampleRow greedy;
  greedy.temperature = 0;
  in.sample_rows = {greedy};
  in.sample_row_ids = {static_cast<int32_t>(n_tokens) - 1};
  in.resets = {{0, {0}, {}}};
  StepOutputs ignored;
  world.run(in, ignored);
}

// Ranks that share the cores and the memory of this machine.
int ranks_of_machine(const EngineOptions& options) {
  return options.tensor_parallel / options.node.count * options.node.on_this_machine;
}

// lib checks these too; here they protect every other caller from an allocation of absurd size.
void check_options(const EngineOptions& options) {
  const auto in_range = [](int64_t value, int64_t low, int64_t high, const char* name) {
    if (value < low || value > high)
      throw EngineError(ErrorCode::invalid_argument, std::string(name) + " is " + std::to_string(value) + ", outside [" +
                                                         std::to_string(low) + ", " + std::to_string(high) + "]");
  };
  in_range(options.n_threads, 0, 1024, "threads");
  in_range(options.tensor_parallel, 1, 64, "tensorParallelSize");
  in_range(options.node.count, 1, 64, "node.count");
  in_range(options.node.index, 0, options.node.count - 1, "node.rank");
  in_range(options.node.port, 1, 65535, "node.port");
  in_range(options.node.on_this_machine, 1, options.node.count, "node.onThisMachine");
  in_range(options.node.patience_ms, 100, 3'600'000, "node.silenceMs");
  in_range(options.node.join_ms, 0, 86'400'000, "node.joinMs");
  if (options.tensor_parallel % options.node.count != 0)
    throw EngineError(ErrorCode::invalid_argument,
                      "tensorParallelSize " + std::to_string(options.tensor_parallel) + " asked for on " +
                          std::to_string(options.node.count) + " nodes, which cannot have equally many ranks",
                      "use a multiple of the number of nodes");
  in_range(options.max_model_len, 0, int64_t{1} << 31, "maxModelLen");
  in_range(options.max_num_seqs, 1, 4096, "maxNumSeqs");
  in_range(options.max_batched_tokens, 0, 65536, "maxBatchedTokens");
  in_range(options.kv_cache_tokens, 0, int64_t{1} << 40, "kvCacheTokens");
  in_range(options.max_waiting, 1, 1 << 20, "maxWaiting");
  in_range(options.max_draft, 0, kMaxDraftDepth, "speculative.maxDepth");
  if (!(options.memory_utilization >= 0 && options.memory_utilization <= 1))
    throw EngineError(ErrorCode::invalid_argument,
                      "memoryUtilization is " + std::to_string(options.memory_utilization) + ", outside (0, 1]");
  if (options.compute != "bfloat16" && options.compute != "float32" && options.compute != "int8")
    throw EngineError(ErrorCode::invalid_argument,
                      "compute '" + options.compute + "' asked for; known are bfloat16, float32 and int8");
  if (options.kv_cache_dtype != "auto" && options.kv_cache_dtype != "bfloat16" && options.kv_cache_dtype != "fp8")
    throw EngineError(ErrorCode::invalid_argument,
                      "KV cache type '" + options.kv_cache_dtype + "' asked for; known are auto, bfloat16 and fp8");
  if (options.prefill_attention != "auto" && options.prefill_attention != "bfloat16" && options.prefill_attention != "fp8")
    throw EngineError(ErrorCode::invalid_argument,
                      "prefill attention '" + options.prefill_attention + "' asked for; known are auto, bfloat16 and fp8");
}

// Bytes for one rank's KV cache: what `free_before` loading allowed, less the weights that were loaded since.
uint64_t kv_budget(const EngineOptions& options, const std::string& device, uint64_t free_before, uint64_t weight_bytes) {
  const bool host = device == "cpu";
  if (host && options.memory_utilization <= 0) return kHostKvBytes / options.tensor_parallel;
  const double share = options.memory_utilization > 0 ? options.memory_utilization : kDeviceUtilization;
  const double allowed = share * static_cast<double>(free_before) / (host ? ranks_of_machine(options) : 1);
  return static_cast<uint64_t>(std::max(0.0, allowed - static_cast<double>(weight_bytes)));
}

// What drafts, and with what.
struct DraftPlan {
  std::string method = "none";
  int max_draft = 0;
  std::optional<DraftFolder> folder;
  bool reads_features() const { return method == "eagle3" || method == "mtp"; }
};

DraftPlan plan_drafting(const ModelFolder& model, const EngineOptions& options) {
  const auto refuse = [](ErrorCode code, const std::string& message, const std::string& hint) {
    throw EngineError(code, message, hint);
  };
  const bool has_mtp = model.config.n_mtp_layers > 0 && layer_is_stored(model.checkpoint, model.config.n_layers);
  DraftPlan plan;
  plan.method = options.speculation;
  if (plan.method == "auto") plan.method = !options.draft.empty() ? "eagle3" : has_mtp ? "mtp" : "ngram";
  const std::string asked = "speculation '" + plan.method + "' asked for: ";
  if (plan.method != "none" && plan.method != "eagle3" && plan.method != "mtp" && plan.method != "ngram")
    refuse(ErrorCode::invalid_argument, asked + "no such method", "known are none, auto, eagle3, mtp and ngram");
  if (plan.method != "eagle3" && !options.draft.empty())
    refuse(ErrorCode::invalid_argument, asked + "the draft folder would not be used", "leave out the draft, or use eagle3");
  if (plan.method == "eagle3" && options.draft.empty())
    refuse(ErrorCode::invalid_argument, asked + "it needs a draft folder", "pass draft, or use mtp or ngram");
  if (plan.method == "mtp" && !has_mtp)
    refuse(ErrorCode::not_found, asked + "the checkpoint has no MTP layer", "use eagle3 with a draft, or ngram");
  if (plan.method == "none") return plan;
  // Chains much deeper than this rarely pay; depth control goes below wherever they do not.
  const int usual = plan.method == "eagle3" ? 5 : plan.method == "mtp" ? 3 : 7;
  plan.max_draft = options.max_draft > 0 ? options.max_draft : usual;
  if (plan.method != "eagle3") return plan;
  plan.folder = open_draft_folder(options.draft, model.config);
  if (options.tensor_parallel > 1 && !plan.folder->brings_head())
    refuse(ErrorCode::unsupported, asked + "the draft shares the head of the target, which several ranks have in parts",
           "use a draft with lm_head.weight, or tensorParallelSize 1");
  return plan;
}

}  // namespace

std::string resolve_device(const std::string& asked, std::string& reason) {
  if (asked != "auto") {
    reason = "asked for";
    return asked;
  }
  reason.clear();
  for (const DeviceReport& report : list_devices()) {
    if (report.device == "ascend-twin") continue;  // for tests: on no machine what a user wants
    if (report.available) {
      reason = reason.empty() ? "first choice" : reason;
      return report.device;
    }
    reason += (reason.empty() ? "" : "; ") + report.device + ": " + report.detail;
  }
  throw EngineError(ErrorCode::not_found, "device 'auto' asked for: no device is available (" + reason + ")");
}

BackendOptions backend_options(const EngineOptions& options) {
  BackendOptions backend;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  backend.n_threads = options.n_threads > 0 ? options.n_threads : std::max(1, cores / ranks_of_machine(options));
  backend.kernels = options.kernels;
  backend.kv_cache = options.kv_cache_dtype;
  backend.prefill_attention = options.prefill_attention;
  backend.compute = options.compute == "float32" ? DType::f32 : options.compute == "int8" ? DType::i8 : DType::bf16;
  backend.deterministic = options.deterministic;
  return backend;
}

LoadedModel load_model(const std::string& folder, const EngineOptions& options, const Engine::ProgressFn& on_progress,
                       const std::atomic<bool>* cancelled) {
  check_options(options);
  const ModelFolder model = open_model_folder(folder);
  const ModelConfig& config = model.config;
  const int world = options.tensor_parallel, n_here = world / options.node.count, first = options.node.index * n_here;
  LoadedModel loaded;
  loaded.node = join_nodes(model, options, cancelled);
  loaded.info = describe_model(config);
  EngineInfo& info = loaded.info;
  const DraftPlan drafting = plan_drafting(model, options);
  info.speculation = drafting.method;
  info.max_draft = drafting.max_draft;
  loaded.adaptive_depth = options.adaptive_depth;
  loaded.run_ahead = options.run_ahead;
  loaded.has_mtp = (options.with_mtp || drafting.method == "mtp") && config.n_mtp_layers > 0;
  const std::string device = resolve_device(options.device, info.device_reason);

  const auto bytes_per_token = [&](int64_t n_kv_heads, DType kv_dtype) {
    uint64_t bytes = kv_bytes_per_token(config, n_kv_heads, kv_dtype, config.n_layers + (loaded.has_mtp ? 1 : 0));
    if (drafting.folder) bytes += draft_kv_bytes_per_token(drafting.folder->config, kv_dtype);
    return bytes;
  };
  const int64_t n_kv_heads = shard_heads(config, 0, world).kv.size();  // no rank has more, and the first has the draft besides
  plan_memory(config, options, bytes_per_token(n_kv_heads, options.kv_cache_dtype == "fp8" ? DType::f8_e4m3 : DType::bf16),
              kHostKvBytes);  // refuses what it must before weights are read
  loaded.max_waiting = options.max_waiting;
  loaded.prefix_cache = options.prefix_cache;
  FeatureTap features;
  if (drafting.folder) features.layers = drafting.folder->config.feature_layers;
  const auto step_bytes_per_token = [&](int rank) {
    uint64_t bytes = Workspace::bytes_per_token(config, shard_heads(config, rank, world), loaded.has_mtp);
    if (drafting.reads_features()) bytes += sizeof(float) * features.width(config.hidden_size);
    if (drafting.folder) bytes += eagle3_bytes_per_row(drafting.folder->config, config.hidden_size);
    return bytes;
  };
  MemoryPlan plan;
  int64_t most_rows = 0;  // of a draft's pass
  DraftWeights draft_weights;
  // All ranks read at once, so that what several of them need is read from disk once.
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<std::pair<int, Backend*>> loading;
  for (int i = 0; i < n_here; ++i) {
    BackendOptions for_rank = backend_options(options);
    for_rank.device_index = options.first_device + i;
    backends.push_back(create_backend(device, for_rank));
    loading.emplace_back(first + i, backends.back().get());
  }
  const uint64_t free_before = backends[0]->free_bytes();
  LoadOptions load;
  load.world = world;
  load.expert_parallel = options.expert_parallel;
  load.with_mtp = loaded.has_mtp;
  load.n_threads = backend_options(options).n_threads * n_here;
  load.cancelled = cancelled;
  if (on_progress)
    load.on_progress = [&on_progress](const LoadProgress& progress) {
      on_progress({progress.bytes_done, progress.bytes_total});
    };
  std::vector<ModelWeights> all_weights = load_ranks(config, model.checkpoint, loading, load);
  const auto make_rank = [&](int rank, Comm* comm) {
    std::unique_ptr<Backend> backend = std::move(backends[rank - first]);
    if (rank == first) {
      info.device = device;
      info.device_name = backend->info().name;
      info.kernels = backend->info().kernels;
      const DType compute = backend->info().compute;
      info.compute = compute == DType::f32 ? "float32" : compute == DType::i8 ? "int8" : "bfloat16";
      info.n_threads = backend->info().n_threads;
      info.kv_cache_dtype = attention_dtype_name(backend->info().kv_dtype);
      info.prefill_attention = attention_dtype_name(prefill_dtype(backend->info(), config.head_dim));
      info.kv_bytes_per_token = bytes_per_token(config.n_kv_heads, backend->info().kv_dtype);
    }
    ModelWeights weights = std::move(all_weights[rank - first]);
    info.weight_bytes += weights.bytes;
    if (drafting.folder && rank == 0) {  // small beside the target: one rank drafts, and the others wait
      draft_weights = load_draft_weights(*drafting.folder, config, *backend, load.n_threads, cancelled);
      info.weight_bytes += draft_weights.bytes;
    }
    if (rank == first) {
      plan = plan_memory(config, options, bytes_per_token(n_kv_heads, backend->info().kv_dtype),
                         kv_budget(options, device, free_before, weights.bytes + draft_weights.bytes));
      if (loaded.node) plan.kv_cache_tokens = agree_on_capacity(*loaded.node, plan.kv_cache_tokens);
      const uint64_t kv_bytes = plan.kv_cache_tokens * bytes_per_token(n_kv_heads, backend->info().kv_dtype);
      const uint64_t left = backend->free_bytes();
      info.max_batched_tokens =
          step_tokens(options, device, plan.context, step_bytes_per_token(rank), left - std::min(left, kv_bytes));
      most_rows = std::max<int64_t>(info.max_batched_tokens, Speculation::kRingRows);
      features.n_rows = Speculation::n_feature_rows(options.max_num_seqs, info.max_batched_tokens);
    }
    RunnerLimits limits;
    limits.max_tokens = info.max_batched_tokens;
    if (drafting.reads_features()) {
      limits.features = features;
      if (drafting.method == "mtp") limits.max_tokens = most_rows;  // its passes run in the model's workspace
    }
    limits.max_seqs = options.max_num_seqs;
    limits.rows_per_seq = 1 + drafting.max_draft;
    limits.n_positions = plan.context;
    limits.n_pages = plan.kv_cache_tokens / kPageTokens;
    limits.mtp = loaded.has_mtp;
    return std::make_unique<RankRunner>(config, std::move(backend), std::move(weights), comm, rank, world, limits);
  };
  loaded.world = std::make_unique<World>(world, make_rank, loaded.node);
  const bool leads = !loaded.node || loaded.node->leads();
  // A follower drafts only where it has a part of the draft model's weights.
  if (drafting.method != "none" && (leads || drafting.method == "mtp")) {
    const DrafterLimits limits{most_rows, options.max_num_seqs, plan.context, plan.kv_cache_tokens / kPageTokens};
    RankRunner& target = loaded.world->rank(0);
    loaded.drafter = drafting.folder ? make_eagle3_drafter(*drafting.folder, std::move(draft_weights), target, limits)
                     : drafting.method == "mtp" ? make_mtp_drafter(*loaded.world, limits)
                                                : make_ngram_drafter();
    info.kv_bytes += loaded.drafter->kv_bytes();
    info.workspace_bytes += loaded.drafter->bytes();
  }
  // A GPU's memory grows to that of the longest step: one for which there is no room fails here, not with somebody's prompt.
  const int64_t warm_tokens = device == "cuda" ? info.max_batched_tokens : 32;
  if (leads) warm_up(*loaded.world, std::min<int64_t>({warm_tokens, info.max_batched_tokens, plan.context}));

  info.context = plan.context;
  info.kv_cache_tokens = plan.kv_cache_tokens;
  info.weight_format = weight_format_text(config, model.checkpoint);
  if (const std::string& kept = loaded.world->rank(0).backend().info().weights; !kept.empty())
    info.weight_format += ", kept as " + kept;
  info.checkpoint_bytes = model.checkpoint.total_bytes();
  info.tensor_parallel = world;
  info.max_num_seqs = options.max_num_seqs;
  if (loaded.node) loaded.node->loaded();
  for (int rank = 0; rank < n_here; ++rank) {
    info.kv_bytes += loaded.world->rank(rank).kv_bytes();
    info.workspace_bytes += loaded.world->rank(rank).workspace_bytes();
  }
  return loaded;
}

}  // namespace sigmoe
