// The export table and the calls that belong to no model: load, follow, inspect, quantise, devices, bench.
#include <napi.h>

#include "binding/args.h"
#include "binding/convert.h"
#include "binding/model_wrap.h"
#include "binding/worker.h"
#include "engine/engine.h"

namespace sigmoe::binding {
namespace {

EngineOptions engine_options(const Napi::Object& in) {
  EngineOptions options;
  options.device = text(in.Get("device"), "device");
  options.kernels = text(in.Get("kernels"), "kernels");
  options.compute = text(in.Get("compute"), "compute");
  options.deterministic = boolean(in.Get("deterministic"), "deterministic");
  options.kv_cache_dtype = text(in.Get("kvCacheDtype"), "kvCacheDtype");
  options.prefill_attention = text(in.Get("prefillAttention"), "prefillAttention");
  options.n_threads = integer32(in.Get("threads"), "threads");
  options.tensor_parallel = integer32(in.Get("tensorParallelSize"), "tensorParallelSize");
  options.expert_parallel = boolean(in.Get("enableExpertParallel"), "enableExpertParallel");
  options.data_parallel = integer32(in.Get("dataParallelSize"), "dataParallelSize");
  options.first_device = integer32(in.Get("firstDevice"), "firstDevice");
  options.node.index = integer32(in.Get("nodeRank"), "nodeRank");
  options.node.count = integer32(in.Get("nodeCount"), "nodeCount");
  options.node.address = text(in.Get("nodeAddress"), "nodeAddress");
  options.node.port = integer32(in.Get("nodePort"), "nodePort");
  options.node.secret = text(in.Get("nodeSecret"), "nodeSecret");
  options.node.allow_no_secret = boolean(in.Get("nodeAllowNoSecret"), "nodeAllowNoSecret");
  options.node.on_this_machine = integer32(in.Get("nodesOnThisMachine"), "nodesOnThisMachine");
  options.node.join_ms = integer32(in.Get("nodeJoinMs"), "nodeJoinMs");
  options.node.patience_ms = integer32(in.Get("nodeSilenceMs"), "nodeSilenceMs");
  options.max_model_len = integer(in.Get("maxModelLen"), "maxModelLen");
  options.max_num_seqs = integer32(in.Get("maxNumSeqs"), "maxNumSeqs");
  options.max_batched_tokens = integer32(in.Get("maxBatchedTokens"), "maxBatchedTokens");
  options.kv_cache_tokens = integer(in.Get("kvCacheTokens"), "kvCacheTokens");
  options.memory_utilization = number(in.Get("memoryUtilization"), "memoryUtilization");
  options.max_waiting = integer32(in.Get("maxWaiting"), "maxWaiting");
  options.prefix_cache = boolean(in.Get("prefixCache"), "prefixCache");
  options.with_mtp = boolean(in.Get("mtp"), "mtp");
  options.speculation = text(in.Get("speculation"), "speculation");
  options.draft = text(in.Get("draft"), "draft");
  options.max_draft = integer32(in.Get("maxDraft"), "maxDraft");
  options.adaptive_depth = boolean(in.Get("adaptiveDepth"), "adaptiveDepth");
  return options;
}

class LoadWorker : public PromiseWorker<EngineLoadProgress> {
 public:
  LoadWorker(Napi::Env env, std::string path, EngineOptions options, const Napi::Function& on_progress)
      : PromiseWorker(env), path_(std::move(path)), options_(std::move(options)), on_progress_(Napi::Persistent(on_progress)) {}

 protected:
  void run() override {
    engine_ = Engine::load(
        path_, options_, [this](const EngineLoadProgress& progress) { send(progress); }, cancelled());
  }
  Napi::Value result() override { return ModelWrap::create(Env(), std::move(engine_)); }
  void on_message(const EngineLoadProgress& progress) override {
    on_progress_.Call({Napi::Number::New(Env(), static_cast<double>(progress.bytes_done)),
                       Napi::Number::New(Env(), static_cast<double>(progress.bytes_total))});
  }

