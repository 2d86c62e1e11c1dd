// Which kernel takes an op: pure functions of the device, the options, the shape and the number of rows. Launches go by what
// these return and `sigmoe bench` prints it, so that nothing falls back to a slower kernel unsaid. No CUDA in here: the choices
// are tested on any machine (test/native/test_kernel_choice.cpp).
//
// A kernel that has a range (a card, a format, so many rows) either takes an op of it or refuses it for a reason. What then
// runs is a fallback.
#pragma once

#include <string>

#include "backend/backend.h"

#ifdef __CUDACC__
#define SIGMOE_HOST_DEVICE __host__ __device__
#else
#define SIGMOE_HOST_DEVICE
#endif

namespace sigmoe::cuda {

enum class Kernel : uint8_t {
  none,
  ops,  // the ops of a layer one by one, where a kernel does several at once
  exact_linear,
  early_linear,
  held_linear,
  stream_gemm,
  gemm_few,
  gemm_wide,
  tensor_gemm,
  tensor_split,
  mma_gemm,
  exact_experts,
  narrow_experts,
  exact_attention,
  few_attention,
  split_attention,
  chain_attention,
  prefill_attention,
  fp8_prefill,
  mma_attention,
  qk_store,
  qk_store_many,
  row_norm,
  any_norm,
  norm_many,
  route_logits,
  route_tensor,
  normed_linear,
  adding_linear,
  few_experts,
  rank_linear,
  rank_experts,
  many_reduce,
  one_shot_reduce,
  two_shot_reduce,
  nccl,
  host_sum,
};
const char* kernel_name(Kernel kernel);

enum class Reason : uint8_t {
  none,
  float32_mode,
  deterministic,
  mma_asked,  // BackendOptions::kernels
  no_hopper,  // the card is none, or the build has no code for it
  format,
  kv_format,
  scales,  // cut otherwise than the kernel can apply them
  unlike,  // weights of several formats or shapes where the kernel takes one
  multiple,
  exactly,
  at_most,
};

struct Refusal {
  Reason reason = Reason::none;
  const char* what = "";  // the dimension that multiple, exactly and at_most speak of
  int found = 0, wanted = 0;
  WeightFormat format = WeightFormat::f32;  // of Reason::format
};
std::string refusal_text(const Refusal& refusal);  // "k 192 is no multiple of 128"

struct KernelChoice {
  Kernel kernel = Kernel::none;
  Kernel meant = Kernel::none;  // of a fallback: the kernel that refused
  Refusal refusal;
  bool is_fallback() const { return refusal.reason != Reason::none; }
};

// What a backend was opened on, and how.
struct Facts {
  int sm = 0;            // compute capability, 90 for Hopper; 80 on a Hopper that runs the kernels of older cards
  bool overlap = false;  // a kernel can start while the one before it drains: compute capability 9.0 and newer
  int n_sms = 0;
  int shared_bytes = 0;        // of an SM
  bool exact = false;          // the float32 mode
  bool deterministic = false;  // few-row kernels at every row count: the same bits whatever else is in a step
  bool fp8_prefill = false;    // asked for: attention of prompts in FP8
  bool before_hopper = false;  // asked for: kernels of many rows as on older cards
  // Whether this build has the kernels for the card.
  bool has_early = false, has_held = false, has_stream = false, has_tensor = false, has_few_experts = false,
       has_rank_rows = false;

