// sigmoe_cuda_gemm_bench: the many-row products of the CUDA backend, checked (cuda_gemm_check.cpp) and timed at the model's
// shapes beside the read stream measured in the same run.
//
//   sigmoe_cuda_gemm_bench check            every case must pass: error 1 - 2<x,y> / (|x|^2 + |y|^2) below 1e-5
//   sigmoe_cuda_gemm_bench time [PEAK [quick]]   PEAK: TFLOPS of a large FP8 product measured in the same job, for the
//                                                fractions; quick: many rows alone
//   sigmoe_cuda_gemm_bench sustain          the experts' products for a second each: at the card's power limit
//
// Times are medians of graph replays over weights larger than the cache, packing of x included.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "gemm_layers.h"

using namespace sigmoe;
using namespace sigmoe::cuda;
using namespace sigmoe::cuda::bench;

namespace {

double median_us(CudaBackend& backend, int n_runs, const std::function<void(int)>& run) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  const cudaStream_t stream = backend.queue().stream;
  run(0);
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < n_runs; ++i) run(i);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, stop;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    CUDA_CHECK(cudaEventRecord(start, stream));
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaEventRecord(stop, stream));
    CUDA_CHECK(cudaEventSynchronize(stop));
    float ms;
    CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 2) times.push_back(ms * 1000 / n_runs);
  }
  std::sort(times.begin(), times.end());
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaEventDestroy(start));
  CUDA_CHECK(cudaEventDestroy(stop));
  return times[times.size() / 2];
}

double measure_stream(CudaBackend& backend) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  const int n_sms = properties.multiProcessorCount;
  constexpr size_t kBytes = size_t{6} << 30;
  const DeviceBuffer data = backend.alloc(kBytes, "read stream"), sink = backend.alloc(256, "sink");
  launch_fill_f32(backend.queue(), 3, 1.0f, kBytes / 4, data.as<float>());
  const double us =
      median_us(backend, 1, [&](int) { launch_read_stream(backend.queue(), n_sms, data.data(), kBytes, sink.as<uint32_t>()); });
  return kBytes / us / 1e6;
}

constexpr int kWidth = 4096, kInner = 1024, kExperts = 256;
constexpr int kRagged = 257;  // stands for what a router without favourites makes of 8,192 tokens: 256 on the average

std::unique_ptr<LinearWeight> made(CudaBackend& backend, WeightFormat format, int n, int k, bool gate_up, int seed) {
  LinearDesc desc;
  desc.format = format, desc.n = n, desc.k = k, desc.gate_up = gate_up, desc.name = "bench";
  return backend.random_linear(desc, seed * 7919 + 3);
}

ExpertLayer model_layer(CudaBackend& backend, WeightFormat format, int n_experts = kExperts) {
  return ExpertLayer(backend, n_experts, false, [&](bool gate_up, int seed) {
    return made(backend, format, gate_up ? 2 * kInner : kWidth, gate_up ? kWidth : kInner, gate_up, seed);
  });
}

std::vector<int> counts_of(int rows) {
  std::vector<int> counts(kExperts, rows);
  std::mt19937_64 random(5);
  std::binomial_distribution<int> routed(8192 * 8, 1.0 / kExperts);
  if (rows == kRagged)
    for (int& count : counts) count = routed(random);
  return counts;
}

int sustain(CudaBackend& backend) {
  const ExpertLayer layer = model_layer(backend, WeightFormat::fp8);
  for (const int rows : {256, kRagged, 512}) {
    const Lists lists(counts_of(rows), 8, 3);
    const ExpertRun run(backend, WeightFormat::fp8, layer, lists, kWidth, kInner);
    run.pack();
    run.gate_up();
    run.pack_inner();
    const auto us = [&](const std::function<void()>& work) {
      const double once = median_us(backend, 1, [&](int) { work(); });
      return median_us(backend, std::max(1, static_cast<int>(1e6 / once) / 13), [&](int) { work(); });
    };
    const double up = us([&] { run.gate_up(); }), pack = us([&] { run.pack_inner(); }), down = us([&] { run.project_down(); });
    const double flop = 2.0 * lists.order.size() * kInner * kWidth;
    std::printf("%d rows, sustained: gate_up %.1f us %.0f TFLOPS, packing %.1f us, down %.1f us, with packing %.0f TFLOPS\n",
                rows, up, 2 * flop / up / 1e6, pack, down, flop / (pack + down) / 1e6);
  }
  return 0;
}

