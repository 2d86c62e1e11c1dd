// How kernel route divides a step among the vector cores.
#pragma once

#include "ascend/device/args/route.h"
#include "ascend/host/cores.h"
#include "backend/backend.h"

namespace sigmoe::ascend {

// Throws unsupported for routers that the kernel does not take.
RouteTiling make_route_tiling(const RouterShape& shape, int n_tokens, int width, bool forced, const Cores& cores);

int32_t ub_bytes(const RouteTiling& tiling);
uint32_t route_blocks(const RouteTiling& tiling, const Cores& cores);

}  // namespace sigmoe::ascend
