# Target sigmoe_ascend_header_check: every kernel against the real AscendC headers of an installed toolkit, for vector and for cube
# cores, and the hand-declared functions against acl, hccl and aclnn. g++ and the CPU-debug branch of the headers: it proves names,
# types and signatures, not what bisheng makes of them. SIGMOE_ASCEND_HEADERS names the toolkit; nothing of it is kept here.
file(GLOB_RECURSE TIKICPULIB FOLLOW_SYMLINKS ${SIGMOE_ASCEND_HEADERS}/tikicpulib.h)
file(GLOB_RECURSE BASIC_API FOLLOW_SYMLINKS ${SIGMOE_ASCEND_HEADERS}/kernel_operator.h)
list(FILTER BASIC_API INCLUDE REGEX "/basic_api/kernel_operator.h$")
file(GLOB_RECURSE ACL_HEADER FOLLOW_SYMLINKS ${SIGMOE_ASCEND_HEADERS}/acl_rt.h)
list(FILTER ACL_HEADER INCLUDE REGEX "/include/acl/acl_rt.h$")
if(NOT TIKICPULIB OR NOT BASIC_API OR NOT ACL_HEADER)
  message(FATAL_ERROR "SIGMOE_ASCEND_HEADERS=${SIGMOE_ASCEND_HEADERS}: no tikicpulib.h, basic_api/kernel_operator.h or include/acl/acl_rt.h "
    "below it; name a toolkit such as /usr/local/Ascend/ascend-toolkit/latest")
endif()
list(GET TIKICPULIB 0 TIKICPULIB)
list(GET BASIC_API 0 BASIC_API)
list(GET ACL_HEADER 0 ACL_HEADER)
get_filename_component(TIKI_FOLDER ${TIKICPULIB} DIRECTORY)
get_filename_component(API_FOLDER ${BASIC_API} DIRECTORY)
get_filename_component(ASCENDC_FOLDER ${API_FOLDER} DIRECTORY)
get_filename_component(ACL_FOLDER ${ACL_HEADER} DIRECTORY)
get_filename_component(INCLUDE_FOLDER ${ACL_FOLDER} DIRECTORY)
set(CHECK_FLAGS -std=c++17 -fsyntax-only -w -D__CCE_KT_TEST__=1 -DASCENDC_CPU_DEBUG=1 -D__CCE_AICORE__=220 -D__DAV_C220__
  -DTILING_KEY_VAR=0 -I${TIKI_FOLDER} -I${ASCENDC_FOLDER} -I${API_FOLDER} -I${API_FOLDER}/interface -I${API_FOLDER}/impl
  -I${ASCENDC_FOLDER}/highlevel_api -I${ASCENDC_FOLDER}/highlevel_api/lib -I${ASCENDC_FOLDER}/highlevel_api/impl -I${INCLUDE_FOLDER}
  -I${INCLUDE}/ascend -include tikicpulib.h)
file(GLOB CHECKED_KERNELS CONFIGURE_DEPENDS device/*.cpp)
set(CHECKS)
foreach(kernel IN LISTS CHECKED_KERNELS)
  foreach(core VEC CUBE)
    list(APPEND CHECKS COMMAND ${CMAKE_CXX_COMPILER} ${CHECK_FLAGS} -D__DAV_C220_${core}__ ${kernel})
  endforeach()
endforeach()
file(GLOB_RECURSE ACLNN_HEADER FOLLOW_SYMLINKS ${SIGMOE_ASCEND_HEADERS}/aclnn_quant_matmul_v4.h)
list(GET ACLNN_HEADER 0 ACLNN_HEADER)
get_filename_component(ACLNN_FOLDER "${ACLNN_HEADER}" DIRECTORY)
get_filename_component(OP_API_FOLDER "${ACLNN_FOLDER}" DIRECTORY)
add_custom_target(sigmoe_ascend_header_check ${CHECKS}
  COMMAND ${CMAKE_CXX_COMPILER} -std=c++17 -fsyntax-only -I${INCLUDE_FOLDER} -I${OP_API_FOLDER} -I${INCLUDE}/ascend
    ${CMAKE_CURRENT_SOURCE_DIR}/host/header_check.cc
  VERBATIM COMMENT "Kernels and declarations against the headers of ${SIGMOE_ASCEND_HEADERS}")
