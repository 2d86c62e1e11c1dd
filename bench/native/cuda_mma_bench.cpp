// sigmoe_cuda_mma_bench: the many-row kernels of cards before Hopper on whatever card there is, beside the kernels of few rows
// that did their work before. Every row is checked against those first. Times are medians of graph replays, conversion of the
// activations included; the matrix peak is of mma.sync in a build of sm_80 code.
//
//   sigmoe_cuda_mma_bench [linear] [experts] [attention]
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>

#include "cuda/bench_kernels.h"
#include "cuda/cuda_backend.h"
#include "cuda/kernel_times.h"

using namespace sigmoe;
using namespace sigmoe::cuda;

namespace {

template <typename T>
struct Array {
  Array(Backend& backend, size_t n) : backend(backend), n(n), buffer(backend.alloc(n * sizeof(T), "bench")) {}
  Array(Backend& backend, const std::vector<T>& values) : Array(backend, values.size()) {
    backend.upload(buffer.data(), values.data(), n * sizeof(T));
  }
  T* get() const { return buffer.template as<T>(); }
  std::vector<T> read(size_t most) const {
    std::vector<T> values(std::min(n, most));
    backend.download(values.data(), buffer.data(), values.size() * sizeof(T));
    return values;
  }
  Backend& backend;
  size_t n;
  DeviceBuffer buffer;
};

constexpr size_t kCompared = size_t{4} << 20;  // floats

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(error / size);
}

class Bench {
 public:
  explicit Bench(CudaBackend& backend) : backend_(backend) {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    n_sms_ = properties.multiProcessorCount;
    const Array<MatrixPeak> peak(backend, 1);
    const double us = median_us(1, [&](int) { launch_matrix_peak(backend.queue(), false, n_sms_, peak.get()); });
    std::printf("%s, %s: BF16 matrix peak of this build %.0f TFLOPS\n", properties.name, backend.info().kernels.c_str(),
                peak.read(1)[0].flop_per_block * n_sms_ / us * 1e-6);
  }

  void linear() {
    for (const auto& [format, name] :
         {std::pair{WeightFormat::fp8, "fp8"}, {WeightFormat::bf16, "bf16"}, {WeightFormat::int4, "int4"}})
      for (const auto& [n, k] : {std::pair{5120, 4096}, {4096, 4096}}) {
        if (n == 4096 && format != WeightFormat::fp8) continue;
        constexpr int kWeights = 4;  // beyond the cache
        std::vector<std::unique_ptr<LinearWeight>> weights;
        for (int i = 0; i < kWeights; ++i) weights.push_back(weight(format, n, k, false, i));
        for (const int rows : {128, 256, 512, 1024, 2048, 8192}) {
          if (format != WeightFormat::fp8 && rows != 128 && rows != 512 && rows != 8192) continue;
          const Array<float> x(backend_, static_cast<size_t>(rows) * k), y(backend_, static_cast<size_t>(rows) * n);
          launch_fill_f32(backend_.queue(), 5, 1.7f, x.n, x.get());
          const std::string what =
              std::string(name) + " " + std::to_string(n) + "x" + std::to_string(k) + " rows " + std::to_string(rows);
          compare(what, 2.0 * rows * n * k, y, rows > 1000 ? 4 : 16,
                  [&](int i) { backend_.linear(x.get(), *weights[i % kWeights], rows, y.get()); });
        }
      }
  }

  void experts() {
    constexpr int kExperts = 256, kActive = 8, kWidth = 4096, kInner = 1024;
    for (const auto& [format, name] : {std::pair{WeightFormat::fp8, "fp8"}, {WeightFormat::bf16, "bf16"}}) {
      std::vector<std::unique_ptr<LinearWeight>> owned;
      ExpertWeights weights;
      const auto make = [&](int n, int k, bool gate_up) {
        return owned.emplace_back(weight(format, n, k, gate_up, owned.size())).get();
      };
      for (int e = 0; e < kExperts; ++e) {
        weights.gate_up.push_back(make(2 * kInner, kWidth, true));
        weights.down.push_back(make(kWidth, kInner, false));
      }
      weights.shared_gate_up = make(2 * kInner, kWidth, true);
      weights.shared_down = make(kWidth, kInner, false);
      for (const int tokens : {256, 512, 2048, 8192}) {
        if (format != WeightFormat::fp8 && tokens != 2048 && tokens != 8192) continue;
        std::mt19937_64 random(tokens);
        std::vector<int32_t> ids, offsets(kExperts + 1), order;
        std::vector<int32_t> all(kExperts);
        std::iota(all.begin(), all.end(), 0);
        for (int t = 0; t < tokens; ++t) {
          std::shuffle(all.begin(), all.end(), random);
          ids.insert(ids.end(), all.begin(), all.begin() + kActive);
        }
        std::vector<std::vector<int32_t>> lists(kExperts);
        for (size_t i = 0; i < ids.size(); ++i) lists[ids[i]].push_back(static_cast<int32_t>(i));
        for (int e = 0; e < kExperts; ++e) {
          order.insert(order.end(), lists[e].begin(), lists[e].end());
          offsets[e + 1] = static_cast<int32_t>(order.size());
        }
        const Array<int32_t> device_ids(backend_, ids), device_offsets(backend_, offsets), device_order(backend_, order);
        const Array<float> slot_weights(backend_, std::vector<float>(ids.size(), 0.3f));
        const Array<float> x(backend_, static_cast<size_t>(tokens) * kWidth),
            y(backend_, static_cast<size_t>(tokens) * 9 * kWidth);
        launch_fill_f32(backend_.queue(), 5, 1.7f, x.n, x.get());
        compare(std::string(name) + " experts, tokens " + std::to_string(tokens), 6.0 * tokens * 9 * kWidth * kInner, y, 1,
                [&](int) {
                  backend_.experts(x.get(), weights,
                                   {device_ids.get(), slot_weights.get(), device_offsets.get(), device_order.get()}, kActive,
                                   tokens, kWidth, y.get());
                });
      }
    }
  }

