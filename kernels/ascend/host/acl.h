// Ascend's libraries, opened at run time: where they are looked for, what was found, and the functions in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ascend/launch/kernel_table.h"

namespace sigmoe::ascend {

struct AclFunctions {
#define ACL_REQUIRED(name, result, parameters) result(*name) parameters = nullptr;
#include "ascend/host/acl_functions.def"
#undef ACL_OPTIONAL
#undef ACL_REQUIRED
};

struct HcclFunctions {  // all null where there is no libhccl.so
#define HCCL_FUNCTION(name, result, parameters) result(*name) parameters = nullptr;
#include "ascend/host/hccl_functions.def"
#undef HCCL_FUNCTION
};

struct AclnnFunctions {  // all null where there is no libopapi.so
#define ACLNN_FUNCTION(name, result, parameters) result(*name) parameters = nullptr;
#include "ascend/host/aclnn_functions.def"
#undef ACLNN_FUNCTION
};

// Documented values of what the functions take and return.
constexpr int32_t kAclSuccess = 0;
constexpr int32_t kAclRepeatInitialize = 100002;
constexpr int32_t kAclBadAlloc = 200000, kAclMemoryAllocation = 207001, kAclStorageOverLimit = 300000;
constexpr int32_t kAclHostToDevice = 1, kAclDeviceToHost = 2, kAclDeviceToDevice = 3;
constexpr int32_t kAclHbmMemory = 1;
constexpr int32_t kAclHugeFirst = 0;
constexpr uint32_t kAclFastLaunch = 1, kAclFastSync = 2;
constexpr int32_t kAclCaptureThreadLocal = 1;
constexpr int32_t kAclCubeCores = 0, kAclVectorCores = 1;  // aclDeviceInfo

// A library that was looked for.
struct LibraryLine {
  std::string name;   // "libascendcl.so"
  std::string found;  // its path; empty: not found
  std::string note;   // why not, or what it is for
};

// What the backend stands on. Made once per process and never closed: the libraries keep threads of their own.
struct Runtime {
  std::string device;                // "ascend" or "ascend-twin"
  std::vector<std::string> folders;  // where the libraries were looked for, before the loader's path
  std::vector<LibraryLine> lines;
  AclFunctions acl;
  const KernelTable* kernels = nullptr;
  HcclFunctions hccl;    // for worlds of more than one rank
  AclnnFunctions aclnn;  // for products by aclnn, when asked for
  std::string missing;   // why no backend can run here; empty: one can

  std::string report() const;  // every line, for the list of devices
};

// Opens what is installed: under SIGMOE_ASCEND_HOME, ASCEND_HOME_PATH, ASCEND_TOOLKIT_HOME, then wherever the loader looks.
Runtime open_runtime();

// The same, done once for this process.
const Runtime& installed_runtime();

}  // namespace sigmoe::ascend