int time(CudaBackend& backend, double peak, bool quick) {
  const double stream = measure_stream(backend);
  std::printf("%s: read stream %.2f TB/s, FP8 peak given %.0f TFLOPS\n", backend.info().name.c_str(), stream, peak);
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16}) {
    if (quick && format == WeightFormat::bf16) continue;
    const double bytes_each = format == WeightFormat::fp8 ? 1 : 2;
    std::printf(
        "experts, %s: rows | pack us | gate_up us TFLOPS %%peak TB/s %%stream | down us (of them packing) TFLOPS %%peak TB/s "
        "%%stream\n",
        weight_format_name(format));
    const ExpertLayer layer = model_layer(backend, format);
    for (const int rows : {1, 8, 16, 32, 64, 128, 256, kRagged, 512}) {
      if (format == WeightFormat::bf16 && rows != 8 && rows != 64 && rows != 256) continue;
      if (quick && rows < 128) continue;
      const Lists lists(counts_of(rows), rows == 1 ? 1 : 8, 3);
      const ExpertRun run(backend, format, layer, lists, kWidth, kInner);
      const double slots = static_cast<double>(lists.order.size());
      const double pack = median_us(backend, 1, [&](int) { run.pack(); });
      const double up = median_us(backend, 1, [&](int) { run.gate_up(); });
      const double pack_inner = median_us(backend, 1, [&](int) { run.pack_inner(); });
      const double down = pack_inner + median_us(backend, 1, [&](int) { run.project_down(); });
      const double up_flop = 2.0 * slots * 2 * kInner * kWidth, down_flop = 2.0 * slots * kInner * kWidth;
      const double up_bytes = bytes_each * (2.0 * kInner * kWidth * kExperts + lists.n_tokens * kWidth + slots * kInner);
      const double down_bytes = bytes_each * (1.0 * kInner * kWidth * kExperts + slots * kInner) + 2.0 * slots * kWidth;
      std::printf("%4d | %6.1f | %7.1f %6.0f %3.0f%% %5.2f %3.0f%% | %7.1f (%.1f) %6.0f %3.0f%% %5.2f %3.0f%%\n", rows, pack,
                  up, up_flop / up / 1e6, up_flop / up / 1e4 / peak, up_bytes / up / 1e6, up_bytes / up / 1e4 / stream, down,
                  pack_inner, down_flop / down / 1e6, down_flop / down / 1e4 / peak, down_bytes / down / 1e6,
                  down_bytes / down / 1e4 / stream);
    }
  }
  std::printf("linear, fp8, packing included: n k rows | us TFLOPS %%peak | weight TB/s %%stream\n");
  for (const auto& [n, k] : {std::pair<int, int>{5120, 4096}, {4096, 4096}, {18432, 4096}, {4096, 9216}, {157184, 4096}}) {
    const bool head = n > 100000;
    std::vector<std::unique_ptr<LinearWeight>> weights;
    for (int i = 0; i < (head ? 2 : 12); ++i) weights.push_back(made(backend, WeightFormat::fp8, n, k, false, 400 + i));
    for (const int rows : {32, 64, 128, 256, 512, 1023, 4096, 8192}) {
      if ((quick && (rows != 8192 || n != 5120)) || (head && rows > 512)) continue;
      const Array<float> x(backend, static_cast<size_t>(rows) * k), y(backend, static_cast<size_t>(rows) * n);
      launch_fill_f32(backend.queue(), 9, 1.7f, x.n, x.get());
      const Packed packed(backend, WeightFormat::fp8, rows, k);
      const double us = median_us(backend, rows > 1000 ? 3 : 24, [&](int i) {
        launch_pack_rows(backend.queue(), WeightFormat::fp8, x.get(), nullptr, rows, k, packed.view(), {});
        TensorGemmArgs args;
        args.weight = view_of(*weights[i % weights.size()]), args.x = packed.view(), args.n_rows = rows, args.out = y.get();
        launch_tensor_gemm(backend.queue(), args);
      });
      const double flop = 2.0 * rows * n * k;
      std::printf("%5d %4d %4d | %7.1f %6.0f %3.0f%% | %5.2f %3.0f%%\n", n, k, rows, us, flop / us / 1e6,
                  flop / us / 1e4 / peak, 1.0 * n * k / us / 1e6, 1.0 * n * k / us / 1e4 / stream);
    }
  }
  return 0;
}

// One product of each kind, for a profiler.
int profile(CudaBackend& backend) {
  constexpr int kRows = 8192, n = 5120, k = 4096, kFew = 64;
  const auto weight = made(backend, WeightFormat::fp8, n, k, false, 1);
  const Array<float> x(backend, static_cast<size_t>(kRows) * k), y(backend, static_cast<size_t>(kRows) * n);
  launch_fill_f32(backend.queue(), 9, 1.7f, x.n, x.get());
  backend.linear(x.get(), *weight, kRows, y.get());
  const ExpertLayer layer = model_layer(backend, WeightFormat::fp8, kFew);
  const Lists lists(std::vector<int>(kFew, 256), 8, 3);
  const ExpertRun run(backend, WeightFormat::fp8, layer, lists, kWidth, kInner);
  run.pack();
  run.gate_up();
  run.pack_inner();
  run.project_down();
  backend.synchronize();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    CudaBackend backend(BackendOptions{});
    const std::string mode = argc > 1 ? argv[1] : "check";
    if (mode == "check") return check(backend);
    if (mode == "profile") return profile(backend);
    if (mode == "sustain") return sustain(backend);
    return time(backend, argc > 2 ? std::atof(argv[2]) : 1305, argc > 3);
  } catch (const std::exception& error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
}
