// Times work and writes rows: the median of some runs, its bound by the ceilings of the same run, and which kernels ran.
#pragma once

#include <atomic>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "backend/bench_device.h"
#include "engine/bench/bench_model.h"
#include "engine/bench/cost.h"
#include "nlohmann/json.hpp"

namespace sigmoe::bench {

using Json = nlohmann::ordered_json;

double median(std::vector<double> values);

// Times of one row and the ceilings sampled beside them.
struct Samples {
  std::vector<double> ms, read_gbps, matrix_gflops;
  double median_ms() const { return median(ms); }
};

class Meter {
 public:
  Meter(BenchModel& model, const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled);

  // Work that is called as it is, or that the backend may record and replay (Backend::run_recorded): what a decode step does.
  Samples time(const std::function<void()>& work);
  Samples time_recorded(const std::function<void()>& work);
  Samples time_once(const std::function<void()>& work);  // no warm-up: for what takes seconds

  // Appends a row. `facts` come first; n is how often the timed work does what the row is about.
  Json& add(Json facts, const Samples& samples, const Cost& cost, double n = 1);
  // The kernels of the row's work, which does n times what the row is about, and what was chosen for its ops: a shape that
  // falls back to a slow kernel is told here.
  void say_kernels(Json& row, const std::function<void()>& work, double n = 1);

  void check_cancelled() const;
  void say(const std::string& line) const { on_line_(line); }
  Json ceilings() const;  // of the whole run
  std::vector<Json>& rows() { return rows_; }

 private:
  Samples repeat(int warm_ups, const std::function<void()>& work);
  double fp8_gflops();

  BenchModel& model_;
  const Options& options_;
  const OnLine& on_line_;
  const std::atomic<bool>* cancelled_;
  uint64_t next_key_ = uint64_t{1} << 62;  // of recorded work; steps of the engine have keys of their own
  Samples all_;                            // the ceilings' samples
  double fp8_gflops_ = -1;
  std::vector<Json> rows_;
  std::set<std::string> said_;  // fallbacks
};

}  // namespace sigmoe::bench
