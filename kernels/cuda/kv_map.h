// The cache of a layer as the tensor copy engine addresses it.
#pragma once

#include <cuda.h>

namespace sigmoe::cuda {

// K or V of all pages as rows of head_dim BF16 values (row = (page * G + head) * P + token), read in boxes of 64 columns and
// box_rows rows, swizzled over 128 bytes. Throws EngineError when the driver cannot make one.
CUtensorMap kv_map(const void* pages, int head_dim, int box_rows);

// K or V as launch_pack_pages leaves it, in boxes of a page of a KV head: 128 rows of 128 codes.
CUtensorMap packed_map(const void* pages);

}  // namespace sigmoe::cuda