  void attention() {
    for (const int head_dim : {128, 64})
      for (const auto& [begin, end] : {std::pair{0, 512}, {0, 2048}, {0, 8192}, {24576, 32768}}) {
        if (head_dim == 64 && end != 8192) continue;
        AttentionShape shape;
        shape.n_heads = 32, shape.n_kv_heads = 4, shape.head_dim = head_dim;
        const int rows = end - begin, n_pages = (end + kPageTokens - 1) / kPageTokens;
        std::vector<int32_t> pages(n_pages), positions(rows);
        std::iota(pages.begin(), pages.end(), 0);
        std::shuffle(pages.begin(), pages.end(), std::mt19937_64(3));
        std::iota(positions.begin(), positions.end(), begin);
        const Array<int32_t> device_pages(backend_, pages), device_positions(backend_, positions), offsets(backend_, {0, rows});
        const size_t cache = static_cast<size_t>(n_pages) * 4 * kPageTokens * head_dim;
        const Array<uint16_t> k(backend_, cache), v(backend_, cache);
        launch_fill_bf16(backend_.queue(), 1, 1.7f, cache, k.get());
        launch_fill_bf16(backend_.queue(), 2, 1.7f, cache, v.get());
        const Array<float> q(backend_, static_cast<size_t>(rows) * 32 * head_dim), out(backend_, q.n);
        launch_fill_f32(backend_.queue(), 3, 1.7f, q.n, q.get());
        BatchView batch;
        batch.n_tokens = rows, batch.n_seqs = 1, batch.max_pages = n_pages;
        batch.positions = device_positions.get(), batch.seq_offsets = offsets.get(), batch.page_tables = device_pages.get();
        const double keys = 0.5 * (begin + 1.0 + end);  // of a row, on the average
        compare("attention of heads of " + std::to_string(head_dim) + ", rows " + std::to_string(begin) + " to " +
                    std::to_string(end),
                4.0 * rows * keys * 32 * head_dim, out, 1, [&](int) {
                  backend_.attention(batch, shape, q.get(), {k.get(), v.get(), DType::bf16}, out.get());
                });
      }
  }

 private:
  std::unique_ptr<LinearWeight> weight(WeightFormat format, int n, int k, bool gate_up, uint64_t seed) {
    LinearDesc desc;
    desc.format = format, desc.n = n, desc.k = k, desc.gate_up = gate_up, desc.name = "bench weight";
    return backend_.random_linear(desc, seed);
  }

  // Of one of `runs` calls in a graph.
  double median_us(int runs, const std::function<void(int)>& work) {
    const Queue& queue = backend_.queue();
    work(0);  // sizes scratch memory
    CUDA_CHECK(cudaStreamSynchronize(queue.stream));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamBeginCapture(queue.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < runs; ++i) work(i);
    CUDA_CHECK(cudaStreamEndCapture(queue.stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<double> times;
    const Event start, stop;
    double spent = 0;
    for (int i = 0; i < 11 && (i < 3 || spent < 250); ++i) {
      start.record(queue);
      CUDA_CHECK(cudaGraphLaunch(exec, queue.stream));
      stop.record(queue);
      stop.wait();
      if (i > 0) times.push_back(stop.ms_since(start) * 1e3 / runs);
      spent += stop.ms_since(start);
    }
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    CUDA_CHECK(cudaGraphDestroy(graph));
    return median_of(times);
  }

  void compare(const std::string& what, double flop, const Array<float>& out, int runs, const std::function<void(int)>& work) {
    std::vector<float> results[2];
    double us[2];
    for (const bool many : {false, true}) {
      backend_.use_many_row_kernels(many);
      CUDA_CHECK(cudaMemsetAsync(out.get(), 0xff, out.n * sizeof(float), backend_.queue().stream));
      work(0);
      results[many] = out.read(kCompared);
      us[many] = median_us(runs, work);
    }
    const double error = difference(results[1], results[0]);
    std::printf("%-46s before %9.1f us %6.1f TFLOPS  after %9.1f us %6.1f TFLOPS  apart %.1e%s\n", what.c_str(), us[0],
                flop / us[0] * 1e-6, us[1], flop / us[1] * 1e-6, error, error < 0.01 ? "" : " WRONG");
    std::fflush(stdout);
  }

  CudaBackend& backend_;
  int n_sms_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    BackendOptions options;
    options.kernels = "mma";
    CudaBackend backend(options);
    Bench bench(backend);
    const auto asked = [&](const char* name) {
      return argc < 2 || std::any_of(argv + 1, argv + argc, [&](const char* arg) { return std::strcmp(arg, name) == 0; });
    };
    if (asked("linear")) bench.linear();
    if (asked("experts")) bench.experts();
    if (asked("attention")) bench.attention();
    return 0;
  } catch (const std::exception& error) {
    std::printf("FAIL %s\n", error.what());
    return 1;
  }
}
