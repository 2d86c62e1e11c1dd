#include "cpu/cpu_backend.h"

#include <cstring>

#include "backend/registry.h"

namespace sigmoe {
namespace {

constexpr int kMostThreads = 4096;

const SimdKernels& float32_kernels(CpuPath path) {
#if defined(__x86_64__)
  if (path >= CpuPath::avx512) return kSimdAvx512;
  if (path == CpuPath::avx2) return kSimdAvx2;
#endif
  return kSimdGeneric;
}

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : ReferenceBackend(options), pool_(options.n_threads), workers_(pool_.size()) {
  const CpuPath path = choose_cpu_path(options.kernels, options.compute);
  simd_ = &float32_kernels(path);
#if defined(__x86_64__)
  if (path >= CpuPath::avx512bf16) bf16_gemm_ = odd_bf16_gemm_ = kGemmAvx512Bf16;
  if (path == CpuPath::amx) bf16_gemm_ = kGemmAmx;
#endif
  info_.name = cpu_model_name() + ", " + std::to_string(pool_.size()) + (pool_.size() == 1 ? " thread" : " threads");
  info_.kernels = cpu_path_name(path);
  info_.compute = bf16_gemm_ ? DType::bf16 : DType::f32;
  info_.kv_dtype = kv_cache_dtype(options, options.compute, false);
  info_.fp8_prefill = fp8_prefill(options, options.compute, false);
  info_.n_threads = pool_.size();
  for (Worker& worker : workers_) worker.gemm_scratch = allocate_host(kGemmScratchBytes, "kernel scratch");
}

std::unique_ptr<LinearBuilder> CpuBackend::begin_linear(const LinearDesc& desc) {
  return begin_packed_linear(desc, layouts_.find_or_make(desc), arena_);
}

void CpuBackend::reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight, float eps,
                                     int n_tokens, int width, float* out) {
  const bool several_ranks = addend && comm && comm->world() > 1;
  const int64_t slot_stride = static_cast<int64_t>(n_slots) * width;
  // (T, D): sums of this rank's slots. Across ranks they are needed whole; otherwise a row lives between two calls below.
  float* sums = addend ? sums_.get<float>(static_cast<int64_t>(n_tokens) * width) : nullptr;
  if (several_ranks) {
    pool_.parallel_for(n_tokens,
                       [&](int64_t t, int) { simd_->sum_slots(addend + t * slot_stride, n_slots, width, sums + t * width); });
    comm->all_reduce_sum(sums, static_cast<int64_t>(n_tokens) * width);
  }
  pool_.parallel_for(n_tokens, [&](int64_t t, int) {
    float* row = residual + t * width;
    if (addend) {
      if (!several_ranks) simd_->sum_slots(addend + t * slot_stride, n_slots, width, sums + t * width);
      simd_->add(row, sums + t * width, width);
    }
    if (out) simd_->rms_norm(row, weight, eps, width, out + t * width);
  });
}

void CpuBackend::sample(const SampleArgs& args) {
  chain_starts_.clear();
  for (int row = 0; row < args.n_rows; ++row)
    if (args.rows[row].if_previous < 0) chain_starts_.push_back(row);
  pool_.parallel_for(static_cast<int64_t>(chain_starts_.size()), [&](int64_t chain, int worker) {
    int row = chain_starts_[chain];
    do sample_row(args, row, workers_[worker].sample);
    while (++row < args.n_rows && args.rows[row].if_previous >= 0);
  });
}

void CpuBackend::copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                           int64_t to_stride, int n_rows, int width) {
  // Waking the others costs more than a decode step's rows.
  constexpr int64_t kBytesAlone = 256 << 10;
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
  auto copy = [&](int64_t i, int) {
    std::memcpy(to + (to_ids ? to_ids[i] : i) * to_stride, from + (from_ids ? from_ids[i] : i) * from_stride, row_bytes);
  };
  if (n_rows * static_cast<int64_t>(row_bytes) > kBytesAlone) return pool_.parallel_for(n_rows, copy);
  for (int64_t i = 0; i < n_rows; ++i) copy(i, 0);
}

std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options) {
  if (options.compute != DType::bf16 && options.compute != DType::f32)
    throw EngineError(ErrorCode::invalid_argument,
                      std::string("compute type ") + dtype_name(options.compute) + " asked for on the CPU",
                      "use bfloat16 or float32");
  if (options.n_threads < 0 || options.n_threads > kMostThreads)
    throw EngineError(ErrorCode::invalid_argument,
                      "threads " + std::to_string(options.n_threads) + " asked for: at most " + std::to_string(kMostThreads),
                      "use 0 for as many threads as cores");
  if (options.kernels == "reference") return std::make_unique<ReferenceBackend>(options);
  choose_cpu_path(options.kernels, options.compute);  // refuse a path before threads are started
  return std::make_unique<CpuBackend>(options);
}

}  // namespace sigmoe
