#include "cuda/kv_map.h"

#include <cuda_runtime.h>

#include <string>

#include "backend/backend.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {
namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                                 const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Asked of the driver at run time: the library links to no part of it.
EncodeTiled find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
#else
  CUDA_CHECK(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
  if (found != cudaDriverEntryPointSuccess)
    throw EngineError(ErrorCode::unsupported, "the NVIDIA driver has no cuTensorMapEncodeTiled",
                      "update the driver to branch 525 or newer");
  return reinterpret_cast<EncodeTiled>(function);
}

// Rows of `columns` values, in boxes of 128 bytes by box_rows rows, swizzled.
CUtensorMap rows_map(CUtensorMapDataType type, int value_bytes, const void* rows, int columns, int box_rows) {
  static const EncodeTiled encode = find_encode();
  CUtensorMap map;
  // How many pages there are is the engine's business: page tables name none that do not exist.
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), cuuint64_t{1} << 31};
  const cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(columns) * value_bytes};
  const cuuint32_t box[] = {128u / value_bytes, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result =
      encode(&map, type, 2, const_cast<void*>(rows), sizes, row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw EngineError(ErrorCode::device, "cuTensorMapEncodeTiled refused a KV cache of rows of " + std::to_string(columns) +
                                             " values with CUDA error " + std::to_string(result));
  return map;
}

}  // namespace

CUtensorMap kv_map(const void* pages, int head_dim, int box_rows) {
  return rows_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, pages, head_dim, box_rows);
}

CUtensorMap packed_map(const void* pages) { return rows_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, pages, 128, 128); }
static_assert(kPageTokens == 128);

}  // namespace sigmoe::cuda
