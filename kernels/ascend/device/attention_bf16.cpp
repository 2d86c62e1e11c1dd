// Attention over a BF16 cache: attention.h.
#include "ascend/device/attention_cube.h"
#include "ascend/device/attention_merge.h"
#include "ascend/device/attention_vector.h"

extern "C" __global__ __aicore__ void sigmoe_attention_bf16(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR positions,
                                                            GM_ADDR seq_offsets, GM_ADDR page_tables, GM_ADDR work, GM_ADDR out,
                                                            GM_ADDR shadow, GM_ADDR scales,
                                                            sigmoe::ascend::AttentionTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  using namespace sigmoe_cube_kernels;
  const AttentionMemory memory{q, k, v, positions, seq_offsets, page_tables, work, out, shadow, scales};
  AscendC::TPipe pipe;
  if ASCEND_IS_AIC {
    AttentionCube cube;
    cube.init(memory, tiling, &pipe);
    AscendC::SyncAll<false>();
    cube.process();
    AscendC::SyncAll<false>();
  } else {
    AttentionBuffers buffers;
    buffers.init(&pipe);
    AttentionVector vector;
    vector.init(memory, tiling, &buffers);
    vector.narrow_queries();
    AscendC::SyncAll<false>();
    vector.process();
    AscendC::SyncAll<false>();
    AttentionMerge merge;
    merge.init(memory, tiling, &buffers);
    merge.process();
  }
}
