// A view over device memory: it never owns. Row-major, last dimension contiguous, no strides: an op that needs a
// gap between rows says so in its own arguments.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "backend/dtype.h"
#include "backend/error.h"

namespace sigmoe {

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::array<int64_t, 4> shape{1, 1, 1, 1};  // unused trailing dimensions are 1
  int rank = 0;

  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims) : data(data), dtype(dtype) {
    SIGMOE_CHECK(dims.size() <= 4, "tensors have at most four dimensions");
    for (const int64_t dim : dims) shape[rank++] = dim;
  }

  explicit operator bool() const { return data != nullptr; }
  int64_t elements() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
  size_t bytes() const { return static_cast<size_t>(elements()) * dtype_bytes(dtype); }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace sigmoe
