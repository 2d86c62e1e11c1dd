// Benchmarks of a backend that brings no BenchDevice of its own: data made on the host, times of the host's clock, and, on the
// CPU, the ceilings of the host.
#pragma once

#include <memory>

#include "backend/bench_device.h"

namespace sigmoe::bench {

std::unique_ptr<BenchDevice> make_host_device(Backend& backend);

}  // namespace sigmoe::bench
