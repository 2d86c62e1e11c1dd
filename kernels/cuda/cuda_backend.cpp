// The backend itself: the GPU and its memory, recorded steps, weights. Its ops are in cuda_ops.cpp, cuda_attention.cpp and
// cuda_experts.cpp.
#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "cuda/early_linear.h"
#include "cuda/few_rows.h"
#include "cuda/held_linear.h"
#include "cuda/ops.h"
#include "cuda/rank_rows.h"
#include "cuda/stream_gemm.h"

namespace sigmoe::cuda {
namespace {

constexpr size_t kLandingBytes = 64 << 10;
constexpr size_t kBusRowBytes = 1024;       // what a block of a copying kernel takes
constexpr size_t kMostBusBytes = 64 << 10;  // longer copies are sooner by a copy engine
constexpr size_t kMaxRecorded = 256;

// Makes the GPU the calling thread's own: everything a thread asks of the runtime goes to the GPU it has named last.
int select_device(int index) {
  int n_devices = 0;
  CUDA_CHECK(cudaGetDeviceCount(&n_devices));
  if (index >= n_devices)
    throw EngineError(
        ErrorCode::not_found,
        "GPU " + std::to_string(index) + " asked for (counting from 0): the driver lists " + std::to_string(n_devices),
        "lower tensorParallelSize or dataParallelSize, or let the process see more GPUs (CUDA_VISIBLE_DEVICES)");
  CUDA_CHECK(cudaSetDevice(index));
  return index;
}

Facts facts_of(const cudaDeviceProp& properties, const BackendOptions& options) {
  Facts facts;
  facts.exact = options.compute == DType::f32;
  facts.before_hopper = options.kernels == "mma";
  facts.deterministic = options.deterministic;
  facts.sm = 10 * properties.major + properties.minor;
  facts.overlap = properties.major >= 9;
  facts.n_sms = properties.multiProcessorCount;
  facts.shared_bytes = static_cast<int>(properties.sharedMemPerMultiprocessor);
  facts.has_early = has_early_linear();
  facts.has_held = has_held_linear();
  facts.has_stream = has_stream_gemm();
  facts.has_tensor = has_tensor_gemm();
  facts.has_few_experts = has_few_experts();
  facts.has_rank_rows = has_rank_rows();
  if (facts.before_hopper || (facts.sm == 90 && !facts.has_tensor)) facts.sm = 80;
  return facts;
}

}  // namespace

CudaBackend::Stream::Stream() { CUDA_CHECK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
CudaBackend::Stream::~Stream() {
  cudaStreamSynchronize(handle);
  cudaStreamDestroy(handle);
}

CudaBackend::CudaBackend(const BackendOptions& options) : device_(select_device(options.device_index)) {
  if (options.kernels != "auto" && options.kernels != "mma")
    throw EngineError(ErrorCode::invalid_argument,
                      "kernels '" + options.kernels + "' asked for; on cuda there are auto and mma",
                      "mma: many rows by the kernels of cards before Hopper, on any card");
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device_));
  queue_ = {compute_.handle, properties.major >= 9};
  facts_ = facts_of(properties, options);
  steps_ = std::make_unique<UploadQueue>(compute_.handle);
  weights_ = std::make_unique<UploadQueue>(loading_.handle);
  CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&landing_), kLandingBytes));
  for (cudaEvent_t& mark : marks_) CUDA_CHECK(cudaEventCreate(&mark));
  for (Landing& landing : landings_) {
    CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&landing.host), kMostDownloadBytes));
    CUDA_CHECK(cudaEventCreateWithFlags(&landing.landed, cudaEventDisableTiming));
  }
  info_.device = "cuda";
  info_.name = properties.name;
  const bool exact = facts_.exact;
  info_.kernels = exact ? "exact" : "sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
  if (facts_.before_hopper && !exact) info_.kernels += ", mma";
  if (facts_.deterministic && !exact) info_.kernels += ", deterministic";
  info_.compute = exact ? DType::f32 : DType::bf16;
  info_.kv_dtype = kv_cache_dtype(options, info_.compute, !exact && facts_.sm == 90);
  info_.fp8_prefill = fp8_prefill(options, info_.compute, !exact && facts_.sm == 90);
  if (facts_.deterministic && info_.kv_dtype == DType::f8_e4m3)
    throw EngineError(ErrorCode::unsupported,
                      "deterministic with an FP8 KV cache was asked for: its kernels are of two classes",
                      "use KV cache type bfloat16");
  if (facts_.deterministic && info_.fp8_prefill)
    throw EngineError(ErrorCode::unsupported,
                      "deterministic with prompts in FP8 was asked for: a row's bits would depend on how its prompt is read",
                      "use prefill attention auto");
  facts_.fp8_prefill = info_.fp8_prefill;
  info_.n_threads = options.n_threads;
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(device_);
  forget_recorded();
  for (const cudaEvent_t mark : marks_) cudaEventDestroy(mark);
  for (const Landing& landing : landings_) {
    cudaEventDestroy(landing.landed);
    cudaFreeHost(landing.host);
  }
  cudaFreeHost(landing_);
}

void CudaBackend::note(const char* op, int n_rows, const KernelChoice& choice) {
  if (!choices_ || (choice.kernel == Kernel::ops && !choice.is_fallback())) return;  // ops speak for themselves
  std::string why;
  if (choice.is_fallback()) why = std::string("no ") + kernel_name(choice.meant) + ": " + refusal_text(choice.refusal);
  choices_->push_back({op, n_rows, kernel_name(choice.kernel), why});
}

// ---- memory ----------------------------------------------------------------------------------------------------------

