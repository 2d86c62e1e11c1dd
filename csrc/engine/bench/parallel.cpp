// Every rank runs the same measurements at the same time; they meet before each run, and the first one's times count. The bound
// of a step is what all ranks read over what all of them can read; of the sums, what an all-reduce has to send over a link, and
// a meeting that carries nothing, once for each.
#include "engine/bench/parallel.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <set>
#include <thread>

#include "engine/bench/step.h"
#include "engine/model_folder.h"

namespace sigmoe::bench {
namespace {

constexpr int kInARow = 4;  // steps of one timing, so that ranks that begin apart weigh little

class Rank {
 public:
  Rank(const Options& options, int rank, Comm& comm, const OnLine& on_line, const std::atomic<bool>* cancelled)
      : options_(options), comm_(comm), on_line_(on_line), cancelled_(cancelled) {
    model_.rank = rank;
    model_.world = options.engine.tensor_parallel;
    model_.comm = &comm;
    open_device(model_, options);
    model_.backend->join(comm);
    fill_model(
        model_, options, rank == 0 ? on_line : [](const std::string&) {}, cancelled);
    peers_ = model_.device->peer_ceilings();
  }

  void run() {
    const std::vector<int> batches = options_.batches.empty() ? std::vector<int>{1, 8, 32, 128} : options_.batches;
    const std::vector<int> contexts = options_.contexts.empty() ? std::vector<int>{1024} : options_.contexts;
    for (const int context : contexts)
      for (const int batch : batches) measure(batch, context);
  }

  Json result() {
    const BackendInfo& info = model_.backend->info();
    Json machine = {{"name", info.name}, {"device", info.device}, {"threads", info.n_threads}, {"kernels", info.kernels}};
    if (const std::string driver = model_.device->driver(); !driver.empty()) machine["driver"] = driver;
    if (read_gbps_ > 0) machine["readGbps"] = read_gbps_;
    if (peers_.link_gbps > 0) machine.update({{"linkGbps", peers_.link_gbps}, {"meetingMicroseconds", peers_.meeting_us}});
    return {{"machine", machine}, {"rows", rows_}, {"weightBytes", model_.weights.bytes}};
  }

 private:
  // What the first rank says, on all.
  bool as_first(bool own) { return *static_cast<const bool*>(comm_.exchange(std::make_shared<bool>(own))[0].get()); }
  double sum(double own) {
    double total = 0;
    for (const auto& one : comm_.exchange(std::make_shared<double>(own))) total += *static_cast<const double*>(one.get());
    return total;
  }

  struct Measured {
    double ms = 0, read_gbps = 0;  // of this rank
    size_t runs = 0;
  };
  Measured time(const std::function<void()>& work) {
    const uint64_t key = ++next_key_;
    for (int i = 0; i < 3; ++i) model_.backend->run_recorded(key, work);
    model_.backend->synchronize();
    std::vector<double> ms, gbps;
    double spent = 0;
    for (int i = 0; i < options_.repeats; ++i) {
      if (as_first(cancelled_ && cancelled_->load())) throw EngineError(ErrorCode::aborted, "the benchmark was aborted");
      if (!as_first(i == 0 || spent + spent / i < options_.seconds * 1e3)) break;
      const BenchDevice::Timing timing = model_.device->time([&] {
        for (int n = 0; n < kInARow; ++n) model_.backend->run_recorded(key, work);
      });
      model_.backend->synchronize();
      ms.push_back(timing.ms / kInARow);
      gbps.push_back(timing.read_gbps);
      spent += timing.ms;
    }
    return {median(ms), median(gbps), ms.size()};
  }

  // What this rank reads in a step: each of its weights that is touched once, and the cached K and V of its heads.
  double bytes_of_step(const Trace& trace, int batch, int context, double& touched) const {
    const auto bytes_of = [](const LinearWeight* weight) { return weight ? static_cast<double>(weight->bytes()) : 0; };
    const ModelConfig& c = model_.config;
    const auto kv_heads = static_cast<double>(shard_heads(c, model_.rank, model_.world).kv.size());
    const double kv =
        kv_heads * static_cast<double>(kv_head_bytes(model_.backend->info().kv_dtype, c.head_dim)) * batch * context;
    double bytes = bytes_of(model_.weights.lm_head.get());
    size_t moe = 0;
    for (const LayerWeights& layer : model_.weights.layers) {
      bytes += bytes_of(layer.qkv.get()) + bytes_of(layer.attn_out.get()) + bytes_of(layer.shared_gate_up.get()) +
               bytes_of(layer.shared_down.get()) + kv;
      if (layer.dense) continue;
      bytes += bytes_of(layer.router.get());
      const std::vector<int32_t>& ids = trace.router_ids[moe++];
      const std::set<int32_t> experts(ids.begin(), ids.end());
      touched += static_cast<double>(experts.size());
      for (const int32_t e : experts) bytes += bytes_of(layer.experts.gate_up[e]) + bytes_of(layer.experts.down[e]);
    }
    if (moe > 0) touched /= static_cast<double>(moe);
    return bytes;
  }

