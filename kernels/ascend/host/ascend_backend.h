// The Ascend backend: ops to kernels on one stream, over an NPU or its CPU twin. Ops check shapes, fill a tiling and enqueue;
// nothing waits for the device but download() and synchronize().
//
// compute bf16: products in BF16, sums in float32. i8: W8A8, weights with a scale per output channel, activations with one per
// row, made as they are produced. f32: everything in float32. Norms, router and sampler are float32 in all three. The KV cache
// is BF16, float32 in the last.
//
// The cube multiplies narrow copies of the float rows that ops exchange. Whoever makes rows that a product will read writes the
// copy beside them, a shadow; a product of other rows converts them first. In decode a layer of experts is 8 launches:
// norm, qkv, heads (norm, RoPE, KV), attention, attention out, norm, route, experts.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "ascend/device/args/add_rms_norm.h"
#include "ascend/host/aclnn.h"
#include "ascend/host/collectives.h"
#include "ascend/host/device.h"
#include "ascend/host/weights.h"
#include "backend/backend.h"

namespace sigmoe::ascend {

class AscendBackend : public Backend {
 public:
  AscendBackend(const Runtime& runtime, const BackendOptions& options);
  ~AscendBackend() override;

  const BackendInfo& info() const override;

  DeviceBuffer alloc(size_t bytes, const char* what) override { return device_.alloc(bytes, what); }
  void upload(void* device, const void* host, size_t bytes) override { device_.upload(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { device_.download(host, device, bytes); }
  void zero(void* device, size_t bytes) override { device_.zero(device, bytes); }
  void synchronize() override { device_.synchronize(); }
  uint64_t free_bytes() const override { return device_.free_bytes(); }
  void run_recorded(uint64_t key, const std::function<void()>& ops) override;

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

  const Device& device() const { return device_; }

 private:
  // Device memory that grows to the largest step seen. Growing forgets recorded steps, whose kernels hold its address.
  struct Scratch {
    const char* what;
    DeviceBuffer memory{};
  };
  void grow(Scratch& scratch, size_t bytes);
  template <typename T>
  T* scratch(Scratch& scratch, size_t n) {
    grow(scratch, n * sizeof(T));
    return scratch.memory.template as<T>();
  }

  // What the cube reads in place of float rows.
  struct Operand {
    const void* rows = nullptr;
    const float* scales = nullptr;  // INT8: of each row
    int64_t pitch = 0;              // elements from row to row
  };
  // The narrow copy of rows that an op left behind for the next product. Gone once anything writes those rows again.
  struct Shadow {
    Scratch rows, scales;
    const float* source = nullptr;  // null: there is none
    int64_t n_rows = 0, width = 0;
    DType dtype = DType::bf16;
  };
  ShadowKind begin_shadow(Shadow& shadow, const float* source, int64_t n_rows, int64_t width);
  void wrote(const float* rows, int64_t n);  // shadows of what lies there are stale
  void drop_shadows();
  Operand operand(const float* x, const int32_t* row_ids, int n_rows, int64_t width, DType dtype);
  void convert(const void* from, int from_type, const int32_t* from_ids, int64_t from_stride, void* to, int to_type,
               const int32_t* to_ids, int64_t to_stride, float* scales, int n_rows, int width);
  void norm(float* residual, const float* addend, int n_slots, const float* weight, float eps, int n_tokens, int width,
            float* out, int64_t out_stride, Shadow* shadow);
  void multiply(const Operand& x, const AscendWeight& weight, int n_rows, float* y);
  Collectives& collectives(Comm& comm);

  struct ExpertTable;
  const ExpertTable& table_of(const ExpertWeights& weights);

  mutable Device device_;
  mutable BackendInfo info_;
  RequantisationReport requantisation_;
  DType compute_;
  std::unique_ptr<AclnnProducts> aclnn_;      // null: our own kernels do all
  std::unique_ptr<Collectives> collectives_;  // once a world has met

  Shadow norm_shadow_{{"narrow activations"}, {"activation scales"}},
      attended_shadow_{{"narrow activations"}, {"activation scales"}};
  Scratch narrow_{"narrow activations"}, narrow_scales_{"activation scales"}, gathered_{"sums over ranks"},
      forced_{"forced experts"}, aclnn_out_{"results of aclnn"}, workspace_{"kernel workspace"};
};

}  // namespace sigmoe::ascend
