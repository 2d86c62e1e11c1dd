// Device names to backend factories.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace sigmoe {

struct DeviceReport {
  std::string device;   // "cpu"
  bool available = false;
  std::string detail;   // what runs, or why it cannot
};

// One line per device this build knows, present or not.
std::vector<DeviceReport> list_devices();

// Throws not_found for an unknown or absent device; never falls back to another one.
std::unique_ptr<Backend> create_backend(const std::string& device, const BackendOptions& options);

// Defined by kernels/cpu.
std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options);
std::string describe_cpu();  // "AMD EPYC ...: avx2 avx512 avx512bf16, 2 cores"
// What this machine can do at most, for benchmarks: each takes some tenths of a second. 0 threads = all cores.
double measure_read_gbps(int n_threads);      // 10^9 bytes/s of reading memory once, in a buffer larger than the caches
double measure_matrix_gflops(int n_threads);  // 10^9 FLOP/s of BF16 products on registers: AMX, else VDPBF16PS, else float32

}  // namespace sigmoe
