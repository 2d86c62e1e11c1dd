// The table of kernels built with CANN: what libsigmoe_ascend_kernels.so exports. Plain C++; the launchers are in sources of
// their own (launch_cann.h).
#include "ascend/device/args/add_rms_norm.h"
#include "ascend/device/args/attention.h"
#include "ascend/device/args/convert_rows.h"
#include "ascend/device/args/experts.h"
#include "ascend/device/args/linear.h"
#include "ascend/device/args/qk_norm_rope_store.h"
#include "ascend/device/args/route.h"
#include "ascend/device/args/sample.h"
#include "ascend/launch/kernel_table.h"

extern "C" {
#define SIGMOE_ASCEND_KERNEL(name, kind, n_pointers, tiling) \
  int32_t sigmoe_launch_##name(uint32_t blocks, void* stream, void* const* pointers, const void* bytes);
#include "ascend/launch/kernels.def"
#undef SIGMOE_ASCEND_KERNEL
}

namespace sigmoe::ascend {
namespace {

constexpr KernelEntry kEntries[] = {
#define SIGMOE_ASCEND_KERNEL(name, kind, n_pointers, tiling) \
  {#name, KernelKind::kind, n_pointers, sizeof(tiling), sigmoe_launch_##name},
#include "ascend/launch/kernels.def"
#undef SIGMOE_ASCEND_KERNEL
};

constexpr KernelTable kTable{kKernelAbi, static_cast<uint32_t>(Kernel::count), kEntries, SIGMOE_CANN_ARCH};

}  // namespace
}  // namespace sigmoe::ascend

extern "C" __attribute__((visibility("default"))) const sigmoe::ascend::KernelTable* sigmoe_ascend_kernels() {
  return &sigmoe::ascend::kTable;
}