 private:
  std::string path_;
  EngineOptions options_;
  Napi::FunctionReference on_progress_;
  std::unique_ptr<Engine> engine_;
};

struct FollowMessage {
  EngineLoadProgress progress;
  std::shared_ptr<EngineInfo> ready;  // null: progress
};

class FollowWorker : public PromiseWorker<FollowMessage> {
 public:
  FollowWorker(Napi::Env env, std::string path, EngineOptions options, const Napi::Function& on_progress,
               const Napi::Function& on_ready)
      : PromiseWorker(env),
        path_(std::move(path)),
        options_(std::move(options)),
        on_progress_(Napi::Persistent(on_progress)),
        on_ready_(Napi::Persistent(on_ready)) {}

 protected:
  void run() override {
    follow(
        path_, options_,
        [this](const EngineLoadProgress& progress) {
          send({progress, nullptr});
        },
        [this](const EngineInfo& info) {
          send({{}, std::make_shared<EngineInfo>(info)});
        },
        cancelled());
  }
  Napi::Value result() override { return Env().Undefined(); }
  void on_message(const FollowMessage& message) override {
    if (message.ready)
      on_ready_.Call({to_js(Env(), *message.ready)});
    else
      on_progress_.Call({Napi::Number::New(Env(), static_cast<double>(message.progress.bytes_done)),
                         Napi::Number::New(Env(), static_cast<double>(message.progress.bytes_total))});
  }

 private:
  std::string path_;
  EngineOptions options_;
  Napi::FunctionReference on_progress_, on_ready_;
};

class InspectWorker : public PromiseWorker<char> {
 public:
  InspectWorker(Napi::Env env, std::string path, int tensor_parallel, bool expert_parallel)
      : PromiseWorker(env), path_(std::move(path)), tensor_parallel_(tensor_parallel), expert_parallel_(expert_parallel) {}

 protected:
  void run() override { info_ = inspect_model(path_, tensor_parallel_, expert_parallel_); }
  Napi::Value result() override { return to_js(Env(), info_); }

 private:
  std::string path_;
  int tensor_parallel_;
  bool expert_parallel_;
  EngineInfo info_;
};

class PlanWorker : public PromiseWorker<char> {
 public:
  PlanWorker(Napi::Env env, std::string path, std::string format)
      : PromiseWorker(env), path_(std::move(path)), format_(std::move(format)) {}

 protected:
  void run() override { result_ = plan_quantization(path_, format_); }
  Napi::Value result() override { return Napi::String::New(Env(), result_); }

 private:
  std::string path_, format_, result_;
};

struct ShardJob {
  std::string path, format, file, out;
  int n_threads;
};

class QuantizeWorker : public PromiseWorker<EngineLoadProgress> {
 public:
  QuantizeWorker(Napi::Env env, ShardJob job, const Napi::Function& on_progress)
      : PromiseWorker(env), job_(std::move(job)), on_progress_(Napi::Persistent(on_progress)) {}

 protected:
  void run() override {
    result_ = quantize_shard(
        job_.path, job_.format, job_.file, job_.out, job_.n_threads,
        [this](const EngineLoadProgress& progress) { send(progress); }, cancelled());
  }
  Napi::Value result() override { return Napi::String::New(Env(), result_); }
  void on_message(const EngineLoadProgress& progress) override {
    on_progress_.Call({Napi::Number::New(Env(), static_cast<double>(progress.bytes_done))});
  }

 private:
  ShardJob job_;
  std::string result_;
  Napi::FunctionReference on_progress_;
};

class BandwidthWorker : public PromiseWorker<char> {
 public:
  explicit BandwidthWorker(Napi::Env env) : PromiseWorker(env) {}

 protected:
  void run() override { gbps_ = measure_memory_gbps(); }
  Napi::Value result() override { return Napi::Number::New(Env(), gbps_); }

 private:
  double gbps_ = 0;
};

class BenchWorker : public PromiseWorker<std::string> {
 public:
  BenchWorker(Napi::Env env, std::string options, const Napi::Function& on_line)
      : PromiseWorker(env), options_(std::move(options)), on_line_(Napi::Persistent(on_line)) {}

