#include "ascend/host/collectives.h"

#include <vector>

namespace sigmoe::ascend {
namespace {

constexpr size_t kRootInfoBytes = 4108;  // HCCL_ROOT_INFO_BYTES
constexpr int32_t kFloat32 = 4;          // HCCL_DATA_TYPE_FP32
constexpr int32_t kSum = 0;              // HCCL_REDUCE_SUM

}  // namespace

Collectives::Collectives(Device& device, Comm& comm) : device_(device), comm_(comm) {
  const HcclFunctions& hccl = device.runtime().hccl;
  if (!hccl.HcclCommInitRootInfo)
    throw EngineError(ErrorCode::not_found,
                      "tensorParallelSize " + std::to_string(comm.world()) +
                          " asked for: libhccl.so was not found: " + device.runtime().report(),
                      "install the CANN toolkit and source its set_env.sh, or use tensorParallelSize 1");
  // Comm moves floats; it copies them, so any bytes come through whole.
  constexpr int64_t kFloats = kRootInfoBytes / sizeof(float);
  static_assert(kRootInfoBytes % sizeof(float) == 0);
  std::vector<float> mine(kFloats), root(kFloats);
  int32_t status = 0;
  if (comm.rank() == 0) {
    device.enter();
    status = hccl.HcclGetRootInfo(mine.data());
    if (status) comm.shut_down();  // the others wait
    device.check(status, "HcclGetRootInfo");
  }
  std::vector<int64_t> widths(comm.world());
  widths[0] = kFloats;
  comm.all_gather_columns(mine.data(), root.data(), 1, widths);
  device.enter();
  device.check(
      hccl.HcclCommInitRootInfo(static_cast<uint32_t>(comm.world()), root.data(), static_cast<uint32_t>(comm.rank()), &handle_),
      "HcclCommInitRootInfo");
}

Collectives::~Collectives() {
  if (handle_) device_.runtime().hccl.HcclCommDestroy(handle_);
}

void Collectives::all_reduce_sum(float* data, int64_t n) {
  device_.enter();
  device_.check(
      device_.runtime().hccl.HcclAllReduce(data, data, static_cast<uint64_t>(n), kFloat32, kSum, handle_, device_.stream()),
      "HcclAllReduce");
}

void Collectives::all_gather(const float* sent, float* received, int64_t n) {
  device_.enter();
  device_.check(device_.runtime().hccl.HcclAllGather(const_cast<float*>(sent), received, static_cast<uint64_t>(n), kFloat32,
                                                     handle_, device_.stream()),
                "HcclAllGather");
}

}  // namespace sigmoe::ascend
