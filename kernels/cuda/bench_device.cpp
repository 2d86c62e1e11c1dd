// What benchmarks need of a GPU: random weights, device times behind a read stream, ceilings, and the names of the kernels that
// some work enqueues.
#include "backend/bench_device.h"

#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <numeric>

#include "cuda/bench_kernels.h"
#include "cuda/cuda_backend.h"

namespace sigmoe::cuda {
namespace {

// Far more than a cache holds. The first part is read untimed: a device that waits for the host would count its waiting.
constexpr size_t kStreamBytes = size_t{2} << 30, kLeadBytes = size_t{256} << 20;
constexpr int kCeilingRuns = 21;

class Event {
 public:
  Event() { CUDA_CHECK(cudaEventCreate(&handle_)); }
  ~Event() { cudaEventDestroy(handle_); }
  Event(const Event&) = delete;
  cudaEvent_t handle() const { return handle_; }
  void record(const Queue& queue) const { CUDA_CHECK(cudaEventRecord(handle_, queue.stream)); }
  void wait() const { CUDA_CHECK(cudaEventSynchronize(handle_)); }
  double ms_since(const Event& start) const {
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, start.handle_, handle_));
    return ms;
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

double median_of(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// "void sigmoe::cuda::(anonymous namespace)::gemm_kernel<4, true>(Args)" -> "gemm_kernel<4, true>"
std::string short_name(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
  std::string name = status == 0 ? text.get() : mangled;
  const size_t end = name.find('<');
  const std::string head = name.substr(0, std::min(end, name.find('(', name.find("kernel"))));
  const size_t begin = head.find_last_of(": ");
  const size_t from = begin == std::string::npos ? 0 : begin + 1;
  size_t to = head.size();
  if (end != std::string::npos) {  // through the matching bracket
    int depth = 0;
    for (to = end; to < name.size(); ++to) {
      depth += name[to] == '<' ? 1 : name[to] == '>' ? -1 : 0;
      if (depth == 0) break;
    }
    to = std::min(to + 1, name.size());
  }
  return name.substr(from, to - from);
}

std::string kernel_name(cudaGraphNode_t node) {
#if CUDART_VERSION >= 12030
  cudaKernelNodeParams params = {};
  const char* name = nullptr;
  if (cudaGraphKernelNodeGetParams(node, &params) == cudaSuccess && cudaFuncGetName(&name, params.func) == cudaSuccess && name)
    return short_name(name);
  (void)cudaGetLastError();
#endif
  return "a kernel";
}

// A recorded piece of work.
class Recording {
 public:
  Recording(const Queue& queue, const std::function<void()>& work) {
    CUDA_CHECK(cudaStreamBeginCapture(queue.stream, cudaStreamCaptureModeThreadLocal));
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(queue.stream, &graph_);
      if (graph_) cudaGraphDestroy(graph_);
      throw;
    }
    CUDA_CHECK(cudaStreamEndCapture(queue.stream, &graph_));
  }
  ~Recording() { cudaGraphDestroy(graph_); }
  Recording(const Recording&) = delete;

  std::vector<cudaGraphNode_t> nodes() const {  // in the order they were enqueued
    size_t n = 0;
    CUDA_CHECK(cudaGraphGetNodes(graph_, nullptr, &n));
    std::vector<cudaGraphNode_t> nodes(n);
    CUDA_CHECK(cudaGraphGetNodes(graph_, nodes.data(), &n));
    return nodes;
  }

 private:
  cudaGraph_t graph_ = nullptr;
};

// The nodes of a recording, strictly one after the other, a clock after each.
class Timeline {
 public:
  explicit Timeline(const std::vector<cudaGraphNode_t>& nodes) : events_(nodes.size() + 1) {
    CUDA_CHECK(cudaGraphCreate(&graph_, 0));
    add_event(0);
    for (size_t i = 0; i < nodes.size(); ++i) {
      add_copy(nodes[i]);
      add_event(i + 1);
    }
    CUDA_CHECK(cudaGraphInstantiate(&run_, graph_, 0));
  }
  ~Timeline() {
    if (run_) cudaGraphExecDestroy(run_);
    if (graph_) cudaGraphDestroy(graph_);
  }
  Timeline(const Timeline&) = delete;

  std::vector<double> ms(const Queue& queue) const {  // of each node
    CUDA_CHECK(cudaGraphLaunch(run_, queue.stream));
    CUDA_CHECK(cudaStreamSynchronize(queue.stream));
    std::vector<double> times;
    for (size_t i = 1; i < events_.size(); ++i) times.push_back(events_[i].ms_since(events_[i - 1]));
    return times;
  }

 private:
  void add_event(size_t i) {
    const cudaGraphNode_t before = last_;
    CUDA_CHECK(cudaGraphAddEventRecordNode(&last_, graph_, before ? &before : nullptr, before ? 1 : 0, events_[i].handle()));
  }

