// The machine's ceilings, so that a benchmark can say which fraction of them it reached in the same run.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "backend/registry.h"
#include "cpu/cpu_features.h"
#include "cpu/host_memory.h"
#include "cpu/simd.h"
#include "cpu/thread_pool.h"

namespace sigmoe {
namespace {

constexpr int64_t kBufferBytes = int64_t{512} << 20, kChunkBytes = int64_t{1} << 20;
constexpr int64_t kSampleChunks = 128;        // 128 MiB a sample, from where the last one stopped
constexpr int64_t kPeakIterations = 1 << 14;  // of one item: some 100 us
constexpr int kSamples = 9;

class CpuCeilingProbe : public CeilingProbe {
 public:
  explicit CpuCeilingProbe(int n_threads)
      : pool_(n_threads),
        buffer_(allocate_host(kBufferBytes, "the buffer of the bandwidth measurement")),
        simd_(widest_kernels()) {
    peak_ = simd_.peak;
#if defined(__x86_64__)
    if (cpu_paths().back() == CpuPath::avx512bf16) peak_ = kPeakAvx512Bf16;
    if (cpu_paths().back() == CpuPath::amx) peak_ = kPeakAmx;
#endif
    std::fill_n(buffer_.as<uint32_t>(), kBufferBytes / 4, 1u);  // pages that were never written would all be the same one
  }

  double read_gbps() override {
    const int64_t first = next_chunk_;
    next_chunk_ = (next_chunk_ + kSampleChunks) % (kBufferBytes / kChunkBytes);
    std::atomic<uint32_t> sum{0};
    const double seconds = seconds_of([&] {
      pool_.parallel_for(kSampleChunks, [&](int64_t i, int) {
        sum ^= simd_.read_all(buffer_.as<uint32_t>() + (first + i) * (kChunkBytes / 4), kChunkBytes / 4);
      });
    });
    SIGMOE_CHECK(sum == 0, "the bandwidth measurement read something it did not write");
    return kSampleChunks * kChunkBytes / seconds * 1e-9;
  }

  double matrix_gflops() override {
    const int64_t n_items = 16 * pool_.size();
    std::vector<float> results(n_items);
    const double seconds =
        seconds_of([&] { pool_.parallel_for(n_items, [&](int64_t i, int) { results[i] = peak_.run(kPeakIterations); }); });
    return static_cast<double>(n_items) * kPeakIterations * peak_.flop / seconds * 1e-9;
  }

 private:
  static const SimdKernels& widest_kernels() {
#if defined(__x86_64__)
    const CpuPath path = cpu_paths().back();
    if (path >= CpuPath::avx512) return kSimdAvx512;
    if (path == CpuPath::avx2) return kSimdAvx2;
#endif
    return kSimdGeneric;
  }

  template <typename Body>
  static double seconds_of(Body body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  ThreadPool pool_;
  DeviceBuffer buffer_;
  const SimdKernels& simd_;
  PeakLoop peak_;
  int64_t next_chunk_ = 0;
};

}  // namespace

std::unique_ptr<CeilingProbe> make_ceiling_probe(int n_threads) { return std::make_unique<CpuCeilingProbe>(n_threads); }

double measure_read_gbps(int n_threads) {
  CpuCeilingProbe probe(n_threads);
  double best = 0.0;
  for (int i = 0; i < kSamples; ++i) best = std::max(best, probe.read_gbps());
  return best;
}

double measure_matrix_gflops(int n_threads) {
  CpuCeilingProbe probe(n_threads);
  double best = 0.0;
  for (int i = 0; i < kSamples; ++i) best = std::max(best, probe.matrix_gflops());
  return best;
}

}  // namespace sigmoe
