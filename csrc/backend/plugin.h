// How a backend in a shared library of its own introduces itself: one exported C function, named below, that returns this
// table. Library and addon are built from one tree; `abi` catches a library left over from another build.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/backend.h"

namespace sigmoe {

// Raise with every change to Backend or to a type that crosses it.
constexpr uint32_t kPluginAbi = 9;
constexpr const char* kPluginSymbol = "sigmoe_plugin";

struct BackendPlugin {
  uint32_t abi;
  // True when the backend can run here. `detail`: what runs, or why it cannot and what would help.
  bool (*describe)(std::string& detail);
  std::unique_ptr<Backend> (*create)(const BackendOptions& options);
};

using PluginFn = const BackendPlugin* (*)();

}  // namespace sigmoe