  bool mma_rows() const { return !deterministic && !exact; }
  bool many_rows() const { return mma_rows() && !before_hopper && has_tensor; }
};

// ---- weights

constexpr int kGroup = 128;  // k is walked in groups of this many

// A WeightView without its pointers.
struct WeightShape {
  int n = 0, k = 0;
  int n_tiles = 0, n_groups = 0;
  int scale_columns = 0;
  uint8_t row_shift = 0, k_shift = 0;
  WeightFormat format = WeightFormat::bf16;
  bool gate_up = false;
  bool operator==(const WeightShape&) const = default;
};
// Of a weight of this desc kept in `format`, but for its scales.
WeightShape tiles_of(const LinearDesc& desc, WeightFormat format);

// ---- products of few rows: early_linear.cu, held_linear.cu, stream_gemm.cu, gemm_few.cu, gemm_wide.cu

enum class GemmMode : int {
  linear,   // y (T, n) f32 = x W^T
  gate_up,  // inner (rows, F) bf16 = silu(gate x) * up x
  down,     // out (T, slots, D) f32 = weight * (inner W^T)
};

struct GemmShape {
  GemmMode mode = GemmMode::linear;
  int n_tokens = 0, n_experts = 0;
  bool has_dense = false;
  WeightShape dense, routed;  // routed.n 0: absent
};
KernelChoice choose_gemm(const Facts& facts, const GemmShape& gemm, bool x_is_float);

// True when a product of n_tokens rows takes f32 activations as they are; more are converted once, before.
bool reads_float(int n_groups, int n_tokens);

// Warps or blocks that share a tile: the same at every number of tokens, so that sums keep their order.
SIGMOE_HOST_DEVICE constexpr int slices_for(int n_groups) { return n_groups >= 32 ? 4 : n_groups >= 16 ? 2 : 1; }

// Of gemm_few.cu: elements of a token's activations in shared memory: all of k, zeros up to whole groups, and 64 bytes more, so
// that the eight tokens' rows spread over the banks.
SIGMOE_HOST_DEVICE constexpr int staged_stride(int n_groups) { return n_groups * kGroup + 32; }

namespace limits::early {
constexpr int kWarps = 4, kBlocksPerSm = 3, kMostTokens = 4;
constexpr int kGroups = 32;  // of k: 4096
// Of a warp: its slice of the weights, then of the activations, each token with 64 bytes more.
constexpr int warp_bytes(int n_tokens) {
  return kGroups / kWarps * 16 * kGroup + n_tokens * (kGroups / kWarps * kGroup + 32) * 2;
}
}  // namespace limits::early

namespace limits::held {
constexpr int kTokens = 8, kLeastTokens = 5, kMostTokens = 23;
constexpr int kSliceGroups = 8, kSliceK = kSliceGroups * kGroup;  // of k, held by a warp
constexpr int kSmWarps = 12;                                      // in blocks of 4 or of 12
}  // namespace limits::held
struct HeldBlocks {
  int warps = 0;  // of a block; 0: the weight does not fit the device
  int tiles = 0;  // of W in a block
};
HeldBlocks held_blocks(int n_sms, const WeightShape& weight, int n_tokens);

namespace limits::stream {
constexpr int kTokens = 8;  // of a block of them
constexpr int kLeastTokens = 2, kMostRouted = 48, kMaxExperts = 1024;
constexpr int kLeastDenseTiles = 4096;                  // fewer do not keep the walkers busy
constexpr size_t kMostSharedBytes = size_t{220} << 10;  // of an SM, less what the kernel declares
constexpr int depth(WeightFormat format) { return format == WeightFormat::fp8 ? 4 : 2; }
constexpr int kItemBytes = 16 + 2 * 4;  // of the lists: an expert's two pointers, two counts
constexpr int lists_bytes(int n_items) { return n_items * kItemBytes + 4; }
constexpr int x_stride(int k) { return k * 2 + 64; }  // eight tokens' 16 bytes then lie in different banks
}  // namespace limits::stream

constexpr int kFewTokens = 8;    // a tensor-core operand of them
constexpr int kFloatTokens = 2;  // as many are converted while they are staged; more are cheaper to convert once, before

// ---- products of many rows: tensor_gemm.cu, tensor_split.cu, mma_gemm.cu, narrow_experts.cu

// Steps of this many rows take Hopper's kernels. Which kernels run depends on the rows of the whole step alone, never on how
// many meet one expert. Below, those of gemm.h read weights as fast and keep activations in BF16.
constexpr int kManyRows = 24;        // of linear layers and the head
constexpr int kManyExpertRows = 48;  // of expert layers
// Likewise those of mma_gemm.h, where Hopper's cannot run: another class, for a row's sums run over k in one go.
constexpr int kMmaRows = 128;
constexpr int kMmaExpertRows = 256;
constexpr int kMostNarrowRows = 256;  // of a step; more are sooner done by tensor_gemm.h's kernels, which give the same bits

// From here on a linear layer is tensor_gemm.cu's, whatever its shape, and what a layer's ops hand on to the next one is BF16
// (brief_rows.h): half the bytes, where a step is long enough for them to count.
constexpr int kBriefRows = 1024;

// Blocks that divide k in a linear of tensor_split.cu; 1: it takes tensor_gemm.cu.
constexpr int kSplitTiles = 8;  // of W to a block
constexpr int kMostSplits = 4;
int tensor_splits(int n_sms, const WeightShape& weight, int n_rows);

// narrow_experts.cu: tiles of W that a block takes at once, groups of k on their way, and the most there may be.
namespace limits::narrow {
constexpr int kPlaceRows = 256, kDepth = 4, kMostGroups = 32, kMostExperts = 1024;
}

// Classes of kernels: a row's bits are the same within one.
enum class RowClass : uint8_t { exact, few, mma, tensor };

// Of RowClass::few the kernel is choose_gemm's: take both by `with`.
struct ClassChoice {
  RowClass rows = RowClass::few;
  Kernel meant = Kernel::none;
  Refusal refusal;
  KernelChoice with(const KernelChoice& inner) const;  // a fallback of either is one
};
ClassChoice choose_linear(const Facts& facts, const WeightShape& weight, int n_rows);

struct ExpertShapes {
  int n_active = 0;           // 0: the shared expert alone
  bool uniform = true;        // all experts have one shape
  WeightShape gate_up, down;  // theirs; n 0: this rank has none of them
  bool has_shared = false;
  WeightShape shared_gate_up, shared_down;
};
ClassChoice choose_experts(const Facts& facts, const ExpertShapes& experts, int n_tokens);
// Of RowClass::tensor. routed false: only the shared expert.
KernelChoice choose_many_experts(const WeightShape& gate_up, const WeightShape& down, bool routed, int n_experts, int n_tokens);

// ---- attention, norms, router

// Most rows of a sequence in a step that count as decoding: a token and the longest chain of drafts.
constexpr int kMostChainRows = 16;
constexpr int kSplitGroupHeads = 16;   // query heads that share a KV head: rows of one tensor-core operand
constexpr int kHopperGroupHeads = 64;  // of chain_attention and prefill_attention
constexpr int kTableSeqs = 512;        // sequences that a launch of the two looks up
constexpr int kMmaGroupHeads = 128;    // of mma_attention
constexpr int kManyRouterRows = 64;    // steps of this many rows take the tensor cores

// A step has rows of sequences that decode (few) and of sequences that read prompts (many), or one of both.
struct AttentionChoice {
  KernelChoice few, many;  // Kernel::none: no rows of the kind. Both none: no kernel has such a cache
  // prefill_attention or fp8_prefill
  bool reads_prompts_on_hopper() const {
    return many.kernel == Kernel::prefill_attention || many.kernel == Kernel::fp8_prefill;
  }
};
AttentionChoice choose_attention(const Facts& facts, int n_tokens, int n_seqs, const AttentionShape& shape, DType kv_dtype);

KernelChoice choose_qk_store(const Facts& facts, int n_tokens, const AttentionShape& shape, DType kv_dtype);

// packs: the next product reads packed rows, which only norm_many writes.
KernelChoice choose_norm(const Facts& facts, int n_tokens, int width, bool packs);
constexpr int kMostNormGroups = 32;    // of norm_many: widths up to 4096
constexpr int kMostNormWidth = 16384;  // of row_norm
constexpr bool norm_has_twin(int width) { return width % 4 == 0 && width <= kMostNormWidth; }

KernelChoice choose_route(const Facts& facts, const WeightShape& gate, int n_tokens);

// ---- several ranks: sums over them, and a layer of one row between them (rank_layer.cpp)

// How ranks reach each other.
struct RankFacts {
  enum class Way : uint8_t { host, nccl, peer_memory };
  Way way = Way::host;
  int world = 1;
  bool all_hopper = false;
};
// With the residual and the norm of the sum. The same on all ranks.
KernelChoice choose_sum(const Facts& facts, const RankFacts& ranks, int n_tokens, int width);
// Rows up to which one shot takes less time than two, by the size of the world. Measured on H200; `sigmoe_cuda_comm_bench`.
constexpr int best_one_shot_rows(int world) { return world <= 2 ? 32 : world <= 4 ? 16 : 8; }

// Of one row. behind_sum: qkv, whose row is that of all ranks; otherwise attention out.
KernelChoice choose_rank_linear(const Facts& facts, const WeightShape& weight, bool behind_sum);
KernelChoice choose_rank_experts(const Facts& facts, const ExpertShapes& experts, const WeightShape& gate,
                                 const RouterShape& router);

// ---- a layer of up to four rows on Hopper (few_layer.cpp): Kernel::ops where its parts go one by one

bool takes_decode_layer(const Facts& facts, int n_tokens);
KernelChoice choose_normed_linear(const Facts& facts, const WeightShape& weight, int n_tokens, int n_pending);
KernelChoice choose_adding_linear(const Facts& facts, const WeightShape& weight, int n_tokens);
KernelChoice choose_few_attention(const Facts& facts, const BatchView& batch, const AttentionShape& shape, DType kv_dtype);
KernelChoice choose_few_experts(const Facts& facts, const ExpertShapes& experts, bool complete, const WeightShape& gate,
                                const RouterShape& router, int n_tokens, int n_pending);

namespace limits::few {
constexpr int kWidth = 4096, kInner = 1024;
constexpr int kExperts = 256, kGroups = 8, kGroupsKept = 4, kActive = 8;
constexpr int kHeadDim = 128, kRotaryDim = 64, kMostHeads = 8, kMostPages = 64;
}  // namespace limits::few

namespace limits::rank {
constexpr int kWidth = 4096, kSliceGroups = 8, kSliceK = kSliceGroups * kGroup;
// What a rank can have of the experts: their width, and that of the shared one.
struct Part {
  WeightFormat format;
  int routed, shared;
};
inline constexpr Part kParts[] = {{WeightFormat::fp8, 512, 512},  {WeightFormat::fp8, 256, 256},
                                  {WeightFormat::fp8, 1024, 512}, {WeightFormat::fp8, 1024, 256},
                                  {WeightFormat::bf16, 512, 512}, {WeightFormat::bf16, 256, 256}};
}  // namespace limits::rank

}  // namespace sigmoe::cuda