  void add_copy(cudaGraphNode_t node) {
    const cudaGraphNode_t before = last_;
    cudaGraphNodeType type;
    CUDA_CHECK(cudaGraphNodeGetType(node, &type));
    if (type == cudaGraphNodeTypeKernel) {
      cudaKernelNodeParams params = {};
      CUDA_CHECK(cudaGraphKernelNodeGetParams(node, &params));
      allow_shared_memory(params);
      CUDA_CHECK(cudaGraphAddKernelNode(&last_, graph_, &before, 1, &params));
      cudaLaunchAttributeValue value;
      CUDA_CHECK(cudaGraphKernelNodeGetAttribute(node, cudaLaunchAttributeClusterDimension, &value));
      if (value.clusterDim.x * value.clusterDim.y * value.clusterDim.z > 1)
        CUDA_CHECK(cudaGraphKernelNodeSetAttribute(last_, cudaLaunchAttributeClusterDimension, &value));
      CUDA_CHECK(cudaGraphKernelNodeGetAttribute(node, cudaLaunchAttributeCooperative, &value));
      if (value.cooperative) CUDA_CHECK(cudaGraphKernelNodeSetAttribute(last_, cudaLaunchAttributeCooperative, &value));
    } else if (type == cudaGraphNodeTypeMemset) {
      cudaMemsetParams params = {};
      CUDA_CHECK(cudaGraphMemsetNodeGetParams(node, &params));
      CUDA_CHECK(cudaGraphAddMemsetNode(&last_, graph_, &before, 1, &params));
    } else if (type == cudaGraphNodeTypeMemcpy) {
      cudaMemcpy3DParms params = {};
      CUDA_CHECK(cudaGraphMemcpyNodeGetParams(node, &params));
      CUDA_CHECK(cudaGraphAddMemcpyNode(&last_, graph_, &before, 1, &params));
    }  // what else there is orders others, and all stand in a row here
  }

  // Launches of one kernel may each have asked for as much as they need: the last word may be less than this one's.
  static void allow_shared_memory(const cudaKernelNodeParams& params) {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, params.func));
    if (static_cast<int>(params.sharedMemBytes) > attributes.maxDynamicSharedSizeBytes)
      CUDA_CHECK(cudaFuncSetAttribute(params.func, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(params.sharedMemBytes)));
  }

  std::vector<Event> events_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t run_ = nullptr;
  cudaGraphNode_t last_ = nullptr;
};

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

  std::string driver() override {
    std::ifstream file("/proc/driver/nvidia/version");  // "NVRM version: NVIDIA UNIX ... Kernel Module  580.159.04  ..."
    for (std::string word; file >> word;)
      if (std::isdigit(static_cast<unsigned char>(word[0])) && word.find('.') != std::string::npos) return word;
    return {};
  }

  std::vector<KernelUse> kernels_of(const std::function<void()>& work) override;

 private:
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

std::vector<BenchDevice::KernelUse> CudaBenchDevice::kernels_of(const std::function<void()>& work) {
  constexpr int kRuns = 5;
  constexpr double kEnoughMs = 200;
  work();  // what is made on first use is not recorded
  backend_.synchronize();
  const Recording recording(backend_.queue(), work);
  const std::vector<cudaGraphNode_t> nodes = recording.nodes();
  std::vector<std::vector<double>> times(nodes.size());
  try {
    const Timeline timeline(nodes);
    double spent = 0;
    for (int run = 0; run <= kRuns && spent < kEnoughMs; ++run) {  // the first warms up, unless it says enough
      const std::vector<double> ms = timeline.ms(backend_.queue());
      spent += std::accumulate(ms.begin(), ms.end(), 0.0);
      for (size_t i = 0; i < nodes.size() && (run > 0 || spent >= kEnoughMs); ++i) times[i].push_back(ms[i]);
    }
  } catch (const EngineError&) {  // a node that cannot be copied: names without times
    (void)cudaGetLastError();
    times.assign(nodes.size(), {0.0});
  }
  std::vector<KernelUse> uses;
  for (size_t i = 0; i < nodes.size(); ++i) {
    cudaGraphNodeType type;
    CUDA_CHECK(cudaGraphNodeGetType(nodes[i], &type));
    if (type != cudaGraphNodeTypeKernel && type != cudaGraphNodeTypeMemset && type != cudaGraphNodeTypeMemcpy) continue;
    const std::string name = type == cudaGraphNodeTypeKernel ? kernel_name(nodes[i]) : "a copy or fill";
    auto use = std::find_if(uses.begin(), uses.end(), [&](const KernelUse& known) { return known.name == name; });
    if (use == uses.end()) use = uses.insert(use, {name});
    ++use->launches;
    use->ms += median_of(times[i]);
  }
  return uses;
}

}  // namespace

std::unique_ptr<BenchDevice> CudaBackend::bench_device() { return std::make_unique<CudaBenchDevice>(*this); }

}  // namespace sigmoe::cuda
