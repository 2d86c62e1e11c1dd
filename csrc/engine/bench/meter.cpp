#include "engine/bench/meter.h"

#include <algorithm>

namespace sigmoe::bench {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Meter::Meter(BenchModel& model, const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled)
    : model_(model), options_(options), on_line_(on_line), cancelled_(cancelled) {}

void Meter::check_cancelled() const {
  if (cancelled_ && cancelled_->load()) throw EngineError(ErrorCode::aborted, "the benchmark was aborted");
}

double Meter::fp8_gflops() {
  if (fp8_gflops_ < 0) fp8_gflops_ = model_.device->matrix_gflops(DType::f8_e4m3);
  return fp8_gflops_;
}

// Ceilings are sampled right before each run, because those of a shared machine drift. Slow work is repeated less.
Samples Meter::repeat(int warm_ups, const std::function<void()>& work) {
  for (int i = 0; i < warm_ups; ++i) {
    check_cancelled();
    work();
  }
  model_.backend->synchronize();
  Samples samples;
  double spent = 0;
  for (int i = 0; i < options_.repeats && (i == 0 || spent + spent / i < options_.seconds * 1e3); ++i) {
    check_cancelled();
    samples.matrix_gflops.push_back(model_.device->matrix_gflops(DType::bf16));
    const BenchDevice::Timing timing = model_.device->time(work);
    samples.ms.push_back(timing.ms);
    if (timing.read_gbps > 0) samples.read_gbps.push_back(timing.read_gbps);
    spent += timing.ms;
  }
  return samples;
}

Samples Meter::time(const std::function<void()>& work) { return repeat(1, work); }
Samples Meter::time_once(const std::function<void()>& work) { return repeat(0, work); }

Samples Meter::time_recorded(const std::function<void()>& work) {
  const uint64_t key = ++next_key_;
  return repeat(3, [&] { model_.backend->run_recorded(key, work); });
}

Json& Meter::add(Json facts, const Samples& samples, const Cost& cost, double n) {
  const double ms = samples.median_ms() / n;
  const double gbps = median(samples.read_gbps), gflops = median(samples.matrix_gflops), fp8 = fp8_gflops();
  all_.read_gbps.insert(all_.read_gbps.end(), samples.read_gbps.begin(), samples.read_gbps.end());
  all_.matrix_gflops.insert(all_.matrix_gflops.end(), samples.matrix_gflops.begin(), samples.matrix_gflops.end());

  Json row = std::move(facts);
  if (row.contains("tokens")) row["tokensPerSecond"] = row["tokens"].get<double>() / ms * 1e3;
  row["milliseconds"] = ms;
  row["runs"] = samples.ms.size();
  if (n != 1) row["perStep"] = n;
  if (cost.bytes > 0) row.update({{"bytes", cost.bytes}, {"gbps", cost.bytes / ms / 1e6}});
  if (cost.all_flop() > 0) row.update({{"flop", cost.all_flop()}, {"gflops", cost.all_flop() / ms / 1e6}});
  if (gbps > 0) row["readGbps"] = gbps;
  if (gflops > 0) row["matrixGflops"] = gflops;
  // Without FP8 units the product of an FP8 weight is one of BF16.
  const double read_ms = gbps > 0 ? cost.bytes / gbps / 1e6 : 0;
  const double matrix_ms = gflops > 0 ? cost.flop / gflops / 1e6 + cost.flop_fp8 / (fp8 > 0 ? fp8 : gflops) / 1e6 : 0;
  const double bound_ms = std::max(read_ms, matrix_ms);
  if (bound_ms > 0)
    row.update({{"boundMilliseconds", bound_ms},
                {"boundBy", read_ms >= matrix_ms ? "read bandwidth" : "matrix peak"},
                {"fraction", bound_ms / ms}});
  rows_.push_back(std::move(row));
  return rows_.back();
}

void Meter::say_kernels(Json& row, const std::function<void()>& work, double n) {
  for (const BenchDevice::KernelUse& use : model_.device->kernels_of(work)) {
    row["kernels"].push_back({{"name", use.name}, {"launches", use.launches / n}, {"milliseconds", use.ms / n}});
    if (use.name.find("exact") != std::string::npos && model_.backend->info().compute != DType::f32) row["slowPath"] = true;
  }
  std::vector<BenchDevice::Choice> known;  // once each: layers are alike
  for (const BenchDevice::Choice& choice : model_.device->choices_of(work)) {
    if (std::find(known.begin(), known.end(), choice) != known.end()) continue;
    known.push_back(choice);
    Json said = {{"op", choice.op}, {"rows", choice.rows}, {"kernel", choice.kernel}};
    if (!choice.fallback.empty()) {
      said["fallback"] = choice.fallback;
      const std::string line =
          "fallback: " + choice.op + ", " + std::to_string(choice.rows) + " rows, by " + choice.kernel + ", " + choice.fallback;
      if (said_.insert(line).second) say("  " + line);
    }
    row["choices"].push_back(said);
  }
}

Json Meter::ceilings() const {
  Json out = Json::object();
  const auto put = [&](const char* name, double value) {
    if (value > 0) out[name] = value;
  };
  put("readGbps", median(all_.read_gbps));
  put("copyGbps", model_.device->copy_gbps());
  put("matrixGflops", median(all_.matrix_gflops));
  put("matrixFp8Gflops", std::max(0.0, fp8_gflops_));
  return out;
}

}  // namespace sigmoe::bench
