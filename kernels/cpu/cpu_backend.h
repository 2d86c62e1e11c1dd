// The fast CPU backend. Ops are split by file: cpu_linear.cpp (linear, head), cpu_router.cpp, cpu_experts.cpp,
// cpu_kv_store.cpp, cpu_attention.cpp; what has nothing to gain is inherited from the reference. Kernels come from tables
// (simd.h) chosen once; threads only divide work whose results do not depend on the division.
#pragma once

#include <memory>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/host_memory.h"
#include "cpu/packed_weight.h"
#include "cpu/reference.h"
#include "cpu/sample.h"
#include "cpu/simd.h"
#include "cpu/thread_pool.h"

namespace sigmoe {

// Memory that grows to the largest step seen and is used again. Contents do not survive get().
class Scratch {
 public:
  explicit Scratch(const char* what) : what_(what) {}
  template <typename T>
  T* get(int64_t n) {
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    if (bytes > memory_.bytes()) {
      memory_ = {};  // before the larger one is taken
      memory_ = allocate_host(bytes + bytes / 2, what_);
    }
    return memory_.as<T>();
  }

 private:
  const char* what_;
  DeviceBuffer memory_;
};

constexpr int64_t kRowChunk = 256;  // rows whose results wait in a thread's tile: kGroupRows floats each, 64 KiB

// How activations lie in memory for the kernels of one weight: packed k order, float32 or BF16, times a power of two.
struct ActivationForm {
  const KLayout* layout = nullptr;
  bool bf16 = false;
  float scale = 1.0f;
  // One line more than the values: rows a power of two apart would all fall on the same cache lines.
  int64_t row_bytes() const { return layout->packed_k * (bf16 ? 2 : 4) + 64; }
  bool padded() const { return layout->packed_k != layout->k; }
  bool operator==(const ActivationForm&) const = default;
};

class CpuBackend : public ReferenceBackend {
 public:
  explicit CpuBackend(const BackendOptions& options);

  DeviceBuffer alloc(size_t bytes, const char* what) override { return allocate_host(bytes, what); }
  std::unique_ptr<LinearBuilder> begin_linear(const LinearDesc& desc) override;

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
  void copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                 int64_t to_stride, int n_rows, int width) override;

 private:
  enum class Products { fastest, f32 };

  ActivationForm form_of(const PackedWeight& weight, Products products) const;
  GemmFn gemm_of(const PackedWeight& weight, const ActivationForm& form) const;
  // Values of k in [first, first + n) of one row to their packed places.
  void write_activations(const ActivationForm& form, const float* values, int64_t first, int64_t n, std::byte* row) const;
  // Rows row_ids (null: 0, 1, ...) of x to `out`, row by row in packed order.
  void lay_out_rows(const ActivationForm& form, const float* x, const int32_t* row_ids, int64_t n_rows, std::byte* out);
  // y (n_rows, n) = rows of x times weight^T.
  void multiply(const float* x, const int32_t* row_ids, int64_t n_rows, const PackedWeight& weight, Products products,
                float* y);

  // One expert of a step and the rows that go through it. Rows of all experts are numbered through: first the routed
  // (token, choice) slots in the order of Routing::slot_order, then the tokens of the shared expert.
  struct ExpertTask {
    const PackedWeight *gate_up, *down;
    int64_t first_row, n_rows;
    const std::byte* x;  // all tokens in `in` form
    ActivationForm in, inner;
    std::byte* inner_rows = nullptr;  // (n_rows) silu(gate) * up in `inner` form
  };
  // Where a row's result goes: slot of the output, and the weight it counts with.
  struct ExpertStep {
    const Routing& routing;
    int n_active, n_tokens, n_slots, width;
    float* out;
  };
  void run_gate_up(const ExpertStep& step, const ExpertTask& task, int64_t group, int worker);
  void run_down(const ExpertStep& step, const ExpertTask& task, int64_t group, int worker);

  // Some tokens of one sequence, the heads of one KV head, and a range of page groups.
  struct AttentionItem {
    int seq, first_token, n_tokens, kv_head, first_group, n_groups;
    int64_t partial;  // first row in the partial results; -1: all groups are here, write the output
  };
  struct AttentionStep;
  void attend(const AttentionStep& step, const AttentionItem& item, int worker);
  void fold_partials(const AttentionStep& step, int64_t first_item);
  void write_row(const AttentionStep& step, const AttentionItem& item, int row, const float* values, float sum) const;

  // Per thread: what a gemm call needs, and rows of its results.
  struct Worker {
    DeviceBuffer gemm_scratch;
    Scratch tile{"kernel scratch"};
    SampleScratch sample;
  };

  const SimdKernels* simd_ = nullptr;
  const GemmFn* bf16_gemm_ = nullptr;      // by line format; null: products in float32
  const GemmFn* odd_bf16_gemm_ = nullptr;  // likewise, for k that is not a multiple of kSegmentUnit
  ThreadPool pool_;
  std::vector<Worker> workers_;
  SlabArena arena_;
  KLayouts layouts_;

  Scratch rows_{"activation scratch"}, row_pointers_{"activation scratch"}, inner_{"expert scratch"},
      sums_{"activation scratch"}, part_logits_{"logits scratch"}, queries_{"attention scratch"},
      partials_{"attention scratch"}, chunk_lists_{"router scratch"};
  std::vector<ExpertTask> tasks_;
  struct ExpertPiece {
    int32_t task, first_group, end_group;
  };
  std::vector<ExpertPiece> expert_pieces_;
  // Tokens of one sequence that lie in one page: rows [first, first + n) of the step.
  struct PageRun {
    int seq, first, n;
  };
  std::vector<PageRun> page_runs_;
  std::vector<AttentionItem> attention_items_;
  std::vector<int> chain_starts_;  // rows to sample that are the first of their chain
};

inline const PackedWeight& packed(const LinearWeight& weight) { return static_cast<const PackedWeight&>(weight); }

}  // namespace sigmoe
