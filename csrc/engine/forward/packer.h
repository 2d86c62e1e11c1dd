// Lays arrays one behind the other, 64-byte aligned, so that what a step or a pass needs of the host is one upload.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

namespace sigmoe {

class Packer {
 public:
  explicit Packer(std::vector<std::byte>& bytes) : bytes_(bytes) { bytes_.clear(); }

  // With room for at least so many, so that what follows keeps its place while the sizes change.
  template <typename T>
  size_t put(const std::vector<T>& values, size_t room = 0) {
    const size_t at = (bytes_.size() + 63) / 64 * 64;
    bytes_.resize(at + std::max(values.size(), room) * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
    return at;
  }
  // With room behind the last array: backends copy whole kibibytes faster than other small sizes.
  void end() { bytes_.resize((bytes_.size() + 1023) / 1024 * 1024); }

 private:
  std::vector<std::byte>& bytes_;
};

}  // namespace sigmoe