DeviceBuffer CudaBackend::alloc(size_t bytes, const char* what) {
  enter();
  void* data = device_malloc(bytes, what);
  DeviceBuffer buffer(data, bytes, [brief = std::weak_ptr(brief_)](void* memory, size_t n_bytes) {
    if (const auto rows = brief.lock()) rows->forget_all(memory, n_bytes);
    cudaFree(memory);
  });
  writes(data);
  CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, queue_.stream));
  return buffer;
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  enter();
  writes(device);
  if (bytes == 0 || bytes % kBusRowBytes != 0 || bytes > kMostBusBytes) return steps_->copy(device, host, bytes);
  steps_->lend(host, bytes, [&](const std::byte* pinned) { copy_by_kernel(pinned, device, bytes); });
}

// Small copies between a step and the next are kernels of the steps' own queue: a copy engine has to be waited for twice, once
// before it starts and once when it is done.
void CudaBackend::copy_by_kernel(const void* from, void* to, size_t bytes) {
  const bool rows = bytes % kBusRowBytes == 0;
  const int width = static_cast<int>((rows ? kBusRowBytes : bytes) / sizeof(float));
  launch_copy_rows(queue_, static_cast<const float*>(from), nullptr, width, static_cast<float*>(to), nullptr, width,
                   rows ? static_cast<int>(bytes / kBusRowBytes) : 1, width);
}

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  enter();
  floats(device);
  const bool small = bytes <= kLandingBytes;
  CUDA_CHECK(cudaMemcpyAsync(small ? landing_ : host, device, bytes, cudaMemcpyDeviceToHost, queue_.stream));
  synchronize();
  if (small && bytes > 0) std::memcpy(host, landing_, bytes);
}

void CudaBackend::start_download(int place, const void* device, size_t bytes) {
  enter();
  SIGMOE_CHECK(bytes <= kMostDownloadBytes, "a download is larger than its place");
  SIGMOE_CHECK(bytes % sizeof(float) == 0, "a download of part of a word");
  floats(device);
  if (bytes > 0) copy_by_kernel(device, landings_[place].host, bytes);
  CUDA_CHECK(cudaEventRecord(landings_[place].landed, queue_.stream));
}

std::byte* CudaBackend::finish_download(int place) {
  enter();
  CUDA_CHECK(cudaEventSynchronize(landings_[place].landed));
  if (world_) world_->check();
  return landings_[place].host;
}

void CudaBackend::zero(void* device, size_t bytes) {
  enter();
  writes(device);
  CUDA_CHECK(cudaMemsetAsync(device, 0, bytes, queue_.stream));
}

uint64_t CudaBackend::free_bytes() const {
  enter();
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void CudaBackend::synchronize() {
  enter();
  CUDA_CHECK(cudaStreamSynchronize(queue_.stream));
  if (world_) world_->check();
}

void CudaBackend::enter() const { CUDA_CHECK(cudaSetDevice(device_)); }

void CudaBackend::join(Comm& comm) {
  enter();
  world_ = DeviceWorld::join(comm, device_, queue_.stream);
  meets_on_host_ = !world_;
}

// The first run of a key only runs: it sizes scratch memory and makes tables. The second is recorded, the rest replay; but
// where rows that were there before are BF16 now and were floats for what was recorded, or the other way round, ops are called.
void CudaBackend::run_recorded(uint64_t key, const std::function<void()>& ops) {
  if (meets_on_host_) return ops();
  enter();
  if (recorded_.size() >= kMaxRecorded && !recorded_.contains(key)) forget_recorded();
  twin_ = {};
  if (recorded_[key].n_runs++ == 0) {
    ops();
    twin_ = {};
    return;
  }
  if (!recorded_[key].graph) {
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(queue_.stream, cudaStreamCaptureModeThreadLocal));
    recording_ = true;
    brief_->begin_recording();
    try {
      ops();
    } catch (...) {
      recording_ = false;
      brief_->end_recording();
      cudaStreamEndCapture(queue_.stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    recording_ = false;
    BriefList::Recording brief = brief_->end_recording();
    twin_ = {};
    CUDA_CHECK(cudaStreamEndCapture(queue_.stream, &graph));
    const cudaError_t status = cudaGraphInstantiate(&recorded_[key].graph, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(status);
    recorded_[key].brief = std::move(brief);
  }
  const Recorded& recorded = recorded_[key];
  if (brief_->replay(recorded.brief)) {
    CUDA_CHECK(cudaGraphLaunch(recorded.graph, queue_.stream));
  } else {
    ops();
    twin_ = {};
  }
}

bool CudaBackend::would_replay(uint64_t key) const {
  const auto found = recorded_.find(key);
  return found != recorded_.end() && found->second.graph;
}

void CudaBackend::mark(int index) { CUDA_CHECK(cudaEventRecord(marks_[index], queue_.stream)); }

double CudaBackend::ms_between(int first, int second) const {
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, marks_[first], marks_[second]));
  return ms;
}

void CudaBackend::forget_recorded() {
  if (recorded_.empty()) return;
  cudaStreamSynchronize(queue_.stream);
  for (const auto& [key, recorded] : recorded_)
    if (recorded.graph) cudaGraphExecDestroy(recorded.graph);
  recorded_.clear();
}

// ---- weights ---------------------------------------------------------------------------------------------------------

std::unique_ptr<LinearBuilder> CudaBackend::begin_linear(const LinearDesc& desc) {
  enter();
  return begin_weight(desc, arena_, *weights_, facts_.exact);
}

std::unique_ptr<LinearWeight> CudaBackend::random_linear(const LinearDesc& desc, uint64_t seed) {
  return random_weight(desc, seed, arena_, *weights_);
}

}  // namespace sigmoe::cuda
