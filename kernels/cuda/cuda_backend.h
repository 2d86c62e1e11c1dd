// The CUDA backend: one device, one queue of kernels. Ops check shapes, pick a kernel and enqueue it; nothing waits for the
// device but download(), synchronize() and the end of a weight's upload.
//
// compute bf16: products on tensor cores, in BF16 (weights expanded in registers) or, in large steps on Hopper, FP8 by FP8;
// sums in float32, a KV cache in BF16 or FP8. compute f32: the naive kernels of exact.cu and a float32 cache. Norms, router and
// sampler are float32 in both.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/bench_device.h"
#include "backend/decode_layer.h"
#include "cuda/brief_rows.h"
#include "cuda/comm.h"
#include "cuda/few_rows.h"
#include "cuda/gemm.h"
#include "cuda/kernel_choice.h"
#include "cuda/launch.h"
#include "cuda/memory.h"
#include "cuda/mma_gemm.h"
#include "cuda/ops.h"
#include "cuda/split_attention.h"
#include "cuda/tensor_gemm.h"

namespace sigmoe::cuda {

constexpr int kMostTwinTokens = 128;  // of BF16 twins; longer steps quantise or convert for themselves

class CudaBackend : public Backend, public DecodeLayers {
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
  void start_download(int place, const void* device, size_t bytes) override;
  std::byte* finish_download(int place) override;
  void join(Comm& comm) override;
  void run_recorded(uint64_t key, const std::function<void()>& ops) override;
  std::unique_ptr<BenchDevice> bench_device() override;
  bool records_steps() const override { return true; }
  bool would_replay(uint64_t key) const override;
  void mark(int index) override;
  double ms_between(int first, int second) const override;
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

  bool decode_layer(const DecodeLayer& layer, int& n_pending) override;

  const Queue& queue() const { return queue_; }
  DeviceWorld* world() const { return world_.get(); }
  const Facts& facts() const { return facts_; }

  // Off: the kernels of few rows at every number of rows, as deterministic has them.
  void use_many_row_kernels(bool on) { facts_.deterministic = !on; }

  // Every kernel chosen from here on goes to the list; null: to none.
  void list_choices(std::vector<BenchDevice::Choice>* list) { choices_ = list; }

 private:
  void copy_by_kernel(const void* from, void* to, size_t bytes);
  void enter() const;  // before the runtime is asked for anything: any thread may call, with any GPU as its own

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
  T* scratch(Scratch& scratch, size_t n) {
    const size_t bytes = n * sizeof(T);
    if (bytes > scratch.memory.bytes()) {
      SIGMOE_CHECK(!recording_, "scratch memory must have grown before a step is recorded");
      forget_recorded();
      scratch.memory = {};
      scratch.memory = alloc(bytes + bytes / 4, scratch.what);
    }
    return scratch.memory.template as<T>();
  }
  SplitScratch split_scratch(const BatchView& batch, const AttentionShape& shape, int n_rows);

  // The copy that the last norm or attention wrote beside its output, for the products that read it next, in BF16 or, of many
  // rows, packed: they find it by the address of the float rows. Every op that writes floats gives them up first (writes()),
  // and so do the ends of a recorded step, because a replay sees only what it recorded.
  struct Twin {
    const float* rows = nullptr;  // (n_rows, width)
    int n_rows = 0, width = 0;
    const void* bf16 = nullptr;
    PackedRows packed;  // for weights of `format`
    WeightFormat format = WeightFormat::bf16;
  };
  void writes(const void* address);
  const void* twin_of(const float* x, int n_rows, int width) const;                        // null: there is none
  const PackedRows* packed_twin_of(const float* x, int n_rows, const WeightView& weight);  // likewise
  const void* to_bf16(const float* x, const int32_t* row_ids, int n_rows, int width);

  void leave_brief(float* out, size_t n, float factor = 1.0f) { brief_->leave({out, n, factor}); }
  bool is_brief(const void* rows) { return brief_->begins(rows); }
  void floats(const void* address);

  // One row of partial results that the kernel which made them has pushed to the other ranks, and where the residual stream is
  // meanwhile: the sum over ranks is due, by the next layer or by reduce_add_rms_norm.
  struct Pushed {
    const float* partial = nullptr;
    float* residual = nullptr;
    RowExchange exchange;
  };
  struct RowExperts {
    FewExperts few;
    float* logits = nullptr;  // few.partial
    void* normed = nullptr;   // few.normed
  };
  bool rank_layer(const DecodeLayer& layer, int& n_pending);
  void pushing_layer(const DecodeLayer& layer, const RowExperts& experts, int& n_pending);
  std::optional<RowExperts> rank_experts(const DecodeLayer& layer);
  bool ranks_push(const DecodeLayer& layer, bool takes_experts);

