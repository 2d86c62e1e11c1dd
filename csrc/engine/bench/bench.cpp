// `sigmoe bench`: steps, prompts and single ops on any device, each beside its counted bound and the device's own ceilings
// measured in the same run. What is counted: cost.h; what is run: decode.cpp, prefill.cpp, kernels.cpp, load.cpp.
#include <filesystem>
#include <fstream>

#include "engine/bench/modes.h"
#include "engine/bench/parallel.h"
#include "engine/bench/speculation.h"

namespace sigmoe {
namespace bench {

Costs costs_of(const BenchModel& model, const Options& options) {
  const bool random = options.model.empty();
  const bool fp8 = random ? options.dtype == "fp8" : model.config.quant.method == QuantMethod::fp8_block;
  return Costs(model.config, model.weights, model.backend->info(), fp8, random && options.head == "fp8");
}

namespace {

double peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) * 1024;
  return 0;
}

std::string name_of(const Options& options) {
  return options.shape.empty() ? std::filesystem::path(options.model).filename().string() : options.shape;
}

Json facts_of(const BenchModel& model, const Meter& meter) {
  const BackendInfo& info = model.backend->info();
  Json machine = {{"name", info.name}, {"device", info.device}, {"threads", info.n_threads}, {"kernels", info.kernels}};
  if (const std::string driver = model.device->driver(); !driver.empty()) machine["driver"] = driver;
  machine.update(meter.ceilings());
  return machine;
}

void measure(BenchModel& model, const Options& options, Meter& meter) {
  if (options.mode == "decode") return measure_decode(model, options, meter);
  if (options.mode == "prefill") return measure_prefill(model, options, meter);
  if (options.mode == "kernels") return measure_kernels(model, options, meter);
  measure_model(model, options, meter);
}

// Whole decode steps with the default kernels, by batch and context: what determinism is compared with.
std::vector<Json> default_steps(const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled) {
  Options plain = options;
  plain.engine.deterministic = false;
  on_line("first without determinism, to compare with");
  BenchModel model = make_model(plain, on_line, cancelled);
  Meter meter(model, plain, on_line, cancelled);
  measure_decode_steps(model, plain, meter);
  return meter.rows();
}

void add_cost_of_determinism(std::vector<Json>& rows, const std::vector<Json>& plain) {
  const auto key = [](const Json& row) { return Json{row["part"], row["batch"], row["context"]}; };
  for (Json& row : rows)
    for (const Json& other : plain)
      if (row["phase"] == "decode" && key(row) == key(other))
        row["timesDefault"] = row["milliseconds"].get<double>() / other["milliseconds"].get<double>();
}

}  // namespace
}  // namespace bench

std::string run_benchmark(const std::string& options_json, const std::function<void(const std::string&)>& on_line,
                          const std::atomic<bool>* cancelled) {
  using namespace bench;
  if (Json::parse(options_json, nullptr, false).contains("acceptance"))
    return measure_speculation(options_json, on_line, cancelled);
  const Options options = parse_options(options_json);
  if (options.engine.tensor_parallel > 1) {
    Json measured = measure_parallel(options, on_line, cancelled);
    Json result = {{"machine", measured["machine"]}, {"shape", name_of(options)}};
    if (options.model.empty()) result.update({{"dtype", options.dtype}, {"head", options.head}});
    result["memory"] = {{"weightBytes", measured["weightBytes"]}, {"peakResidentBytes", peak_resident_bytes()}};
    result["rows"] = measured["rows"];
    return result.dump();
  }
  std::vector<Json> plain;
  if (options.engine.deterministic && options.mode == "decode") plain = default_steps(options, on_line, cancelled);

  Json result;
  BenchModel model;
  Meter meter(model, options, on_line, cancelled);
  if (options.load) measure_load(options, meter, cancelled);
  model = make_model(options, on_line, cancelled);
  meter.check_cancelled();
  measure(model, options, meter);
  add_cost_of_determinism(meter.rows(), plain);

  result["machine"] = facts_of(model, meter);
  result["shape"] = name_of(options);
  if (options.model.empty()) result.update({{"dtype", options.dtype}, {"head", options.head}});
  result["deterministic"] = options.engine.deterministic;
  result["memory"] = {{"weightBytes", model.weights.bytes}, {"peakResidentBytes", peak_resident_bytes()}};
  result["rows"] = meter.rows();
  return result.dump();
}

}  // namespace sigmoe
