#include "backend/registry.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>

#include "backend/plugin.h"

namespace sigmoe {
namespace {

// Where packages of their own hold the libraries, by file name.
struct OfferedLibraries {
  std::mutex mutex;
  std::map<std::string, std::string> paths;
};

OfferedLibraries& offered_libraries() {
  static OfferedLibraries offered;
  return offered;
}

// The library of a device backend: opened once, on first question, and never closed.
class PluginLibrary {
 public:
  PluginLibrary(const char* file, const char* variable, const char* package = "")
      : file_(file), variable_(variable), package_(package) {}

  // Null when there is none; reason() then says why.
  const BackendPlugin* plugin() {
    std::call_once(opened_, [this] { open(); });
    return plugin_;
  }
  const std::string& reason() const { return reason_; }

 private:
  // $SIGMOE_..._LIBRARY when set, else beside the addon, else in its package.
  std::string path() const {
    if (const char* named = std::getenv(variable_); named && *named) return named;
    Dl_info here;
    if (!dladdr(reinterpret_cast<const void*>(&list_devices), &here) || !here.dli_fname) return file_;
    const std::string addon = here.dli_fname;
    const std::string beside = addon.substr(0, addon.rfind('/') + 1) + file_;
    if (access(beside.c_str(), F_OK) == 0) return beside;
    OfferedLibraries& offered = offered_libraries();
    const std::lock_guard lock(offered.mutex);
    const auto found = offered.paths.find(file_);
    return found == offered.paths.end() ? beside : found->second;
  }

  void open() {
    const std::string path = this->path();
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* error = dlerror();
      reason_ = "not installed (" + std::string(error ? error : path) + "); " +
                (*package_ ? "install the package " + std::string(package_) + " or " : "") + "name the library in " + variable_;
      return;
    }
    const auto entry = reinterpret_cast<PluginFn>(dlsym(library, kPluginSymbol));
    const BackendPlugin* plugin = entry ? entry() : nullptr;
    if (!plugin || plugin->abi != kPluginAbi) {
      reason_ = path + (plugin ? " speaks plugin interface " + std::to_string(plugin->abi) + ", this build " +
                                     std::to_string(kPluginAbi)
                               : " is not a sigmoe backend");
      return;
    }
    plugin_ = plugin;
  }

  const char* file_;
  const char* variable_;
  const char* package_;
  std::once_flag opened_;
  const BackendPlugin* plugin_ = nullptr;
  std::string reason_;
};

struct PluginDevice {
  const char* device;
  PluginLibrary library;
};

// In the order in which `auto` tries them; the last is for tests, and `auto` never picks it.
std::array<PluginDevice, 3>& plugin_devices() {
  static std::array<PluginDevice, 3> devices{{
      {"cuda", {"libsigmoe_cuda.so", "SIGMOE_CUDA_LIBRARY", "@sigmoe/linux-x64-cuda"}},
      {"ascend", {"libsigmoe_ascend.so", "SIGMOE_ASCEND_LIBRARY"}},
      {"ascend-twin", {"libsigmoe_ascend_twin.so", "SIGMOE_ASCEND_TWIN_LIBRARY"}},
  }};
  return devices;
}

DeviceReport report_plugin(PluginDevice& plugin) {
  DeviceReport report{plugin.device, false, {}};
  if (const BackendPlugin* found = plugin.library.plugin())
    report.available = found->describe(report.detail);
  else
    report.detail = plugin.library.reason();
  return report;
}

}  // namespace

void offer_library(const std::string& file, const std::string& path) {
  OfferedLibraries& offered = offered_libraries();
  const std::lock_guard lock(offered.mutex);
  offered.paths.emplace(file, path);
}

std::vector<DeviceReport> list_devices() {
  std::vector<DeviceReport> reports;
  for (PluginDevice& plugin : plugin_devices()) reports.push_back(report_plugin(plugin));
  reports.insert(reports.end() - 1, {"cpu", true, describe_cpu()});
  if (!reports.back().available) reports.pop_back();  // nobody misses the twin
  return reports;
}

std::unique_ptr<Backend> create_backend(const std::string& device, const BackendOptions& options) {
  const bool ascend = device == "ascend" || device == "ascend-twin";
  if (options.compute == DType::i8 && !ascend)
    throw EngineError(ErrorCode::unsupported, "compute 'int8' asked for on device '" + device + "'",
                      "use bfloat16; INT8 products are for Ascend alone");
  if (device == "cpu") return create_cpu_backend(options);
  for (PluginDevice& plugin : plugin_devices()) {
    if (device != plugin.device) continue;
    const DeviceReport report = report_plugin(plugin);
    if (report.available) return plugin.library.plugin()->create(options);
    throw EngineError(ErrorCode::not_found, "device '" + device + "' asked for: " + report.detail,
                      "use device 'cpu' or 'auto'");
  }
  throw EngineError(ErrorCode::invalid_argument, "device '" + device + "' asked for: no such device",
                    "use one of auto, cpu, cuda, ascend, ascend-twin");
}

}  // namespace sigmoe