  void measure(int batch, int context) {
    if (model_.rank == 0)
      on_line_("decode on " + std::to_string(model_.world) + " ranks, batch " + std::to_string(batch) + ", context " +
               std::to_string(context));
    Step step(model_, batch, 1, context, 1);
    step.fill_cache();
    Trace trace;
    step.graph().forward(step.last(), &trace);
    double touched = 0;
    const double bytes = sum(bytes_of_step(trace, batch, context, touched));
    const auto work = [&] {
      step.graph().forward(step.last());
      step.head();
      if (model_.rank == 0) step.sample();
    };
    const Measured whole = time(work);
    const double read_gbps = sum(whole.read_gbps);
    read_gbps_ = read_gbps / model_.world;
    Json row = facts("whole", batch, context);
    row["tokens"] = batch;
    row["tokensPerSecond"] = batch / whole.ms * 1e3;
    add(row, whole, 1);
    row.update({{"bytes", bytes}, {"gbps", bytes / whole.ms / 1e6}});
    if (touched > 0) row["distinctExperts"] = touched;
    if (read_gbps > 0) row["readGbps"] = read_gbps;
    bound(row, read_gbps > 0 ? bytes / read_gbps / 1e6 : 0, "read bandwidth of all ranks");
    add_kernels(row, *model_.backend, *model_.device, work, 1, [&](const std::string& line) {
      if (model_.rank == 0 && said_.insert(line).second) on_line_("  " + line);
    });
    rows_.push_back(row);

    const ModelConfig& c = model_.config;
    Workspace& ws = step.workspace();
    const int n_sums = static_cast<int>(2 * model_.weights.layers.size()), width = static_cast<int>(c.hidden_size);
    const Measured sums = time([&] {
      for (int i = 0; i < n_sums; ++i)
        model_.backend->reduce_add_rms_norm(
            ws.residual.as<float>(), ws.partial.as<float>(), i % 2 ? static_cast<int>(c.n_active) + 1 : 1, &comm_,
            model_.weights.final_norm.as<float>(), c.rms_eps, batch, width, ws.normed.as<float>());
    });
    add_collective("sums over ranks, with residual and norm", sums, batch, context, n_sums,
                   2.0 * (model_.world - 1) / model_.world * batch * width * model_.device->sum_bytes(batch, width));
    const Measured gather = time([&] { step.head(); });
    add_collective("head, with the gather of its logits", gather, batch, context, 0, 0);
  }

  Json facts(const char* part, int batch, int context) const {
    return {{"phase", "decode"},     {"part", part},
            {"ranks", model_.world}, {"experts", options_.engine.expert_parallel ? "whole" : "in parts"},
            {"batch", batch},        {"context", context}};
  }
  static void add(Json& row, const Measured& measured, double n) {
    row["milliseconds"] = measured.ms;
    row["runs"] = measured.runs;
    if (n != 1) row["perStep"] = n;
  }
  static void bound(Json& row, double ms, const char* by) {
    if (ms > 0) row.update({{"boundMilliseconds", ms}, {"boundBy", by}, {"fraction", ms / row["milliseconds"].get<double>()}});
  }
  // link_bytes: that each of n calls has to send over this rank's link.
  void add_collective(const char* part, const Measured& measured, int batch, int context, int n, double link_bytes) {
    Json row = facts(part, batch, context);
    add(row, measured, std::max(n, 1));
    if (n > 0) row["linkBytes"] = n * link_bytes;
    if (n > 0 && peers_.link_gbps > 0)
      bound(row, n * (link_bytes / peers_.link_gbps / 1e6 + peers_.meeting_us / 1e3), "links and meetings");
    rows_.push_back(row);
  }

  const Options& options_;
  Comm& comm_;
  const OnLine& on_line_;
  const std::atomic<bool>* cancelled_;
  BenchModel model_;
  BenchDevice::PeerCeilings peers_;
  uint64_t next_key_ = uint64_t{1} << 62;
  double read_gbps_ = 0;  // of one rank
  std::vector<Json> rows_;
  std::set<std::string> said_;  // fallbacks
};

}  // namespace

Json measure_parallel(const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled) {
  const int world = options.engine.tensor_parallel;
  const auto comms = make_thread_world(world);
  std::mutex mutex;
  std::exception_ptr failure;
  Json result;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      try {
        Rank one(options, rank, *comms[rank], on_line, cancelled);
        one.run();
        if (rank == 0) result = one.result();
        comms[rank]->exchange(nullptr);  // nobody frees what others may still read
      } catch (...) {
        {
          const std::lock_guard lock(mutex);
          if (!failure) failure = std::current_exception();
        }
        comms[rank]->shut_down();
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
  return result;
}

}  // namespace sigmoe::bench
