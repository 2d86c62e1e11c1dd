#include "ascend/host/aclnn.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ascend/device/args/weight_layout.h"

namespace sigmoe::ascend {
namespace {

constexpr int32_t kFloat = 0, kInt8 = 2, kBf16 = 27;  // aclDataType
constexpr int32_t kPlainFormat = 2;                   // ACL_FORMAT_ND
constexpr int8_t kKeepType = 0;                       // cubeMathType: multiply in the tensors' own type

// A tensor that lives as long as this does.
class Tensor2 {
 public:
  Tensor2(const AclnnFunctions& aclnn, const void* data, int32_t dtype, std::vector<int64_t> dims, std::vector<int64_t> strides,
          std::vector<int64_t> storage)
      : aclnn_(aclnn),
        handle_(aclnn.aclCreateTensor(dims.data(), dims.size(), dtype, strides.data(), 0, kPlainFormat, storage.data(),
                                      storage.size(), const_cast<void*>(data))) {}
  ~Tensor2() {
    if (handle_) aclnn_.aclDestroyTensor(handle_);
  }
  Tensor2(const Tensor2&) = delete;
  Tensor2& operator=(const Tensor2&) = delete;
  void* get() const { return handle_; }

 private:
  const AclnnFunctions& aclnn_;
  void* handle_;
};

}  // namespace

std::unique_ptr<AclnnProducts> AclnnProducts::make_if_asked(Device& device) {
  const char* asked = std::getenv("SIGMOE_ASCEND_ACLNN");
  if (!asked || std::string(asked) != "1") return nullptr;
  if (!device.runtime().aclnn.aclnnMatmul)
    throw EngineError(ErrorCode::not_found,
                      "SIGMOE_ASCEND_ACLNN=1: libopapi.so and libnnopbase.so were not found: " + device.runtime().report(),
                      "install the CANN toolkit with its operators, or unset SIGMOE_ASCEND_ACLNN");
  return std::make_unique<AclnnProducts>(device);
}

// The weight in (n, k) rows, made from the cube's order when it is first wanted.
const DeviceSpan& AclnnProducts::plain_rows(const AscendWeight& weight) {
  if (weight.plain_rows.data) return weight.plain_rows;
  const size_t width = dtype_bytes(weight.dtype);
  const WeightLayout layout{weight.n, weight.k, static_cast<int64_t>(width)};
  std::vector<std::byte> packed(weight.data.bytes), rows(static_cast<size_t>(weight.n * weight.k) * width);
  device_.download(packed.data(), weight.data.data, packed.size());
  for (int64_t n = 0; n < weight.n; ++n)
    for (int64_t k = 0; k < weight.k; ++k)
      std::memcpy(rows.data() + (n * weight.k + k) * width, packed.data() + layout.index(n, k) * width, width);
  weight.plain_rows = device_.take(rows.size(), "weights for aclnn products");
  device_.upload_at_once(weight.plain_rows.data, rows.data(), rows.size());
  return weight.plain_rows;
}

void AclnnProducts::multiply(const void* x, const float* x_scales, int64_t pitch, const AscendWeight& weight, int n_rows,
                             void* y, const std::function<void*(size_t)>& workspace) {
  const AclnnFunctions& aclnn = device_.runtime().aclnn;
  const int64_t T = n_rows, n = weight.n, k = weight.k;
  const bool narrow = weight.dtype == DType::i8;
  const DeviceSpan& rows = plain_rows(weight);
  device_.enter();
  const Tensor2 left(aclnn, x, narrow ? kInt8 : kBf16, {T, k}, {pitch, 1}, {T, pitch});
  const Tensor2 out(aclnn, y, kBf16, {T, n}, {n, 1}, {T, n});
  uint64_t bytes = 0;
  void* executor = nullptr;
  if (narrow) {
    const Tensor2 right(aclnn, rows.data, kInt8, {n, k}, {k, 1}, {n, k});
    const Tensor2 scale(aclnn, weight.scales.data, kFloat, {n}, {1}, {n});
    const Tensor2 token_scale(aclnn, x_scales, kFloat, {T}, {1}, {T});
    device_.check(aclnn.aclnnQuantMatmulV4GetWorkspaceSize(left.get(), right.get(), scale.get(), nullptr, token_scale.get(),
                                                           nullptr, false, true, out.get(), &bytes, &executor),
                  "aclnnQuantMatmulV4GetWorkspaceSize");
    device_.check(aclnn.aclnnQuantMatmulV4(bytes ? workspace(bytes) : nullptr, bytes, executor, device_.stream()),
                  "aclnnQuantMatmulV4");
    return;
  }
  const Tensor2 right(aclnn, rows.data, kBf16, {k, n}, {1, k}, {n, k});  // the rows seen as columns
  device_.check(aclnn.aclnnMatmulGetWorkspaceSize(left.get(), right.get(), out.get(), kKeepType, &bytes, &executor),
                "aclnnMatmulGetWorkspaceSize");
  device_.check(aclnn.aclnnMatmul(bytes ? workspace(bytes) : nullptr, bytes, executor, device_.stream()), "aclnnMatmul");
}

}  // namespace sigmoe::ascend
