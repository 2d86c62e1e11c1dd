// The naive CPU backend: every op as its formula reads, in float32, one loop per sum. It is the specification the fast
// kernels are tested against and what a new op is written in first. Host memory is device memory.
#pragma once

#include "backend/backend.h"
#include "cpu/host_memory.h"

namespace sigmoe {

class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(const BackendOptions& options);

  const BackendInfo& info() const override { return info_; }

  DeviceBuffer alloc(size_t bytes, const char* what) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void zero(void* device, size_t bytes) override;
  void synchronize() override {}
  uint64_t free_bytes() const override { return available_memory_bytes(); }

  std::unique_ptr<LinearBuilder> begin_linear(const LinearDesc& desc) override;

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

 protected:
  BackendInfo info_;
};

// Fills `out` from router logits (T, E): scores, group-limited choice, weights, sorted lists. Shared by every CPU path, so
// that they choose alike; reference/model.md 2.6.
void choose_experts(const float* logits, const float* bias, const RouterShape& shape, int n_tokens, const int32_t* forced_ids,
                    const Routing& out);

}  // namespace sigmoe