  // The experts of a layer as kernels find them.
  struct ExpertTable {
    std::vector<const LinearWeight*> gate_up, down;  // what the table was made of
    WeightView gate_up_shape, down_shape;            // of all experts, when uniform; pointers null
    bool uniform = true, complete = true;            // every expert has that shape; none is missing
    DeviceBuffer gate_up_tiles, down_tiles;          // (E) ExpertTiles
    DeviceBuffer gate_up_views, down_views;          // (E) WeightView
  };
  const ExpertTable& table_of(const ExpertWeights& weights);
  // few_layer.cpp: parts of a layer that one GPU and ranks run alike.
  void attend_few(const DecodeLayer& layer);
  RowExperts row_experts(const DecodeLayer& layer, const ExpertTable& table);
  void attention_by_rows(const BatchView& batch, const AttentionShape& shape, const AttentionChoice& choice, const float* q,
                         const KvView& kv, float* out);
  void attend_prompts(const BatchView& batch, const AttentionShape& shape, bool in_fp8, const float* q, const KvView& kv,
                      float* out);
  void multiply(const char* op, const float* x, const int32_t* row_ids, int n_rows, const WeightView& weight, float* y,
                bool may_be_brief = false);
  void run_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing, int n_active,
                   int n_tokens, int n_slots, int width, const ClassChoice& rows, float* out);

  PackedRows packed_rows(Scratch& data, Scratch& scales, const WeightView& weight, int n_rows);
  void note(const char* op, int n_rows, const KernelChoice& choice);
  static ExpertShapes shapes_of(const ExpertWeights& weights, const ExpertTable& table, int n_active);
  void run_narrow_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing,
                          bool shared, int n_active, int n_tokens, int n_slots, float* out);
  void run_many_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing,
                        bool routed, bool shared, int n_active, int n_tokens, int n_slots, float* out);
  void run_mma_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing,
                       bool routed, bool shared, int n_active, int n_tokens, int n_slots, float* out);

  BackendInfo info_;
  Facts facts_;
  std::vector<BenchDevice::Choice>* choices_ = nullptr;
  int device_ = 0;
  Stream compute_, loading_;
  Queue queue_;
  WeightArena arena_;
  std::unique_ptr<UploadQueue> steps_, weights_;  // on the compute and the loading stream
  std::byte* landing_ = nullptr;                  // pinned: small downloads land here
  struct Landing {
    std::byte* host = nullptr;  // pinned
    cudaEvent_t landed = nullptr;
  };
  std::array<Landing, kDownloads> landings_{};

  Twin twin_;
  std::shared_ptr<BriefList> brief_ = std::make_shared<BriefList>();  // buffers see to it, too
  Pushed pushed_;
  std::map<const LinearWeight*, bool> ranks_push_;  // by a layer's router
  std::optional<WeightFormat> packs_;  // the format of the last weight that met many rows: what the next norm packs for
  Scratch x_{"activations in BF16"}, normed_{"activations in BF16"}, inner_{"expert activations"},
      shared_inner_{"shared expert activations"}, partial_attention_{"attention splits"},
      expanded_{"pages as attention of prompts reads them"}, chain_rows_{"attention rows"}, arrivals_{"attention splits"},
      partial_logits_{"router logits"}, router_arrivals_{"router logits"}, packed_{"packed activations"},
      packed_normed_{"packed activations"}, normed_scales_{"activation scales"}, packed_scales_{"activation scales"},
      packed_inner_{"packed expert activations"}, inner_scales_{"expert activation scales"}, row_tiles_{"expert row tiles"},
      forced_{"forced experts"}, penalised_{"penalised logits"}, group_bests_{"penalised logits"}, history_{"token history"},
      gathered_{"sums over ranks"}, slot_sums_{"sums over slots"}, spare_residual_{"residual stream"};

  struct Recorded {
    int n_runs = 0;
    cudaGraphExec_t graph = nullptr;
    BriefList::Recording brief;  // what a replay does to brief_, and what it has to find there
  };
  std::map<uint64_t, Recorded> recorded_;
  std::array<cudaEvent_t, kMarks> marks_{};
  bool recording_ = false;

  std::unique_ptr<DeviceWorld> world_;  // null: one rank, or ranks that meet through the host
  bool meets_on_host_ = false;
};

}  // namespace sigmoe::cuda
