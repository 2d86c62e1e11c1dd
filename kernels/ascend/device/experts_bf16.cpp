// The experts of a layer in BF16: experts.h.
#include "ascend/device/experts_entry.h"

extern "C" __global__ __aicore__ void sigmoe_experts_bf16(GM_ADDR x, GM_ADDR x_scales, GM_ADDR table, GM_ADDR expert_offsets,
                                                          GM_ADDR slot_order, GM_ADDR slot_weights, GM_ADDR work, GM_ADDR out,
                                                          sigmoe::ascend::ExpertsTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  sigmoe_cube_kernels::run_experts<bfloat16_t>({x, x_scales, table, expert_offsets, slot_order, slot_weights, work, out},
                                               tiling);
}
