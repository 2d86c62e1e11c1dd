// y = x W^T in BF16 with float32 sums. x is the backend's BF16 copy of the activations.
#include "ascend/device/linear.h"

extern "C" __global__ __aicore__ void sigmoe_linear_bf16(GM_ADDR x, GM_ADDR row_ids, GM_ADDR weight, GM_ADDR y,
                                                         sigmoe::ascend::LinearTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIC_ONLY);
  AscendC::TPipe pipe;
  sigmoe_cube_kernels::linear_tiles<bfloat16_t>(x, row_ids, weight, y, tiling, &pipe);
}
