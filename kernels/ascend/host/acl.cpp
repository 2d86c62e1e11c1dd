#include "ascend/host/acl.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

namespace sigmoe::ascend {
namespace {

constexpr const char* kInstall =
    "install the Ascend driver, firmware and CANN toolkit 8.1 or newer and source its set_env.sh, or name the toolkit's folder "
    "in ASCEND_HOME_PATH";
constexpr const char* kBuildKernels =
    "build it with CANN: kernels/ascend/README.md says how; then put it beside libsigmoe_ascend.so or name it in "
    "SIGMOE_ASCEND_KERNELS";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// A toolkit's folder has its libraries in lib64, or under the name of the processor.
std::vector<std::string> search_folders() {
  std::vector<std::string> folders;
  for (const char* name : {"SIGMOE_ASCEND_HOME", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"})
    if (const std::string home = variable(name); !home.empty()) folders.push_back(home + "/lib64/");
  return folders;
}

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// Opens `name` from the folders, else from wherever the loader finds it; the note says why one that is there cannot be opened.
// RTLD_GLOBAL: a toolkit's libraries, and kernels built with it, look each other's symbols up.
void* open_library(const std::string& name, LibraryLine& line) {
  line.name = name;
  std::vector<std::string> places = search_folders();
  places.emplace_back();
  for (const std::string& folder : places) {
    if (void* handle = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_GLOBAL)) {
      line.found = folder + name;
      line.note.clear();
      return handle;
    }
    const char* error = dlerror();
    if (!folder.empty() && exists(folder + name) && error) line.note = error;
  }
  return nullptr;
}

// Where this library lies: the kernels are looked for beside it.
std::string own_folder() {
  Dl_info here;
  if (!dladdr(reinterpret_cast<const void*>(&installed_runtime), &here) || !here.dli_fname) return {};
  const std::string path = here.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

const KernelTable* open_kernels(LibraryLine& line, std::string& missing) {
  line.name = "libsigmoe_ascend_kernels.so";
  std::string path = variable("SIGMOE_ASCEND_KERNELS");
  if (path.empty()) path = own_folder() + line.name;
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* error = dlerror();
    if (exists(path) && error) line.note = error;
    missing = path + (line.note.empty() ? " was not found" : " cannot be opened (" + line.note + ")") + ": " + kBuildKernels;
    return nullptr;
  }
  line.found = path;
  const auto entry = reinterpret_cast<KernelTableFn>(dlsym(handle, kKernelSymbol));
  const KernelTable* table = entry ? entry() : nullptr;
  if (table && table->abi == kKernelAbi && table->count == static_cast<uint32_t>(Kernel::count)) return table;
  line.note = "of another version";
  missing = path + " is of another version than this build: " + kBuildKernels;
  return nullptr;
}

}  // namespace

Runtime open_runtime() {
  Runtime runtime;
  runtime.device = "ascend";
  runtime.folders = search_folders();
  LibraryLine line;
  void* acl = open_library("libascendcl.so", line);
  runtime.lines.push_back(line);
  if (acl) {
    std::string absent;
#define ACL_OPTIONAL(name, result, parameters) \
  runtime.acl.name = reinterpret_cast<decltype(runtime.acl.name)>(dlsym(acl, #name));
#define ACL_REQUIRED(name, result, parameters) \
  ACL_OPTIONAL(name, result, parameters)       \
  if (!runtime.acl.name) absent += std::string(absent.empty() ? "" : ", ") + #name;
#include "ascend/host/acl_functions.def"
#undef ACL_OPTIONAL
#undef ACL_REQUIRED
    if (!absent.empty()) {
      runtime.lines.back().note = "lacks " + absent;
      runtime.missing = line.found + " lacks " + absent + ": " + kInstall;
    }
  } else {
    runtime.missing =
        "libascendcl.so was not found" + (line.note.empty() ? "" : " whole (" + line.note + ")") + ": " + kInstall;
  }
  std::string no_kernels;
  runtime.kernels = open_kernels(line = {}, no_kernels);
  runtime.lines.push_back(line);
  if (runtime.missing.empty()) runtime.missing = no_kernels;
  if (void* hccl = open_library("libhccl.so", line = {})) {
    bool whole = true;
#define HCCL_FUNCTION(name, result, parameters)                                          \
  runtime.hccl.name = reinterpret_cast<decltype(runtime.hccl.name)>(dlsym(hccl, #name)); \
  whole = whole && runtime.hccl.name;
#include "ascend/host/hccl_functions.def"
#undef HCCL_FUNCTION
    if (!whole) runtime.hccl = {};
    line.note = whole ? "for tensorParallelSize above 1" : "lacks functions that are needed";
  }
  runtime.lines.push_back(line);
  // libopapi.so calls libnnopbase.so, which must be there first where the loader does not know the toolkit's folder.
  const bool has_base = open_library("libnnopbase.so", line = {}) != nullptr;
  runtime.lines.push_back(line);
  void* opapi = open_library("libopapi.so", line = {});
  if (has_base && opapi) {
    bool whole = true;
#define ACLNN_FUNCTION(name, result, parameters)                                            \
  runtime.aclnn.name = reinterpret_cast<decltype(runtime.aclnn.name)>(dlsym(opapi, #name)); \
  whole = whole && runtime.aclnn.name;
#include "ascend/host/aclnn_functions.def"
#undef ACLNN_FUNCTION
    if (!whole) runtime.aclnn = {};
    line.note = whole ? "for SIGMOE_ASCEND_ACLNN=1" : "lacks functions that are needed";
  }
  runtime.lines.push_back(line);
  return runtime;
}

std::string Runtime::report() const {
  std::string text = "looked in ";
  for (const std::string& folder : folders) text += folder + ", ";
  text += "the loader's path";
  for (const LibraryLine& line : lines) {
    text += "; " + line.name + ": " + (line.found.empty() ? "not found" : line.found);
    if (!line.note.empty()) text += " (" + line.note + ")";
  }
  return text;
}

const Runtime& installed_runtime() {
  static const Runtime runtime = open_runtime();
  return runtime;
}

}  // namespace sigmoe::ascend
