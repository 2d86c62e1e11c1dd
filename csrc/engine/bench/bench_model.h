// What is measured: a folder's weights, or random ones of a published shape, on a device.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "backend/bench_device.h"
#include "engine/bench/options.h"
#include "engine/checkpoint/config.h"
#include "engine/weights/weights.h"

namespace sigmoe::bench {

using OnLine = std::function<void(const std::string&)>;

struct BenchModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<BenchDevice> device;
  std::string device_reason;
  ModelConfig config;
  ModelWeights weights;
  int rank = 0, world = 1;  // of several, each with its part of the weights; parallel.h
  Comm* comm = nullptr;
};

// Only the device, for what needs no weights.
void open_device(BenchModel& model, const Options& options);

// The weights, or this rank's part of them, once the device is open.
void fill_model(BenchModel& model, const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled);

BenchModel make_model(const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled);

}  // namespace sigmoe::bench
