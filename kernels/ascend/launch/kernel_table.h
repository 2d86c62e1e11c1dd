// What the host side knows of the kernels: a table of launchers, one per entry of kernels.def. libsigmoe_ascend_kernels.so
// (built with CANN) exports it; the twin and the tests' mock make the same table of kernels compiled for the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sigmoe::ascend {

enum class KernelKind : int32_t {
  aiv,  // vector cores, one a block
  aic,  // cube cores, one a block
  mix,  // a cube core and two vector cores a block
};

enum class Kernel : int32_t {
#define SIGMOE_ASCEND_KERNEL(name, kind, n_pointers, tiling) name,
#include "ascend/launch/kernels.def"
#undef SIGMOE_ASCEND_KERNEL
  count
};

struct KernelEntry {
  const char* name;
  KernelKind kind;
  int32_t n_pointers;
  uint64_t tiling_bytes;
  // Puts the kernel on a stream and returns an aclError; pointers (n_pointers) and the tiling may go when it returns.
  int32_t (*launch)(uint32_t blocks, void* stream, void* const* pointers, const void* tiling);
};

struct KernelTable {
  uint32_t abi;
  uint32_t count;
  const KernelEntry* entries;  // in the order of kernels.def
  const char* built_for;       // "dav-2201" or "cpu twin"
};

// Raise with every change to kernels.def or to a tiling.
constexpr uint32_t kKernelAbi = 1;
constexpr const char* kKernelSymbol = "sigmoe_ascend_kernels";
using KernelTableFn = const KernelTable* (*)();

}  // namespace sigmoe::ascend
