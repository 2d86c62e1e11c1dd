// libopapi.so and libnnopbase.so for the tests of the aclnn path: the two products that it calls, one sum after the other, on
// the stream like the real ones. An executor is good for one call.
#include <cstring>
#include <vector>

#include "ascend/runtime/runtime.h"

namespace {

struct Tensor {
  std::vector<int64_t> dims, strides;
  int32_t dtype;
  const void* data;

  float at(int64_t i, int64_t j = 0) const {
    const int64_t index = i * strides[0] + (strides.size() > 1 ? j * strides[1] : 0);
    if (dtype == 2) return static_cast<const int8_t*>(data)[index];
    if (dtype == 0) return static_cast<const float*>(data)[index];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[index]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
};

struct Executor {
  Tensor left, right, out, scale, token_scale;
  bool transposed = false, scaled = false;

  void run() const {
    const int64_t k_size = left.dims[1];
    for (int64_t i = 0; i < out.dims[0]; ++i)
      for (int64_t j = 0; j < out.dims[1]; ++j) {
        float sum = 0;
        for (int64_t k = 0; k < k_size; ++k) sum += left.at(i, k) * (transposed ? right.at(j, k) : right.at(k, j));
        if (scaled) sum *= scale.at(j) * token_scale.at(i);
        uint32_t bits;
        std::memcpy(&bits, &sum, 4);
        bits += 0x7fffu + ((bits >> 16) & 1u);
        static_cast<uint16_t*>(const_cast<void*>(out.data))[i * out.strides[0] + j] = static_cast<uint16_t>(bits >> 16);
      }
  }
};

int32_t launch(void* executor, void* stream) {
  return sigmoe_runtime_enqueue(
      stream, [](void* state) { static_cast<Executor*>(state)->run(); }, executor,
      [](void* state) { delete static_cast<Executor*>(state); });
}

const Tensor& tensor(const void* handle) { return *static_cast<const Tensor*>(handle); }

}  // namespace

extern "C" {

void* aclCreateTensor(const int64_t* dims, uint64_t n_dims, int32_t dtype, const int64_t* strides, int64_t, int32_t,
                      const int64_t*, uint64_t, void* data) {
  return new Tensor{{dims, dims + n_dims}, {strides, strides + n_dims}, dtype, data};
}

int32_t aclDestroyTensor(const void* handle) {
  delete static_cast<const Tensor*>(handle);
  return 0;
}

int32_t aclnnMatmulGetWorkspaceSize(const void* self, const void* mat2, void* out, int8_t, uint64_t* bytes, void** executor) {
  *bytes = 64;
  *executor = new Executor{tensor(self), tensor(mat2), tensor(out), {}, {}, false, false};
  return 0;
}

int32_t aclnnMatmul(void* workspace, uint64_t bytes, void* executor, void* stream) {
  if (!workspace || bytes != 64) return 1;
  return launch(executor, stream);
}

int32_t aclnnQuantMatmulV4GetWorkspaceSize(const void* x1, const void* x2, const void* scale, const void*,
                                           const void* token_scale, const void*, bool, bool transpose_x2, const void* out,
                                           uint64_t* bytes, void** executor) {
  *bytes = 0;
  *executor = new Executor{tensor(x1), tensor(x2), tensor(out), tensor(scale), tensor(token_scale), transpose_x2, true};
  return 0;
}

int32_t aclnnQuantMatmulV4(void*, uint64_t, void* executor, void* stream) { return launch(executor, stream); }

}  // extern "C"
