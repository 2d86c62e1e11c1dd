// A backend that only loads: weights are kept dequantised, and every row and scale must arrive exactly once.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "backend/backend.h"

namespace sigmoe {

class RecordedWeight : public LinearWeight {
 public:
  explicit RecordedWeight(const LinearDesc& desc)
      : desc(desc),
        values(static_cast<size_t>(desc.n * desc.k)),
        blocks(desc.k_bounds.empty() ? 0 : desc.k_bounds.size() - 1),
        scales(static_cast<size_t>(desc.n) * blocks) {}
  size_t bytes() const override { return values.size() * 4; }

  LinearDesc desc;
  std::vector<float> values;  // (n, k) without scales until finish()
  size_t blocks;
  std::vector<float> scales;
};

class RecordingBuilder : public LinearBuilder {
 public:
  explicit RecordingBuilder(const LinearDesc& desc)
      : weight_(std::make_unique<RecordedWeight>(desc)), row_puts_(desc.n), scale_puts_(desc.n) {
    const auto& bounds = desc.k_bounds;
    SIGMOE_CHECK(desc.n > 0 && desc.k > 0, desc.name + ": empty weight begun");
    SIGMOE_CHECK(bounds.empty() == (desc.format == WeightFormat::f32 || desc.format == WeightFormat::bf16),
                 desc.name + ": bounds");
    SIGMOE_CHECK(bounds.empty() || (bounds.front() == 0 && bounds.back() == desc.k), desc.name + ": bounds do not span k");
    for (size_t i = 1; i < bounds.size(); ++i) SIGMOE_CHECK(bounds[i] > bounds[i - 1], desc.name + ": bounds not rising");
  }

  void put_rows(int64_t row, int64_t n_rows, const std::byte* source, size_t stride_bytes) override {
    const LinearDesc& desc = weight_->desc;
    SIGMOE_CHECK(row >= 0 && n_rows > 0 && row + n_rows <= desc.n, desc.name + ": rows outside the weight");
    for (int64_t i = 0; i < n_rows; ++i) {
      ++row_puts_[row + i];
      for (int64_t k = 0; k < desc.k; ++k) {
        const float value = element(source + i * stride_bytes, k);
        if (!std::isfinite(value)) throw EngineError(ErrorCode::bad_checkpoint, desc.name + " holds a NaN or an infinity");
        weight_->values[(row + i) * desc.k + k] = value;
      }
    }
  }

  void put_scales(int64_t row, int64_t n_rows, const float* scales) override {
    SIGMOE_CHECK(row >= 0 && n_rows > 0 && row + n_rows <= weight_->desc.n, weight_->desc.name + ": scales outside the weight");
    for (int64_t i = 0; i < n_rows; ++i) ++scale_puts_[row + i];
    std::copy(scales, scales + n_rows * weight_->blocks, weight_->scales.begin() + row * weight_->blocks);
  }

  std::unique_ptr<LinearWeight> finish() override {
    const LinearDesc& desc = weight_->desc;
    for (int64_t n = 0; n < desc.n; ++n) {
      SIGMOE_CHECK(row_puts_[n] == 1, desc.name + ": a row was put " + std::to_string(row_puts_[n]) + " times");
      SIGMOE_CHECK(scale_puts_[n] == (weight_->blocks ? 1 : 0),
                   desc.name + ": a row's scales were put " + std::to_string(scale_puts_[n]) + " times");
      for (size_t b = 0; b < weight_->blocks; ++b)
        for (int64_t k = desc.k_bounds[b]; k < desc.k_bounds[b + 1]; ++k)
          weight_->values[n * desc.k + k] *= weight_->scales[n * weight_->blocks + b];
    }
    return std::move(weight_);
  }

 private:
  float element(const std::byte* row, int64_t k) const {
    switch (weight_->desc.format) {
      case WeightFormat::f32: {
        float value;
        std::memcpy(&value, row + 4 * k, 4);
        return value;
      }
      case WeightFormat::bf16: {
        uint16_t bits;
        std::memcpy(&bits, row + 2 * k, 2);
        return bf16_to_f32(bits);
      }
      case WeightFormat::fp8: return f8e4m3_to_f32(static_cast<uint8_t>(row[k]));
      case WeightFormat::int4: return static_cast<float>((static_cast<int>(row[k / 2]) >> (4 * (k % 2)) & 15) - 8);
      case WeightFormat::int8: return static_cast<float>(static_cast<int8_t>(row[k]));
    }
    return 0.0f;
  }

  std::unique_ptr<RecordedWeight> weight_;
  std::vector<std::atomic<int>> row_puts_, scale_puts_;
};

class RecordingBackend : public Backend {
 public:
  const BackendInfo& info() const override { return info_; }
  DeviceBuffer alloc(size_t bytes, const char*) override {
    void* data = std::calloc(bytes ? bytes : 1, 1);
    if (!data) throw EngineError(ErrorCode::out_of_memory, "no memory");
    return DeviceBuffer(data, bytes, [](void* memory, size_t) { std::free(memory); });
  }
  void upload(void* device, const void* host, size_t bytes) override { std::memcpy(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { std::memcpy(host, device, bytes); }
  void zero(void* device, size_t bytes) override { std::memset(device, 0, bytes); }
  void synchronize() override {}
  uint64_t free_bytes() const override { return uint64_t{1} << 40; }
  std::unique_ptr<LinearBuilder> begin_linear(const LinearDesc& desc) override {
    return std::make_unique<RecordingBuilder>(desc);
  }

  void embed(const Tensor&, const int32_t*, int, float*) override { no(); }
  void reduce_add_rms_norm(float*, float*, int, Comm*, const float*, float, int, int, float*) override { no(); }
  void linear(const float*, const LinearWeight&, int, float*) override { no(); }
  void qk_norm_rope_store(const BatchView&, const AttentionShape&, const float*, const float*, const float*, float,
                          const float*, const float*, const KvView&, float*) override {
    no();
  }
  void attention(const BatchView&, const AttentionShape&, const float*, const KvView&, float*) override { no(); }
  void route(const float*, const LinearWeight&, const float*, const RouterShape&, int, const int32_t*, float*,
             const Routing&) override {
    no();
  }
  void experts(const float*, const ExpertWeights&, const Routing&, int, int, int, float*) override { no(); }
  void head_logits(const float*, const int32_t*, int, const LinearWeight&, Comm*, const std::vector<int64_t>&,
                   float*) override {
    no();
  }
  void sample(const SampleArgs&) override { no(); }
  void reset_counts(uint32_t*, int, const int32_t*, int, const int32_t*, int) override { no(); }
  void join_norms(const float*, const float*, const float*, const float*, float, int, int, float*) override { no(); }
  void copy_rows(const float*, const int32_t*, int64_t, float*, const int32_t*, int64_t, int, int) override { no(); }

 private:
  [[noreturn]] static void no() { throw EngineError(ErrorCode::internal, "the recording backend computes nothing"); }
  BackendInfo info_;
};

}  // namespace sigmoe
