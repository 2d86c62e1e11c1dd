// The CUDA backend: one device, one queue of kernels. Ops check shapes, pick a kernel and enqueue it; nothing waits for the
// device but download(), synchronize() and the end of a weight's upload.
//
// compute bf16: products in BF16 on tensor cores (weights expanded in registers), sums in float32, a BF16 KV cache.
// compute f32: the naive kernels of exact.cu and a float32 cache. Norms, router and sampler are float32 in both.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/memory.h"

namespace sigmoe::cuda {

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options);
  ~CudaBackend() override;

  const BackendInfo& info() const override { return info_; }

  DeviceBuffer alloc(size_t bytes, const char* what) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void zero(void* device, size_t bytes) override;
  void synchronize() override;
  uint64_t free_bytes() const override;
  void run_recorded(uint64_t key, const std::function<void()>& ops) override;
  void forget_recorded();  // before memory that recorded ops use is freed and its address used again

  std::unique_ptr<LinearBuilder> begin_linear(const LinearDesc& desc) override;
  std::unique_ptr<LinearWeight> random_linear(const LinearDesc& desc, uint64_t seed);  // for benchmarks

  void embed(const Tensor& table, const int32_t* ids, int n_tokens, float* out) override;
  void reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight, float eps,
                           int n_tokens, int width, float* out) override;
  void linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) override;
  void qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv, const float* q_norm,
                          const float* k_norm, float eps, const float* cos, const float* sin, const KvView& kv,
                          float* q_out) override;
  void attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv, float* out) override;
  void route(const float* x, const LinearWeight& gate, const float* bias, const RouterShape& shape, int n_tokens,
             const int32_t* forced_ids, float* logits, const Routing& out) override;
  void experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n_tokens, int width,
               float* out) override;
  void head_logits(const float* x, const int32_t* row_ids, int n_rows, const LinearWeight& lm_head, Comm* comm,
                   const std::vector<int64_t>& vocab_widths, float* logits) override;
  void sample(const SampleArgs& args) override;
  void reset_counts(uint32_t* counts_row, int vocab_size, const int32_t* prompt, int n_prompt, const int32_t* generated,
                    int n_generated) override;
  void join_norms(const float* embedding, const float* embedding_norm, const float* hidden, const float* hidden_norm, float eps,
                  int n_tokens, int width, float* out) override;
  void copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                 int64_t to_stride, int n_rows, int width) override;

  const Queue& queue() const { return queue_; }

 private:
  struct Stream {  // owns the compute or the upload stream
    Stream();
    ~Stream();
    cudaStream_t handle = nullptr;
  };

  // Device memory that grows to the largest step seen. Growing forgets recorded steps, whose kernels hold its address.
  struct Scratch {
    const char* what;
    DeviceBuffer memory{};
  };
  template <typename T>
  T* scratch(Scratch& scratch, size_t n);

  struct ExpertTable;
  const ExpertTable& table_of(const ExpertWeights& weights);
  void attention_by_rows(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv, float* out);
  void multiply(const float* x, const int32_t* row_ids, int n_rows, const WeightView& weight, float* y);
  void run_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing, int n_active,
                   int n_tokens, int n_slots, int width, float* out);

  BackendInfo info_;
  bool exact_ = false;
  bool one_attention_kernel_ = false;  // split attention for every row, so that how a prompt was cut changes no bit
  int sm_ = 0;                         // compute capability, 90 for Hopper
  Stream compute_, loading_;
  Queue queue_;
  WeightArena arena_;
  std::unique_ptr<UploadQueue> steps_, weights_;  // on the compute and the loading stream
  std::byte* landing_ = nullptr;                  // pinned: small downloads land here

  Scratch x_{"activations in BF16"}, inner_{"expert activations"}, shared_inner_{"shared expert activations"},
      partial_attention_{"attention splits"}, expanded_{"FP8 pages as BF16"}, chain_rows_{"attention rows"},
      arrivals_{"attention splits"}, partial_logits_{"router logits"}, forced_{"forced experts"},
      penalised_{"penalised logits"}, history_{"token history"}, gathered_{"sums over ranks"};

  struct Recorded {
    int n_runs = 0;
    cudaGraphExec_t graph = nullptr;
  };
  std::map<uint64_t, Recorded> recorded_;
  bool recording_ = false;
};

}  // namespace sigmoe::cuda
