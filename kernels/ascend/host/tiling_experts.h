// How the experts of a layer are cut for the cores, and the workspace they need: device/args/experts.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ascend/device/args/experts.h"
#include "ascend/host/cores.h"

namespace sigmoe::ascend {

struct ExpertsShape {
  int64_t tokens = 0;         // T
  int64_t width = 0;          // D
  int64_t inner = 0;          // F of the routed experts, 0: none on this rank
  int64_t shared_inner = 0;   // F of the shared expert, 0: none on this rank
  int64_t n_experts = 0;      // E
  int64_t n_active = 0;       // A, 0: a dense MLP as the shared expert
  bool shared = false;        // there is a slot of the shared expert
  int64_t x_pitch = 0;        // elements of x from token to token
  int64_t element_bytes = 2;  // of x and the weights: 2 bf16, 1 int8, 4 float32
};

// Throws EngineError (unsupported) when the shape is past what the copies address or the vector cores hold.
ExpertsTiling make_experts_tiling(const ExpertsShape& shape, const Cores& cores);

size_t experts_work_bytes(const ExpertsTiling& tiling);

}  // namespace sigmoe::ascend
