#include "backend/bench_device.h"

namespace sigmoe {

std::unique_ptr<BenchDevice> Backend::bench_device() { return nullptr; }

}  // namespace sigmoe
