// What tests of the host side share: the mock toolkit opened as a real one would be, and faults in it.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ascend/host/acl.h"
#include "ascend/host/ascend_backend.h"
#include "doctest/doctest.h"

namespace sigmoe::ascend::testing {

// Sets environment variables while it lives.
class Environment {
 public:
  struct Change {
    std::string name, value;  // an empty value: not set
  };
  Environment(std::initializer_list<Change> changes) {
    for (const auto& [name, value] : changes) {
      const char* before = std::getenv(name.c_str());
      before_.emplace_back(name, before ? before : "");
      value.empty() ? unsetenv(name.c_str()) : setenv(name.c_str(), value.c_str(), 1);
    }
  }
  ~Environment() {
    for (const auto& [name, value] : before_) value.empty() ? unsetenv(name.c_str()) : setenv(name.c_str(), value.c_str(), 1);
  }

 private:
  std::vector<std::pair<std::string, std::string>> before_;
};

inline Environment mock_toolkit() {
  return Environment{{"SIGMOE_ASCEND_HOME", SIGMOE_MOCK_DIR},
                     {"SIGMOE_ASCEND_KERNELS", SIGMOE_MOCK_DIR "/libsigmoe_ascend_kernels.so"}};
}

inline const Runtime& mock_runtime() {
  static const Runtime runtime = [] {
    const Environment toolkit = mock_toolkit();
    return open_runtime();
  }();
  REQUIRE_MESSAGE(runtime.missing.empty(), runtime.missing);
  return runtime;
}

inline std::unique_ptr<AscendBackend> mock_backend(DType compute = DType::bf16) {
  BackendOptions options;
  options.compute = compute;
  return std::make_unique<AscendBackend>(mock_runtime(), options);
}

// The nth call from now of one kind fails; and, sticky, those after it. Ends with its scope.
class Fault {
 public:
  explicit Fault(const char* kind, int64_t nth = 1, bool sticky = false) : kind_(kind) { set(kind, nth, sticky); }
  ~Fault() { set(kind_, 0, false); }

 private:
  static void set(const char* kind, int64_t nth, bool sticky) {
    void* library = dlopen(SIGMOE_MOCK_DIR "/lib64/libascendcl.so", RTLD_NOW | RTLD_NOLOAD);
    REQUIRE(library);
    reinterpret_cast<void (*)(const char*, int64_t, int32_t)>(dlsym(library, "sigmoe_runtime_set_fault"))(kind, nth, sticky);
    dlclose(library);
  }
  const char* kind_;
};

// What `body` throws.
template <typename F>
EngineError error_of(const F& body) {
  try {
    body();
  } catch (const EngineError& error) {
    return error;
  }
  return EngineError(ErrorCode::internal, "nothing was thrown");
}

inline bool says(const EngineError& error, const std::string& text) {
  return (std::string(error.what()) + " | " + error.hint()).find(text) != std::string::npos;
}

}  // namespace sigmoe::ascend::testing
