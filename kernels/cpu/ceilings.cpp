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

constexpr int kPasses = 9;  // the fastest counts: a ceiling is what the machine can do, not what it did while disturbed

const SimdKernels& widest_kernels() {
#if defined(__x86_64__)
  const CpuPath path = cpu_paths().back();
  if (path >= CpuPath::avx512) return kSimdAvx512;
  if (path == CpuPath::avx2) return kSimdAvx2;
#endif
  return kSimdGeneric;
}

template <typename Pass>
double fastest_seconds(Pass pass) {
  double best = 1e30;
  for (int i = 0; i < kPasses; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    pass();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace

double measure_read_gbps(int n_threads) {
  constexpr int64_t kBytes = int64_t{512} << 20, kChunk = int64_t{1} << 20;
  const DeviceBuffer buffer = allocate_host(kBytes, "the buffer of the bandwidth measurement");
  ThreadPool pool(n_threads);
  const SimdKernels& simd = widest_kernels();
  std::fill_n(buffer.as<uint32_t>(), kBytes / 4, 1u);  // pages that were never written would all be the same one
  std::atomic<uint32_t> sum{0};
  const double seconds = fastest_seconds([&] {
    pool.parallel_for(kBytes / kChunk, [&](int64_t i, int) { sum ^= simd.read_all(buffer.as<uint32_t>() + i * (kChunk / 4), kChunk / 4); });
  });
  SIGMOE_CHECK(sum == 0, "the bandwidth measurement read something it did not write");
  return kBytes / seconds * 1e-9;
}

double measure_matrix_gflops(int n_threads) {
  ThreadPool pool(n_threads);
  PeakLoop peak = widest_kernels().peak;
#if defined(__x86_64__)
  if (cpu_paths().back() == CpuPath::avx512bf16) peak = kPeakAvx512Bf16;
  if (cpu_paths().back() == CpuPath::amx) peak = kPeakAmx;
#endif
  constexpr int64_t kIterations = 1 << 18;
  const int64_t n_items = 4 * pool.size();
  std::vector<float> results(n_items);
  const double seconds = fastest_seconds([&] { pool.parallel_for(n_items, [&](int64_t i, int) { results[i] = peak.run(kIterations); }); });
  return static_cast<double>(n_items) * kIterations * peak.flop / seconds * 1e-9;
}

}  // namespace sigmoe
