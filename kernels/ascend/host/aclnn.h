// Dense products of many rows (prefill) by aclnnMatmul and aclnnQuantMatmulV4 in place of our own kernels, when
// SIGMOE_ASCEND_ACLNN is 1. Costs a second copy of the dense weights, in plain rows. Checked against the documented signatures
// and a mock alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "ascend/host/device.h"
#include "ascend/host/weights.h"

namespace sigmoe::ascend {

class AclnnProducts {
 public:
  static constexpr int kLeastRows = 32;  // fewer are decode, which is recorded: an executor is good for one call

  // Null unless the environment asks for it; throws not_found when it does and libopapi.so is not there.
  static std::unique_ptr<AclnnProducts> make_if_asked(Device& device);
  explicit AclnnProducts(Device& device) : device_(device) {}

  // y (n_rows, n) BF16 = x (n_rows, k) W^T; x in BF16, or INT8 with a scale per row, as the weight is. pitch: elements between
  // rows of x. workspace(bytes) gives device memory that lasts until the stream has passed.
  void multiply(const void* x, const float* x_scales, int64_t pitch, const AscendWeight& weight, int n_rows, void* y,
                const std::function<void*(size_t)>& workspace);

 private:
  const DeviceSpan& plain_rows(const AscendWeight& weight);

  Device& device_;
};

}  // namespace sigmoe::ascend
