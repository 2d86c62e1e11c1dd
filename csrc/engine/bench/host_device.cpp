#include "engine/bench/host_device.h"

#include <algorithm>
#include <chrono>

#include "backend/registry.h"

namespace sigmoe::bench {
namespace {

uint64_t mix(uint64_t x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class HostDevice : public BenchDevice {
 public:
  explicit HostDevice(Backend& backend) : backend_(backend) {
    if (backend.info().device == "cpu") probe_ = make_ceiling_probe(backend.info().n_threads);
  }

  void fill(void* data, DType dtype, size_t n, float limit, uint64_t seed) override {
    constexpr size_t kPiece = 1 << 20;
    SIGMOE_CHECK(dtype == DType::f32 || dtype == DType::bf16, "random data is float32 or BF16");
    const size_t element = dtype_bytes(dtype);
    std::vector<std::byte> piece(std::min(n, kPiece) * element);
    for (size_t first = 0; first < n; first += kPiece) {
      const size_t count = std::min(kPiece, n - first);
      for (size_t i = 0; i < count; ++i) {
        const uint64_t random = mix((seed + 1) * 0x9e3779b97f4a7c15u + first + i);
        const float value = (static_cast<float>(random >> 40) / 8388608.0f - 1.0f) * limit;
        const uint16_t narrow = f32_to_bf16(value);
        std::memcpy(&piece[i * element], element == 4 ? static_cast<const void*>(&value) : &narrow, element);
      }
      backend_.upload(static_cast<std::byte*>(data) + first * element, piece.data(), count * element);
      backend_.synchronize();  // the piece is filled again
    }
  }

  Timing time(const std::function<void()>& work) override {
    Timing timing;
    if (probe_) timing.read_gbps = probe_->read_gbps();
    const auto start = std::chrono::steady_clock::now();
    work();
    backend_.synchronize();
    timing.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    return timing;
  }

  double matrix_gflops(DType operands) override { return probe_ && operands == DType::bf16 ? probe_->matrix_gflops() : 0; }

 private:
  Backend& backend_;
  std::unique_ptr<CeilingProbe> probe_;
};

}  // namespace

std::unique_ptr<BenchDevice> make_host_device(Backend& backend) { return std::make_unique<HostDevice>(backend); }

}  // namespace sigmoe::bench
