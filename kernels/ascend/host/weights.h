// Weights in the cube's order (device/args/weight_layout.h), made from checkpoint bytes on the host: BF16, float32, or INT8
// with one scale per output channel. A router stays plain float32 rows.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "ascend/host/device.h"
#include "backend/backend.h"

namespace sigmoe::ascend {

struct AscendWeight : LinearWeight {
  size_t bytes() const override { return data.bytes + scales.bytes; }

  int64_t n = 0, k = 0;
  DType dtype = DType::bf16;  // bf16, i8 or f32
  bool plain = false;         // (n, k) row-major: a router's
  DeviceSpan data;
  mutable DeviceSpan plain_rows;  // (n, k) once more, for products by aclnn alone
  DeviceSpan scales;              // i8: (n rounded up to 16) f32, of each output channel
};

inline const AscendWeight& weight_of(const LinearWeight& weight) { return static_cast<const AscendWeight&>(weight); }

// What rounding weights to INT8 cost, over all of a model: the relative error ||W' - W|| / ||W|| of each.
class RequantisationReport {
 public:
  void add(const std::string& name, double relative_error);
  std::string text() const;  // "INT8, added error mean 0.63%, worst 0.91% (model.layers.0.mlp.down_proj)"; empty without any

 private:
  mutable std::mutex mutex_;
  int64_t n_ = 0;
  double sum_ = 0, worst_ = 0;
  std::string worst_name_;
};

// Starts a weight. compute: what products of this backend are multiplied in.
std::unique_ptr<LinearBuilder> begin_weight(const LinearDesc& desc, DType compute, Device& device,
                                            RequantisationReport& report);

}  // namespace sigmoe::ascend
