#include "ascend/host/weights.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "ascend/device/args/weight_layout.h"

namespace sigmoe::ascend {
namespace {

// Checkpoint bytes wait on the host until all of a weight's rows and scales are there; whoever brings the last of them packs
// and uploads, and the bytes go. Files are read in order, so few weights wait at once.
class Builder : public LinearBuilder {
 public:
  Builder(const LinearDesc& desc, DType dtype, Device& device, RequantisationReport& report)
      : desc_(desc), device_(device), report_(report), n_blocks_(desc.k_bounds.empty() ? 0 : desc.k_bounds.size() - 1) {
    row_bytes_ = weight_row_bytes(desc.format, desc.k);
    if (desc.n <= 0 || desc.k <= 0 || desc.n > INT_MAX / 2 || desc.k > INT_MAX / 16 || row_bytes_ == 0 ||
        (desc.format == WeightFormat::int4 && desc.k % 2 != 0) || (desc.gate_up && desc.n % 2 != 0))
      throw EngineError(ErrorCode::unsupported, desc.name + ": a weight of " + std::to_string(desc.n) + " x " +
                                                    std::to_string(desc.k) + " in " + weight_format_name(desc.format) +
                                                    " has no Ascend kernel");
    weight_ = std::make_unique<AscendWeight>();
    weight_->n = desc.n;
    weight_->k = desc.k;
    weight_->dtype = dtype;
    weight_->plain = desc.use == LinearUse::router;
    missing_ = desc.n + (n_blocks_ > 0 ? desc.n : 0);
  }

  void put_rows(int64_t row, int64_t n_rows, const std::byte* source, size_t stride_bytes) override {
    std::call_once(rows_made_, [&] { rows_.resize(desc_.n * row_bytes_); });
    for (int64_t i = 0; i < n_rows; ++i)
      std::memcpy(rows_.data() + (row + i) * row_bytes_, source + i * stride_bytes, row_bytes_);
    arrived(n_rows);
  }

  void put_scales(int64_t row, int64_t n_rows, const float* scales) override {
    std::call_once(scales_made_, [&] { scales_.resize(desc_.n * n_blocks_); });
    std::copy(scales, scales + n_rows * n_blocks_, scales_.begin() + row * n_blocks_);
    arrived(n_rows);
  }

  std::unique_ptr<LinearWeight> finish() override {
    SIGMOE_CHECK(missing_ == 0, desc_.name + " was finished before all of it had come");
    return std::move(weight_);
  }

 private:
  void arrived(int64_t n_rows) {
    if (missing_.fetch_sub(n_rows) == n_rows) pack();
  }

  // values (k) <- row n, its scales applied.
  void expand(int64_t n, float* values) const {
    const std::byte* row = rows_.data() + n * row_bytes_;
    bool finite = true;
    for (int64_t k = 0; k < desc_.k; ++k) {
      values[k] = stored_weight(desc_.format, row, k);
      finite = finite && std::isfinite(values[k]);
    }
    if (!finite)
      throw EngineError(ErrorCode::bad_checkpoint, desc_.name + " holds a NaN or an infinity in row " + std::to_string(n),
                        "the file is damaged; fetch it again and compare its checksum");
    for (size_t block = 0; block < n_blocks_; ++block)
      for (int64_t k = desc_.k_bounds[block]; k < desc_.k_bounds[block + 1]; ++k) values[k] *= scales_[n * n_blocks_ + block];
  }

  void pack() {
    const size_t width = dtype_bytes(weight_->dtype);
    const WeightLayout layout{desc_.n, desc_.k, static_cast<int64_t>(width)};
    std::vector<std::byte> packed(weight_->plain ? static_cast<size_t>(desc_.n * desc_.k) * width
                                                 : static_cast<size_t>(layout.bytes()));
    std::vector<float> channel_scales(weight_->dtype == DType::i8 ? round_up(desc_.n, kGroupRows) : 0);
    std::vector<float> values(desc_.k);
    double squares = 0, errors = 0;
    for (int64_t n = 0; n < desc_.n; ++n) {
      expand(n, values.data());
      float scale = 0;
      if (weight_->dtype == DType::i8) {
        for (const float value : values) scale = std::max(scale, std::abs(value));
        channel_scales[n] = scale /= 127.0f;
      }
      for (int64_t k = 0; k < desc_.k; ++k) {
        std::byte* to = packed.data() + (weight_->plain ? n * desc_.k + k : layout.index(n, k)) * width;
        const float value = values[k];
        if (weight_->dtype == DType::i8) {
          const float code = scale > 0 ? std::nearbyint(value / scale) : 0.0f;
          *to = static_cast<std::byte>(static_cast<int8_t>(code));
          const double error = static_cast<double>(code) * scale - value;
          errors += error * error;
          squares += static_cast<double>(value) * value;
        } else if (weight_->dtype == DType::bf16) {
          const uint16_t bits = f32_to_bf16(value);
          std::memcpy(to, &bits, 2);
        } else {
          std::memcpy(to, &value, 4);
        }
      }
    }
    if (squares > 0) report_.add(desc_.name, std::sqrt(errors / squares));
    rows_ = {};
    scales_ = {};
    upload(weight_->data, packed.data(), packed.size());
    upload(weight_->scales, channel_scales.data(), channel_scales.size() * sizeof(float));
  }

  void upload(DeviceSpan& span, const void* from, size_t bytes) {
    if (bytes == 0) return;
    span = device_.take(bytes, desc_.name.c_str());
    device_.upload_at_once(span.data, from, bytes);
  }

  LinearDesc desc_;
  Device& device_;
  RequantisationReport& report_;
  size_t n_blocks_, row_bytes_ = 0;
  std::once_flag rows_made_, scales_made_;
  std::vector<std::byte> rows_;  // as in the checkpoint
  std::vector<float> scales_;    // (n, n_blocks)
  std::atomic<int64_t> missing_{0};
  std::unique_ptr<AscendWeight> weight_;
};

}  // namespace

void RequantisationReport::add(const std::string& name, double relative_error) {
  const std::lock_guard lock(mutex_);
  ++n_;
  sum_ += relative_error;
  if (relative_error < worst_) return;
  worst_ = relative_error;
  worst_name_ = name;
}

std::string RequantisationReport::text() const {
  const std::lock_guard lock(mutex_);
  if (n_ == 0) return {};
  char figures[96];
  std::snprintf(figures, sizeof figures, "INT8, added error mean %.2f%%, worst %.2f%% (", 100 * sum_ / static_cast<double>(n_),
                100 * worst_);
  return figures + worst_name_ + ")";
}

std::unique_ptr<LinearBuilder> begin_weight(const LinearDesc& desc, DType compute, Device& device,
                                            RequantisationReport& report) {
  // The edges of a model lose most by eight bits and are read once a step: they stay BF16.
  const DType dtype = desc.use == LinearUse::router                         ? DType::f32
                      : compute == DType::i8 && desc.use == LinearUse::edge ? DType::bf16
                                                                            : compute;
  return std::make_unique<Builder>(desc, dtype, device, report);
}

}  // namespace sigmoe::ascend