 protected:
  void run() override {
    result_ = run_benchmark(
        options_, [this](const std::string& line) { send(line); }, cancelled());
  }
  Napi::Value result() override { return Napi::String::New(Env(), result_); }
  void on_message(const std::string& line) override { on_line_.Call({Napi::String::New(Env(), line)}); }

 private:
  std::string options_, result_;
  Napi::FunctionReference on_line_;
};

Napi::Value load(const Napi::CallbackInfo& info) {
  auto* worker = new LoadWorker(info.Env(), string_arg(info, 0, "path"), engine_options(object_arg(info, 1, "options")),
                                function_arg(info, 2, "onProgress"));
  worker->Queue();
  return worker->handle();
}

Napi::Value follow_leader(const Napi::CallbackInfo& info) {
  auto* worker = new FollowWorker(info.Env(), string_arg(info, 0, "path"), engine_options(object_arg(info, 1, "options")),
                                  function_arg(info, 2, "onProgress"), function_arg(info, 3, "onReady"));
  worker->Queue();
  return worker->handle();
}

Napi::Value inspect(const Napi::CallbackInfo& info) {
  auto* worker = new InspectWorker(info.Env(), string_arg(info, 0, "path"), integer32(info[1], "tensorParallelSize"),
                                   boolean(info[2], "enableExpertParallel"));
  worker->Queue();
  return worker->promise();
}

Napi::Value bench(const Napi::CallbackInfo& info) {
  auto* worker = new BenchWorker(info.Env(), string_arg(info, 0, "options"), function_arg(info, 1, "onLine"));
  worker->Queue();
  return worker->handle();
}

Napi::Value plan(const Napi::CallbackInfo& info) {
  auto* worker = new PlanWorker(info.Env(), string_arg(info, 0, "path"), string_arg(info, 1, "format"));
  worker->Queue();
  return worker->promise();
}

Napi::Value quantize(const Napi::CallbackInfo& info) {
  const Napi::Object in = object_arg(info, 0, "job");
  ShardJob job{text(in.Get("path"), "path"), text(in.Get("format"), "format"), text(in.Get("file"), "file"),
               text(in.Get("out"), "out"), integer32(in.Get("threads"), "threads")};
  auto* worker = new QuantizeWorker(info.Env(), std::move(job), function_arg(info, 1, "onProgress"));
  worker->Queue();
  return worker->handle();
}

Napi::Value memory_bandwidth(const Napi::CallbackInfo& info) {
  auto* worker = new BandwidthWorker(info.Env());
  worker->Queue();
  return worker->promise();
}

Napi::Value devices(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&] {
    Napi::Array out = Napi::Array::New(env);
    for (const DeviceLine& line : engine_devices()) {
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("device", line.device);
      entry.Set("available", line.available);
      entry.Set("detail", line.detail);
      out.Set(out.Length(), entry);
    }
    return out;
  });
}

void offer_library(const Napi::CallbackInfo& info) {
  offer_backend_library(string_arg(info, 0, "file"), string_arg(info, 1, "path"));
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  ModelWrap::define(env);
  exports.Set("version", SIGMOE_VERSION);
  exports.Set("load", Napi::Function::New(env, load, "load"));
  exports.Set("follow", Napi::Function::New(env, follow_leader, "follow"));
  exports.Set("inspect", Napi::Function::New(env, inspect, "inspect"));
  exports.Set("devices", Napi::Function::New(env, devices, "devices"));
  exports.Set("offerLibrary", Napi::Function::New(env, offer_library, "offerLibrary"));
  exports.Set("planQuantization", Napi::Function::New(env, plan, "planQuantization"));
  exports.Set("quantizeShard", Napi::Function::New(env, quantize, "quantizeShard"));
  exports.Set("memoryBandwidth", Napi::Function::New(env, memory_bandwidth, "memoryBandwidth"));
  exports.Set("bench", Napi::Function::New(env, bench, "bench"));
  return exports;
}

}  // namespace

NODE_API_MODULE(sigmoe, init)

}  // namespace sigmoe::binding
