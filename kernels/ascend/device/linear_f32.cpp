// y = x W^T in float32: the float32 mode. x is the activations themselves.
#include "ascend/device/linear.h"

extern "C" __global__ __aicore__ void sigmoe_linear_f32(GM_ADDR x, GM_ADDR row_ids, GM_ADDR weight, GM_ADDR y,
                                                        sigmoe::ascend::LinearTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIC_ONLY);
  AscendC::TPipe pipe;
  sigmoe_cube_kernels::linear_tiles<float>(x, row_ids, weight, y, tiling, &pipe);
}
