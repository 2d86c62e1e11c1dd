// What the tests of the twin itself share: kernels as lambdas, and the fault they end with.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "kernel_operator.h"

namespace twin_testing {

// The message of the fault that the kernel ends with; empty if it ends well.
inline std::string fault_of(twin::Kind kind, uint32_t blocks, const std::function<void()>& kernel) {
  try {
    twin::launch(kind, blocks, kernel);
  } catch (const twin::Fault& fault) {
    return fault.what();
  }
  return "";
}

inline std::string fault_of(const std::function<void()>& kernel) { return fault_of(twin::Kind::aiv, 1, kernel); }

inline bool says(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

// An array in global memory.
template <typename T>
class Array {
 public:
  explicit Array(size_t n, T value = T()) : values(n, value) { twin::register_gm(values.data(), n * sizeof(T)); }
  explicit Array(std::vector<T> from) : values(std::move(from)) { twin::register_gm(values.data(), values.size() * sizeof(T)); }
  ~Array() { twin::unregister_gm(values.data()); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  AscendC::GlobalTensor<T> tensor() {
    AscendC::GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer(values.data(), values.size());
    return tensor;
  }

  std::vector<T> values;
};

// Flags of two pipes, set and waited for at once.
template <AscendC::HardEvent event>
void wait_for() {
  const auto id = AscendC::GetTPipePtr()->FetchEventID(event);
  AscendC::SetFlag<event>(id);
  AscendC::WaitFlag<event>(id);
}

}  // namespace twin_testing
