// Compiled by target sigmoe_ascend_header_check alone: the functions that this backend declares by hand against the real
// headers. Enumerations are int32_t and handles void* here, so the two are compared parameter by parameter: size, and pointer
// or number.
#include <type_traits>

#include "acl/acl.h"
#include "aclnn/acl_meta.h"
#include "aclnnop/aclnn_matmul.h"
#include "aclnnop/aclnn_quant_matmul_v4.h"
#include "hccl/hccl.h"

template <typename A, typename B>
constexpr bool alike() {
  if constexpr (std::is_void_v<A> || std::is_void_v<B>)
    return std::is_void_v<A> && std::is_void_v<B>;
  else
    return sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B> &&
           std::is_floating_point_v<A> == std::is_floating_point_v<B>;
}

template <typename, typename>
constexpr bool same_shape = false;
template <typename R, typename... P, typename S, typename... Q>
constexpr bool same_shape<R (*)(P...), S (*)(Q...)> = [] {
  if constexpr (sizeof...(P) == sizeof...(Q))
    return alike<R, S>() && (alike<P, Q>() && ...);
  else
    return false;
}();

#define CHECK_FUNCTION(name, result, parameters) \
  static_assert(same_shape<decltype(&::name), result(*) parameters>, #name " is declared otherwise in this toolkit");
#define ACL_REQUIRED CHECK_FUNCTION
#define ACL_OPTIONAL(name, result, parameters)
#include "ascend/host/acl_functions.def"
#define HCCL_FUNCTION CHECK_FUNCTION
#include "ascend/host/hccl_functions.def"
#define ACLNN_FUNCTION CHECK_FUNCTION
#include "ascend/host/aclnn_functions.def"

CHECK_FUNCTION(aclGetDeviceCapability, int32_t, (uint32_t device, int32_t info, int64_t* value))
CHECK_FUNCTION(aclmdlRICaptureBegin, int32_t, (void* stream, int32_t mode))
CHECK_FUNCTION(aclmdlRICaptureEnd, int32_t, (void* stream, void** graph))
CHECK_FUNCTION(aclmdlRIExecuteAsync, int32_t, (void* graph, void* stream))

static_assert(sizeof(HcclRootInfo) == 4108 && HCCL_DATA_TYPE_FP32 == 4 && HCCL_REDUCE_SUM == 0);
static_assert(ACL_FLOAT == 0 && ACL_INT8 == 2 && ACL_BF16 == 27 && ACL_FORMAT_ND == 2);
static_assert(ACL_MEMCPY_HOST_TO_DEVICE == 1 && ACL_MEMCPY_DEVICE_TO_HOST == 2 && ACL_HBM_MEM == 1 &&
              ACL_MEM_MALLOC_HUGE_FIRST == 0);
static_assert(ACL_ERROR_REPEAT_INITIALIZE == 100002 && ACL_ERROR_BAD_ALLOC == 200000 && ACL_ERROR_STORAGE_OVER_LIMIT == 300000);
