// GlobalTensor and LocalTensor: typed views of memory. Scalar access to either is the scalar unit's (pipe S).
#pragma once

#include "ascend/twin/hazard.h"

namespace AscendC {

template <typename T>
class LocalTensor {
 public:
  using PrimType = T;
  LocalTensor() = default;
  explicit LocalTensor(const twin::Local& local) : local_(local) {}

  // The rest of the tensor from element `offset` on.
  LocalTensor operator[](std::uint32_t offset) const {
    twin::Local rest = local_;
    const std::uint64_t bytes = std::uint64_t{offset} * sizeof(T);
    rest.at += bytes;
    rest.bytes = bytes <= rest.bytes ? static_cast<std::uint32_t>(rest.bytes - bytes) : 0;
    return LocalTensor(rest);
  }
  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    return LocalTensor<U>(local_);
  }
  std::uint32_t GetSize() const { return local_.bytes / sizeof(T); }
  TPosition GetPosition() const { return local_.position; }

  T GetValue(std::uint32_t index, TWIN_WHERE) const {
    if (twin::checking()) {
      twin::Instruction instruction("LocalTensor::GetValue", PIPE_S, where);
      instruction.operand(local_, twin::Arena::ub, 1);
      instruction.read(local_, std::int64_t{index} * sizeof(T), sizeof(T));
    }
    return data()[index];
  }
  void SetValue(std::uint32_t index, T value, TWIN_WHERE) const {
    if (twin::checking()) {
      twin::Instruction instruction("LocalTensor::SetValue", PIPE_S, where);
      instruction.operand(local_, twin::Arena::ub, 1);
      instruction.write(local_, std::int64_t{index} * sizeof(T), sizeof(T));
    }
    data()[index] = value;
  }

  T* data() const { return reinterpret_cast<T*>(local_.at); }  // the twin's own: kernels have no such call
  const twin::Local& local() const { return local_; }

 private:
  twin::Local local_;
};

template <typename T>
class GlobalTensor {
 public:
  using PrimType = T;
  void SetGlobalBuffer(T* data, std::uint64_t n = 0) {
    data_ = data;
    n_ = n;
  }
  GlobalTensor operator[](std::uint64_t offset) const {
    GlobalTensor rest = *this;
    rest.data_ += offset;
    if (n_) rest.n_ = offset < n_ ? n_ - offset : 0, rest.ended_ = offset >= n_;
    return rest;
  }
  const T* GetPhyAddr() const { return data_; }
  const T* GetPhyAddr(std::uint64_t offset) const { return data_ + offset; }
  std::uint64_t GetSize() const { return n_; }

  T GetValue(std::uint64_t index, TWIN_WHERE) const {
    if (twin::checking()) {
      twin::Instruction instruction("GlobalTensor::GetValue", PIPE_S, where);
      check(instruction, index, sizeof(T));
      instruction.read_gm_scalar(data_ + index, sizeof(T));
    }
    return data_[index];
  }
  void SetValue(std::uint64_t index, T value, TWIN_WHERE) const {
    if (twin::checking()) {
      twin::Instruction instruction("GlobalTensor::SetValue", PIPE_S, where);
      check(instruction, index, sizeof(T));
      instruction.write_gm_scalar(data_ + index, sizeof(T));
    }
    data_[index] = value;
  }

  // The twin's own: elements from `index` on lie inside the size that SetGlobalBuffer was given, if it was.
  void check(const twin::Instruction& instruction, std::uint64_t index, std::size_t bytes) const {
    if (ended_ || (n_ && index * sizeof(T) + bytes > n_ * sizeof(T)))
      instruction.fail("global memory past the " + std::to_string(n_) + " elements that SetGlobalBuffer left here");
  }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  std::uint64_t n_ = 0;
  bool ended_ = false;
};

template <typename T, CacheLine line, DcciDst destination = DcciDst::CACHELINE_ALL>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& tensor, TWIN_WHERE) {
  if (!twin::checking()) return;
  twin::Instruction instruction("DataCacheCleanAndInvalid", PIPE_S, where);
  twin::Core& core = *twin::self;
  auto& dirty = core.launch->shadow.dirty;
  const auto clean = [&](std::uintptr_t number) {
    core.lines.erase(number);
    const auto found = dirty.find(number);
    if (found != dirty.end() && found->second.core == core.index) dirty.erase(found);
  };
  if constexpr (line == CacheLine::SINGLE_CACHE_LINE) {
    clean(twin::Instruction::address(tensor.data()) / 64);
  } else {
    core.lines.clear();
    for (auto entry = dirty.begin(); entry != dirty.end();)
      entry = entry->second.core == core.index ? dirty.erase(entry) : std::next(entry);
  }
}

}  // namespace AscendC
