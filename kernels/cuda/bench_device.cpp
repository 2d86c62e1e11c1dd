// What benchmarks need of a GPU: random weights, device times behind a read stream, ceilings, and the names of the kernels that
// some work enqueues.
#include "backend/bench_device.h"

#include <cctype>
#include <fstream>

#include "cuda/bench_kernels.h"
#include "cuda/cuda_backend.h"
#include "cuda/kernel_times.h"

namespace sigmoe::cuda {
namespace {

// Far more than a cache holds. The first part is read untimed: a device that waits for the host would count its waiting.
constexpr size_t kStreamBytes = size_t{2} << 30, kLeadBytes = size_t{256} << 20;
constexpr int kCeilingRuns = 21;
constexpr uint64_t kMeetingsKey = uint64_t{3} << 60;  // of recorded work

class CudaBenchDevice : public BenchDevice {
 public:
  explicit CudaBenchDevice(CudaBackend& backend)
      : backend_(backend),
        stream_(backend.alloc(kStreamBytes, "memory to measure the bandwidth with")),
        sink_(backend.alloc(64, "results of measurements")) {
    cudaDeviceProp properties;
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    n_sms_ = properties.multiProcessorCount;
    launch_fill_f32(backend.queue(), 3, 1.0f, kStreamBytes / 4, stream_.as<float>());
  }

  std::unique_ptr<LinearWeight> random_linear(const LinearDesc& desc, uint64_t seed) override {
    return backend_.random_linear(desc, seed);
  }

  void fill(void* data, DType dtype, size_t n, float limit, uint64_t seed) override {
    SIGMOE_CHECK(dtype == DType::f32 || dtype == DType::bf16, "random data is float32 or BF16");
    if (dtype == DType::f32)
      launch_fill_f32(backend_.queue(), seed, limit, n, static_cast<float*>(data));
    else
      launch_fill_bf16(backend_.queue(), seed, limit, n, data);
  }

  Timing time(const std::function<void()>& work) override {
    const Queue& queue = backend_.queue();
    launch_read_stream(queue, n_sms_, stream_.data(), kLeadBytes, sink_.as<uint32_t>());
    read_start_.record(queue);
    launch_read_stream(queue, n_sms_, stream_.data(), kStreamBytes, sink_.as<uint32_t>());
    start_.record(queue);
    work();
    stop_.record(queue);
    stop_.wait();
    return {stop_.ms_since(start_), kStreamBytes / start_.ms_since(read_start_) / 1e6};
  }

  double copy_gbps() override {
    constexpr size_t kHalf = kStreamBytes / 2;
    return 2.0 * kHalf / 1e6 / median_ms([&] {
             CUDA_CHECK(cudaMemcpyAsync(stream_.data(), stream_.as<std::byte>() + kHalf, kHalf, cudaMemcpyDeviceToDevice,
                                        backend_.queue().stream));
           });
  }

  // Measured once: the device is this process's alone, and its power would suffer from more.
  double matrix_gflops(DType operands) override {
    const bool fp8 = operands == DType::f8_e4m3;
    if (!fp8 && operands != DType::bf16) return 0;
    double& known = fp8 ? fp8_gflops_ : bf16_gflops_;
    if (known < 0) known = measure_matrix_gflops(fp8);
    return known;
  }

  PeerCeilings peer_ceilings() override {
    constexpr size_t kBytes = size_t{256} << 20;
    constexpr int kMeetings = 64;
    DeviceWorld* world = backend_.world();
    if (!world || world->way() != DeviceWorld::Way::peer_memory) return {};
    const auto meetings = [&] {
      backend_.run_recorded(kMeetingsKey, [&] {
        for (int i = 0; i < kMeetings; ++i) world->meet(backend_.queue());
      });
    };
    PeerCeilings found;
    found.meeting_us = median_ms(meetings) * 1e3 / kMeetings;
    // Every rank reads the next one's: each link carries as much in both directions.
    found.link_gbps = kBytes / 1e6 / median_ms([&] { world->read_next(backend_.queue(), kBytes); });
    return found;
  }

  std::string driver() override {
    std::ifstream file("/proc/driver/nvidia/version");  // "NVRM version: NVIDIA UNIX ... Kernel Module  580.159.04  ..."
    for (std::string word; file >> word;)
      if (std::isdigit(static_cast<unsigned char>(word[0])) && word.find('.') != std::string::npos) return word;
    return {};
  }

  std::vector<KernelUse> kernels_of(const std::function<void()>& work) override { return time_kernels(backend_.queue(), work); }

  std::vector<Choice> choices_of(const std::function<void()>& work) override {
    std::vector<Choice> choices;
    const Listing listing(backend_, choices);
    work();
    return choices;
  }

 private:
  struct Listing {
    Listing(CudaBackend& of, std::vector<Choice>& choices) : backend(of) { backend.list_choices(&choices); }
    ~Listing() { backend.list_choices(nullptr); }
    CudaBackend& backend;
  };

  double median_ms(const std::function<void()>& work) {
    const Queue& queue = backend_.queue();
    for (int i = 0; i < 5; ++i) work();
    std::vector<double> times(kCeilingRuns);
    for (double& time : times) {
      start_.record(queue);
      work();
      stop_.record(queue);
      stop_.wait();
      time = stop_.ms_since(start_);
    }
    return median_of(times);
  }

  double measure_matrix_gflops(bool fp8) {
    auto* peak = sink_.as<MatrixPeak>();
    backend_.zero(peak, sizeof(MatrixPeak));
    const double ms = median_ms([&] { launch_matrix_peak(backend_.queue(), fp8, n_sms_, peak); });
    MatrixPeak done;
    backend_.download(&done, peak, sizeof done);
    return done.flop_per_block * n_sms_ / ms / 1e6;
  }

  CudaBackend& backend_;
  DeviceBuffer stream_, sink_;
  Event read_start_, start_, stop_;
  int n_sms_ = 0;
  double bf16_gflops_ = -1, fp8_gflops_ = -1;
};

}  // namespace

std::unique_ptr<BenchDevice> CudaBackend::bench_device() { return std::make_unique<CudaBenchDevice>(*this); }

}  // namespace sigmoe::cuda
