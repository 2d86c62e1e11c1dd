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

}  // namespace sigmoe
