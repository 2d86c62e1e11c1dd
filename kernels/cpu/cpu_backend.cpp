#include "backend/registry.h"
#include "cpu/cpu_features.h"
#include "cpu/reference.h"

namespace sigmoe {

std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options) {
  return std::make_unique<ReferenceBackend>(options);
}

}  // namespace sigmoe
