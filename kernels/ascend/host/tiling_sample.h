// How kernel sample divides rows among the vector cores, and the workspace it needs.
#pragma once

#include "ascend/device/args/sample.h"
#include "ascend/host/cores.h"
#include "backend/backend.h"

namespace sigmoe::ascend {

SampleTiling make_sample_tiling(int n_rows, int vocab_size);

int32_t ub_bytes(const SampleTiling& tiling);
uint32_t sample_blocks(const SampleTiling& tiling, const Cores& cores);
size_t sample_workspace_bytes(const SampleTiling& tiling, const Cores& cores);

}  // namespace sigmoe::ascend
