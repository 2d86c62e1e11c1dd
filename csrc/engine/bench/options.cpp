#include "engine/bench/options.h"

#include "nlohmann/json.hpp"

namespace sigmoe::bench {
namespace {

using Json = nlohmann::json;

void require(bool condition, const std::string& message, const std::string& hint = {}) {
  if (!condition) throw EngineError(ErrorCode::invalid_argument, message, hint);
}

// A JSON number that is no whole one, or is past its range, must not reach a cast.
int whole(const Json& value, const char* name, int low, int high) {
  require(value.is_number_integer() && value.get<double>() >= low && value.get<double>() <= high,
          std::string("bench ") + name + " is " + value.dump() + ", not a whole number in [" + std::to_string(low) + ", " +
              std::to_string(high) + "]");
  return value.get<int>();
}

class Reader {
 public:
  explicit Reader(const std::string& text) : in_(Json::parse(text, nullptr, false)) {
    require(in_.is_object(), "bench options are not a JSON object");
  }

  void read(const char* name, int& value, int low, int high) const {
    if (in_.contains(name)) value = whole(in_[name], name, low, high);
  }
  // One number or a list of them.
  void read(const char* name, std::vector<int>& values, int low, int high) const {
    if (!in_.contains(name)) return;
    const Json list = in_[name].is_array() ? in_[name] : Json::array({in_[name]});
    require(!list.empty(), std::string("bench ") + name + " is an empty list");
    values.clear();
    for (const Json& value : list) values.push_back(whole(value, name, low, high));
  }
  void read(const char* name, std::string& value) const {
    if (!in_.contains(name)) return;
    require(in_[name].is_string(), std::string("bench ") + name + " is " + in_[name].dump() + ", not a text");
    value = in_[name].get<std::string>();
  }
  void read(const char* name, bool& value) const {
    if (!in_.contains(name)) return;
    require(in_[name].is_boolean(), std::string("bench ") + name + " is " + in_[name].dump() + ", neither true nor false");
    value = in_[name].get<bool>();
  }

 private:
  Json in_;
};

}  // namespace

Options parse_options(const std::string& json) {
  constexpr int kMostTokens = 1 << 20;
  const Reader in(json);
  Options options;
  in.read("mode", options.mode);
  in.read("model", options.model);
  in.read("shape", options.shape);
  in.read("dtype", options.dtype);
  in.read("format", options.dtype);
  in.read("head", options.head);
  in.read("batch", options.batches, 1, 4096);
  in.read("tokens", options.tokens, 1, kMostTokens);
  in.read("rows", options.rows, 1, 4096);
  in.read("context", options.contexts, 1, kMostTokens);
  in.read("prefill", options.prefill, 0, kMostTokens);
  in.read("chunk", options.chunk, 1, 65536);
  in.read("repeats", options.repeats, 1, 1000);
  in.read("load", options.load);
  in.read("device", options.engine.device);
  in.read("kernels", options.engine.kernels);
  in.read("compute", options.engine.compute);
  in.read("kvCacheDtype", options.engine.kv_cache_dtype);
  in.read("prefillAttention", options.engine.prefill_attention);
  in.read("deterministic", options.engine.deterministic);
  in.read("threads", options.engine.n_threads, 0, 1024);
  in.read("tensorParallelSize", options.engine.tensor_parallel, 1, 8);
  in.read("enableExpertParallel", options.engine.expert_parallel);

  const bool modes =
      options.mode == "model" || options.mode == "decode" || options.mode == "prefill" || options.mode == "kernels";
  require(modes, "bench mode '" + options.mode + "' asked for: no such mode", "use model, decode, prefill or kernels");
  require(options.engine.tensor_parallel == 1 || (options.mode == "decode" && !options.engine.deterministic),
          "bench " + options.mode + " on several ranks asked for",
          "several ranks are measured by bench decode, not deterministic");
  require(options.model.empty() != options.shape.empty(), "bench needs either a model folder or a shape");
  require(!options.load || !options.model.empty(), "bench of loading needs a model folder");
  require(options.dtype == "fp8" || options.dtype == "bf16" || options.dtype == "int4",
          "bench dtype '" + options.dtype + "' asked for: no such format", "use fp8, bf16 or int4");
  require(options.head == "fp8" || options.head == "bf16", "bench head '" + options.head + "' asked for: no such format",
          "use bf16 or fp8");
  return options;
}

}  // namespace sigmoe::bench
