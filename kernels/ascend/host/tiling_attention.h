// How attention is cut for the cores, and the workspace it needs: device/args/attention.h.
#pragma once

#include <cstddef>

#include "ascend/device/args/attention.h"
#include "ascend/host/cores.h"

namespace sigmoe::ascend {

struct AttentionWork {
  int64_t tokens = 0, seqs = 0, max_pages = 0;  // T, B, columns of page_tables
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  ShadowKind shadow = kNoShadow;  // the narrow copy of out to write
  int64_t shadow_pitch = 0;       // elements of it from row to row
};

// Throws EngineError (unsupported) for heads that the kernels cannot hold.
AttentionTiling make_attention_tiling(const AttentionWork& work, const Cores& cores);

size_t attention_work_bytes(const AttentionTiling& tiling);

}  // namespace sigmoe::ascend
