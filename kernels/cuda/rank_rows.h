// A MoE layer of one row on several ranks: what few_rows.h is for one. Products of a rank's part of the weights, whose sums
// over ranks either a reduce_add_rms_norm between the kernels makes, or the kernels themselves: the one that has a part pushes
// it to all ranks as it finishes, the one behind takes all parts, residual and norm in passing. The bits are those of the ops.
#pragma once

#include "cuda/comm.h"
#include "cuda/few_rows.h"

namespace sigmoe::cuda {

constexpr int kRankWidth = limits::rank::kWidth;  // D

// The residual stream as it will be: `residual` plus what the ranks have pushed, of which `own` is this rank's.
struct RankRow {
  RowExchange exchange;
  const float* residual = nullptr;
  float* residual_out = nullptr;  // not `residual`, which all blocks read (launch_take_row: may be)
  const float* own = nullptr;
  const float* norm_weight = nullptr;
  float eps = 0.0f;
};

// Whether this build has the kernels for the device; what they take is choose_ranks.cpp's.
bool has_rank_rows();

// rank_linear.cu: qkv from a row of all ranks; attention out of a rank's heads (k 2048 or 1024) to `partial`, and to the other
// ranks when there is a `push`. Each in FP8 or BF16.
void launch_rank_qkv(const Queue& queue, const WeightView& weight, const RankRow& row, float* y);
void launch_rank_out(const Queue& queue, const WeightView& weight, const float* x, float* partial, const RowExchange* push);

// rank_router.cu: as launch_few_router, from a row of all ranks or from one that is normed already. The last takes a row for
// whoever wants it whole: residual_out, and its norm to `out`.
void launch_rank_router(const Queue& queue, const RankRow& row, const WeightView& gate, float* partial, void* normed);
void launch_rank_router(const Queue& queue, const float* row, const WeightView& gate, float* partial, void* normed);
void launch_take_row(const Queue& queue, const RankRow& row, float* out);

// rank_gate_up.cu, rank_down.cu: as launch_few_experts. Routed experts are a rank's part of each, or whole with null where
// another rank has them; the sum over slots goes to `partial` (D), and to the other ranks when there is a `push`.
void launch_rank_gate_up(const Queue& queue, const FewExperts& args);
void launch_rank_down(const Queue& queue, const FewExperts& args, float* partial, const RowExchange* push);

}  // namespace sigmoe::cuda
