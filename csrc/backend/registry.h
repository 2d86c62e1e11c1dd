// Device names to backend factories.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace sigmoe {

struct DeviceReport {
  std::string device;  // "cpu"
  bool available = false;
  std::string detail;  // what runs, or why it cannot
};

// Says where the library of a device backend is, should there be none beside the addon: "libsigmoe_cuda.so", its path. The
// first word about a file holds, and counts until the library is opened.
void offer_library(const std::string& file, const std::string& path);

// One line per device this build knows, present or not.
std::vector<DeviceReport> list_devices();

// Throws not_found for an unknown or absent device; never falls back to another one.
std::unique_ptr<Backend> create_backend(const std::string& device, const BackendOptions& options);

// Defined by kernels/cpu.
std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options);
std::string describe_cpu();  // "AMD EPYC ...: avx2 avx512 avx512bf16, 2 cores"

// What this machine can do at most, for benchmarks. One sample takes a few milliseconds, so that a benchmark can take one
// after every run of its own and compare two figures of the same moment. 0 threads = all cores.
class CeilingProbe {
 public:
  virtual ~CeilingProbe() = default;
  virtual double read_gbps() = 0;      // 10^9 bytes/s of reading memory once, from a buffer larger than the caches
  virtual double matrix_gflops() = 0;  // 10^9 FLOP/s of BF16 products on registers: AMX, else VDPBF16PS, else float32
};
std::unique_ptr<CeilingProbe> make_ceiling_probe(int n_threads);

// The best of a few samples.
double measure_read_gbps(int n_threads);
double measure_matrix_gflops(int n_threads);

}  // namespace sigmoe
