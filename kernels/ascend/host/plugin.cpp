// The one symbol that libsigmoe_ascend.so exports: device "ascend".
#include "backend/plugin.h"

#include "ascend/host/ascend_backend.h"

namespace sigmoe::ascend {
namespace {

bool describe(std::string& detail) {
  const Runtime& runtime = installed_runtime();
  if (!runtime.missing.empty()) {
    detail = runtime.missing + "; " + runtime.report();
    return false;
  }
  const int32_t status = runtime.acl.aclInit(nullptr);
  uint32_t n_devices = 0;
  const bool answers =
      (status == kAclSuccess || status == kAclRepeatInitialize) && runtime.acl.aclrtGetDeviceCount(&n_devices) == kAclSuccess;
  if (!answers || n_devices == 0) {
    detail =
        std::string(answers ? "the driver lists no NPU" : "the Ascend driver does not answer") +
        ": run npu-smi info, and in a container pass /dev/davinci*, /dev/davinci_manager, /dev/devmm_svm and /dev/hisi_hdc; " +
        runtime.report();
    return false;
  }
  const char* name = runtime.acl.aclrtGetSocName();
  detail = std::to_string(n_devices) + " x " + (name ? name : "unknown NPU") + ", kernels for " + runtime.kernels->built_for +
           " (experimental); " + runtime.report();
  return true;
}

std::unique_ptr<Backend> create(const BackendOptions& options) {
  return std::make_unique<AscendBackend>(installed_runtime(), options);
}

constexpr BackendPlugin kPlugin{kPluginAbi, describe, create};

}  // namespace
}  // namespace sigmoe::ascend

extern "C" __attribute__((visibility("default"))) const sigmoe::BackendPlugin* sigmoe_plugin() {
  return &sigmoe::ascend::kPlugin;
}
