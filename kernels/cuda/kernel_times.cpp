#include "cuda/kernel_times.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <string>

namespace sigmoe::cuda {
namespace {

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

  std::vector<Event> events_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t run_ = nullptr;
  cudaGraphNode_t last_ = nullptr;
};

}  // namespace

double median_of(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

std::vector<BenchDevice::KernelUse> time_kernels(const Queue& queue, const std::function<void()>& work, bool in_step) {
  constexpr int kRuns = 5;
  const double enough_ms = in_step ? std::numeric_limits<double>::infinity() : 200;
  work();  // what is made on first use is not recorded
  CUDA_CHECK(cudaStreamSynchronize(queue.stream));
  const Recording recording(queue, work);
  const std::vector<cudaGraphNode_t> nodes = recording.nodes();
  std::vector<std::vector<double>> times(nodes.size());
  try {
    const Timeline timeline(nodes);
    double spent = 0;
    for (int run = 0; run <= kRuns && spent < enough_ms; ++run) {  // the first warms up, unless it says enough
      const std::vector<double> ms = timeline.ms(queue);
      spent += std::accumulate(ms.begin(), ms.end(), 0.0);
      for (size_t i = 0; i < nodes.size() && (run > 0 || spent >= enough_ms); ++i) times[i].push_back(ms[i]);
    }
  } catch (const EngineError&) {  // a node that cannot be copied: names without times
    (void)cudaGetLastError();
    times.assign(nodes.size(), {0.0});
  }
  std::vector<BenchDevice::KernelUse> uses;
  for (size_t i = 0; i < nodes.size(); ++i) {
    cudaGraphNodeType type;
    CUDA_CHECK(cudaGraphNodeGetType(nodes[i], &type));
    if (type != cudaGraphNodeTypeKernel && type != cudaGraphNodeTypeMemset && type != cudaGraphNodeTypeMemcpy) continue;
    const std::string name = type == cudaGraphNodeTypeKernel ? kernel_name(nodes[i]) : "a copy or fill";
    auto use = std::find_if(uses.begin(), uses.end(), [&](const BenchDevice::KernelUse& known) { return known.name == name; });
    if (use == uses.end()) use = uses.insert(use, {name});
    ++use->launches;
    use->ms += median_of(times[i]);
  }
  return uses;
}

}  // namespace sigmoe::cuda
