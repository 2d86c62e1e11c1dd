# libsigmoe_ascend_kernels.so for the NPU, with the toolkit that SIGMOE_ASCEND_CANN names. Nobody has run this yet: README.md.
# Per kernel of kernels.def one source that includes the kernel and its launcher, compiled by bisheng; the table by g++.
find_program(SIGMOE_BISHENG bisheng HINTS ${SIGMOE_ASCEND_CANN} PATH_SUFFIXES bin compiler/ccec_compiler/bin tools/ccec_compiler/bin
  NO_DEFAULT_PATH)
if(NOT SIGMOE_BISHENG)
  message(FATAL_ERROR "SIGMOE_ASCEND_CANN=${SIGMOE_ASCEND_CANN}: no compiler named bisheng in bin, compiler/ccec_compiler/bin or "
    "tools/ccec_compiler/bin; name the folder of a CANN toolkit, such as $ASCEND_HOME_PATH")
endif()
set(SIGMOE_ASCEND_ARCH dav-2201 CACHE STRING "NPU to compile for: dav-2201 is Atlas A2 (910B)")
set(SIGMOE_ASCEND_FLAGS "-x;asc;--npu-arch=${SIGMOE_ASCEND_ARCH}" CACHE STRING
  "what tells bisheng to compile kernels: CANN 8.5 and newer; older ones want -xcce;--cce-aicore-arch=dav-c220")
set(SIGMOE_ASCEND_LINK_FLAGS "--npu-arch=${SIGMOE_ASCEND_ARCH}" CACHE STRING "what bisheng wants to link them")

file(STRINGS ${CMAKE_CURRENT_SOURCE_DIR}/launch/kernels.def KERNEL_LINES REGEX "^SIGMOE_ASCEND_KERNEL")
set(CANN_OBJECTS)
foreach(line IN LISTS KERNEL_LINES)
  string(REGEX MATCH "\\(([a-z0-9_]+), ([a-z]+), ([0-9]+), ([A-Za-z0-9]+)\\)" matched "${line}")
  set(name ${CMAKE_MATCH_1})
  set(source ${CMAKE_CURRENT_BINARY_DIR}/cann/${name}.asc)
  string(CONCAT text "#include \"ascend/device/${name}.cpp\"\n#include \"ascend/launch/launch_cann.h\"\n\n"
    "SIGMOE_CANN_LAUNCHER(${name}, ${CMAKE_MATCH_3}, ${CMAKE_MATCH_4})\n")
  file(CONFIGURE OUTPUT ${source} CONTENT "${text}" @ONLY)
  add_custom_command(OUTPUT ${source}.o
    COMMAND ${SIGMOE_BISHENG} ${SIGMOE_ASCEND_FLAGS} -std=c++17 -O2 -fPIC -I${INCLUDE}/ascend -c ${source} -o ${source}.o
    DEPENDS ${source} ${CMAKE_CURRENT_SOURCE_DIR}/device/${name}.cpp
    COMMENT "Building ${name} for ${SIGMOE_ASCEND_ARCH}" VERBATIM COMMAND_EXPAND_LISTS)
  list(APPEND CANN_OBJECTS ${source}.o)
endforeach()

add_library(sigmoe_ascend_table OBJECT launch/table_cann.cpp)
target_include_directories(sigmoe_ascend_table PRIVATE ${INCLUDE}/ascend)
target_compile_definitions(sigmoe_ascend_table PRIVATE SIGMOE_CANN_ARCH="${SIGMOE_ASCEND_ARCH}")
set(CANN_LIBRARY ${PLUGIN_FOLDER}/libsigmoe_ascend_kernels.so)
add_custom_command(OUTPUT ${CANN_LIBRARY}
  COMMAND ${SIGMOE_BISHENG} ${SIGMOE_ASCEND_LINK_FLAGS} -shared -fPIC ${CANN_OBJECTS} $<TARGET_OBJECTS:sigmoe_ascend_table>
    -L${SIGMOE_ASCEND_CANN}/lib64 -lascendcl -lruntime -o ${CANN_LIBRARY}
  DEPENDS ${CANN_OBJECTS} sigmoe_ascend_table COMMENT "Linking libsigmoe_ascend_kernels.so" VERBATIM COMMAND_EXPAND_LISTS)
add_custom_target(sigmoe_ascend_kernels ALL DEPENDS ${CANN_LIBRARY})
