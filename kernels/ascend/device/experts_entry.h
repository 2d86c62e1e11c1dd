// The stages of the experts kernel in order, for the entry of each type.
#pragma once

#include "ascend/device/experts_vector.h"

namespace sigmoe_cube_kernels {

template <typename T>
__aicore__ inline void run_experts(const ExpertsMemory& memory, const ExpertsTiling& tiling) {
  TPipe pipe;
  if ASCEND_IS_AIC {
    ExpertsCube<T> cube;
    cube.init(memory, tiling, &pipe);
    cube.gate_up();
    SyncAll<false>();
    SyncAll<false>();
    cube.down();
    SyncAll<false>();
  } else {
    ExpertsVector<T> vector;
    vector.init(memory, tiling, &pipe);
    SyncAll<false>();
    vector.swiglu();
    SyncAll<false>();
    SyncAll<false>();
    vector.weigh();
  }
}

}  // namespace sigmoe_cube_kernels
