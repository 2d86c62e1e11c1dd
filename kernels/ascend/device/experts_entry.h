// The stages of the experts kernel in order, for the entry of each type.
#pragma once

#include "ascend/device/experts_vector.h"

namespace sigmoe::ascend {

template <typename T>
__aicore__ inline void RunExperts(const ExpertsMemory& memory, const ExpertsTiling& tiling) {
  TPipe pipe;
  if ASCEND_IS_AIC {
    ExpertsCube<T> cube;
    cube.Init(memory, tiling, &pipe);
    cube.GateUp();
    SyncAll<false>();
    SyncAll<false>();
    cube.Down();
    SyncAll<false>();
  } else {
    ExpertsVector<T> vector;
    vector.Init(memory, tiling, &pipe);
    SyncAll<false>();
    vector.SwiGlu();
    SyncAll<false>();
    SyncAll<false>();
    vector.Weigh();
  }
}

}  // namespace sigmoe::ascend
