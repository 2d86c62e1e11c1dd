// The one symbol that libsigmoe_ascend_twin.so exports: device "ascend-twin", the same host code over the ACL of runtime/ and
// kernels compiled for the CPU. It shows that the kernels and the host side are right; it says nothing about speed.
#include "ascend/host/ascend_backend.h"
#include "backend/plugin.h"

extern "C" {
#define ACL_REQUIRED(name, result, parameters) result name parameters;
#include "ascend/host/acl_functions.def"
#undef ACL_OPTIONAL
#undef ACL_REQUIRED
#define HCCL_FUNCTION(name, result, parameters) result name parameters;
#include "ascend/host/hccl_functions.def"
#undef HCCL_FUNCTION
const sigmoe::ascend::KernelTable* sigmoe_ascend_kernels();
}

namespace sigmoe::ascend {
namespace {

Runtime make_runtime() {
  Runtime runtime;
  runtime.device = "ascend-twin";
  runtime.lines = {{"ACL and kernels", "inside libsigmoe_ascend_twin.so", "on the CPU"}};
#define ACL_REQUIRED(name, result, parameters) runtime.acl.name = &::name;
#include "ascend/host/acl_functions.def"
#undef ACL_OPTIONAL
#undef ACL_REQUIRED
#define HCCL_FUNCTION(name, result, parameters) runtime.hccl.name = &::name;
#include "ascend/host/hccl_functions.def"
#undef HCCL_FUNCTION
  runtime.kernels = sigmoe_ascend_kernels();
  return runtime;
}

const Runtime& twin_runtime() {
  static const Runtime runtime = make_runtime();
  return runtime;
}

bool describe(std::string& detail) {
  detail = "the Ascend kernels on the CPU, for tests: slow by design";
  return true;
}

std::unique_ptr<Backend> create(const BackendOptions& options) {
  return std::make_unique<AscendBackend>(twin_runtime(), options);
}

constexpr BackendPlugin kPlugin{kPluginAbi, describe, create};

}  // namespace
}  // namespace sigmoe::ascend

extern "C" __attribute__((visibility("default"))) const sigmoe::BackendPlugin* sigmoe_plugin() {
  return &sigmoe::ascend::kPlugin;
}
