# The mutation run: mutations.txt names defects; this makes the mutated kernels, and sigmoe_ascend_mutants, which runs the tests of a
# kernel against each of its mutants and fails if one goes unnoticed.
#
# A mutant is the entry's source with the headers of device/ that it includes written out, in a namespace of its own. The tests
# call a kernel through a wrapper (the linker's --wrap) that stands for the original until a mutant is put in its place.
#   SIGMOE_ASCEND_MUTANTS   off | some (every third) | all, which stage `ascend` of npm test takes
# By hand: cmake -S . -B build-mutants -G Ninja -DSIGMOE_TESTS=ON -DSIGMOE_ASCEND=ON -DSIGMOE_ASCEND_MUTANTS=all
#          ninja -C build-mutants sigmoe_ascend_mutants && build-mutants/test/native/ascend/sigmoe_ascend_mutants
set(SIGMOE_ASCEND_MUTANTS "off" CACHE STRING "mutants of the Ascend kernels to test the tests with: off, some or all")
if(SIGMOE_ASCEND_MUTANTS STREQUAL "off")
  return()
endif()

set(DEVICE_FOLDER ${CMAKE_SOURCE_DIR}/kernels/ascend/device)
set(MUTANT_FOLDER ${CMAKE_CURRENT_BINARY_DIR}/mutants)
set(MUTANT_FILES 6)  # translation units: the headers of the twin cost more than a small kernel does
set(MUTATIONS ${CMAKE_CURRENT_SOURCE_DIR}/mutations.txt)
file(GLOB DEVICE_FILES CONFIGURE_DEPENDS ${DEVICE_FOLDER}/*)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${MUTATIONS} ${DEVICE_FILES})

# Source without indentation, so that a defect is found wherever it has moved to.
function(read_device_file name out)
  file(READ ${DEVICE_FOLDER}/${name} text)
  string(REGEX REPLACE "\n[ \t]+" "\n" text "${text}")
  set(${out} "${text}" PARENT_SCOPE)
endfunction()

# `text` with its one occurrence of `old` replaced by `new`.
function(replace_once text old new what out)
  string(FIND "${text}" "${old}" at)
  string(FIND "${text}" "${old}" last REVERSE)
  if(at EQUAL -1 OR NOT at EQUAL last)
    message(FATAL_ERROR "mutations.txt: ${what}: these lines do not occur exactly once:\n${old}")
  endif()
  string(REPLACE "${old}" "${new}" text "${text}")
  set(${out} "${text}" PARENT_SCOPE)
endfunction()

# Device source `name` with the headers of device/ that it includes in their places, each once; `mutated` is the text of `file`.
function(flatten name file mutated out)
  get_property(seen GLOBAL PROPERTY MUTANT_SEEN)
  if(name IN_LIST seen)
    set(${out} "" PARENT_SCOPE)
    return()
  endif()
  set_property(GLOBAL APPEND PROPERTY MUTANT_SEEN ${name})
  if(name STREQUAL file)
    set(text "${mutated}")
  else()
    read_device_file(${name} text)
  endif()
  string(REPLACE "#pragma once\n" "" text "${text}")
  while(text MATCHES "#include \"ascend/device/([a-z0-9_]+\\.h)\"")
    set(line "${CMAKE_MATCH_0}")
    flatten(${CMAKE_MATCH_1} "${file}" "${mutated}" header)
    string(REPLACE "${line}" "${header}" text "${text}")
  endwhile()
  set(${out} "${text}" PARENT_SCOPE)
endfunction()

function(write_if_changed path text)
  if(EXISTS ${path})
    file(READ ${path} before)
    if(before STREQUAL text)
      return()
    endif()
  endif()
  file(WRITE ${path} "${text}")
endfunction()

# ---- what mutations.txt asks for -----------------------------------------------------------------------------------------------

set(MUTANT_COUNT 0)
set(WRAPPED "")
set(TABLE "")
set(DECLARATIONS "")
set(WRAPPERS "")
foreach(i RANGE 1 ${MUTANT_FILES})
  set(UNIT_${i} "")
  set(UNIT_${i}_INCLUDES "")
endforeach()

macro(finish_mutant)
  if(NOT kernel STREQUAL "")
    math(EXPR MUTANT_COUNT "${MUTANT_COUNT} + 1")
    math(EXPR place "${MUTANT_COUNT} % 3")
    if(SIGMOE_ASCEND_MUTANTS STREQUAL "all" OR place EQUAL 1)
      read_device_file(${file} text)
      replace_once("${text}" "${old}" "${new}" "${file}: ${why}" text)
      set_property(GLOBAL PROPERTY MUTANT_SEEN "")
      flatten(${kernel}.cpp ${file} "${text}" text)
      get_property(seen GLOBAL PROPERTY MUTANT_SEEN)
      if(NOT file IN_LIST seen)
        message(FATAL_ERROR "mutations.txt: ${kernel}.cpp does not include ${file}")
      endif()
      string(REGEX MATCHALL "#include [^\n]*" includes "${text}")
      string(REGEX REPLACE "#include [^\n]*" "" text "${text}")
      if(NOT text MATCHES "void sigmoe_${kernel}\\(([^)]*)\\)")
        message(FATAL_ERROR "mutations.txt: ${kernel}.cpp has no entry sigmoe_${kernel}")
      endif()
      string(REPLACE "\n" " " parameters "${CMAKE_MATCH_1}")
      math(EXPR unit "${MUTANT_COUNT} % ${MUTANT_FILES} + 1")
      list(APPEND UNIT_${unit}_INCLUDES ${includes})
      string(APPEND UNIT_${unit} "\n// ${file}: ${why}\nnamespace mutant_${MUTANT_COUNT} {\n#define sigmoe_${kernel} "
             "sigmoe_${kernel}_mutant_${MUTANT_COUNT}\n${text}\n#undef sigmoe_${kernel}\n}\n")
      string(APPEND DECLARATIONS "extern \"C\" void sigmoe_${kernel}_mutant_${MUTANT_COUNT}(${parameters});\n")
      string(APPEND TABLE "  {\"${kernel}\", \"${file}\", \"${tests}\", \"${why}\", [] { entry_${kernel} = "
             "sigmoe_${kernel}_mutant_${MUTANT_COUNT}; }},\n")
      if(NOT kernel IN_LIST WRAPPED)
        list(APPEND WRAPPED ${kernel})
        string(REGEX REPLACE "GM_ADDR |sigmoe::ascend::[A-Za-z0-9]+ " "" names "${parameters}")
        string(APPEND WRAPPERS "extern \"C\" void __real_sigmoe_${kernel}(${parameters});\n"
               "static void (*entry_${kernel})(${parameters}) = __real_sigmoe_${kernel};\n"
               "extern \"C\" void __wrap_sigmoe_${kernel}(${parameters}) { entry_${kernel}(${names}); }\n")
      endif()
    endif()
  endif()
  foreach(field kernel tests file why old new)
    set(${field} "")
  endforeach()
endmacro()

set(kernel "")
finish_mutant()
file(READ ${MUTATIONS} rest)
while(NOT rest STREQUAL "")
  string(FIND "${rest}" "\n" end)
  string(SUBSTRING "${rest}" 0 ${end} line)
  math(EXPR end "${end} + 1")
  string(SUBSTRING "${rest}" ${end} -1 rest)
  if(line STREQUAL "")
    finish_mutant()
  elseif(line MATCHES "^(kernel|tests|file|why) (.*)$")
    set(${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
  elseif(line MATCHES "^- (.*)$")
    string(APPEND old "${CMAKE_MATCH_1}\n")
  elseif(line MATCHES "^\\+ (.*)$")
    string(APPEND new "${CMAKE_MATCH_1}\n")
  elseif(NOT line MATCHES "^#")
    message(FATAL_ERROR "mutations.txt: what is this line for?\n${line}")
  endif()
endwhile()
finish_mutant()

# ---- the program -----------------------------------------------------------------------------------------------------------

set(MUTANT_SOURCES "")
set(ALL_INCLUDES "")
foreach(i RANGE 1 ${MUTANT_FILES})
  list(REMOVE_DUPLICATES UNIT_${i}_INCLUDES)
  list(APPEND ALL_INCLUDES ${UNIT_${i}_INCLUDES})
  list(JOIN UNIT_${i}_INCLUDES "\n" includes)
  write_if_changed(${MUTANT_FOLDER}/mutants_${i}.cpp "${includes}\n${UNIT_${i}}")
  list(APPEND MUTANT_SOURCES ${MUTANT_FOLDER}/mutants_${i}.cpp)
endforeach()
list(REMOVE_DUPLICATES ALL_INCLUDES)
list(JOIN ALL_INCLUDES "\n" includes)
write_if_changed(${MUTANT_FOLDER}/table.cpp
  "${includes}\n#include \"mutants.h\"\n\n${WRAPPERS}\n${DECLARATIONS}\nconst std::vector<Mutant>& all_mutants() {\n  static const std::vector<Mutant> mutants = {\n${TABLE}};\n  return mutants;\n}\n")

add_library(sigmoe_ascend_mutated STATIC ${MUTANT_SOURCES})
set_target_properties(sigmoe_ascend_mutated PROPERTIES CXX_STANDARD 17)
target_include_directories(sigmoe_ascend_mutated PRIVATE ${INCLUDE}/ascend ${CMAKE_SOURCE_DIR}/kernels/ascend/twin)
target_compile_options(sigmoe_ascend_mutated PRIVATE -O1 -w)

# The tests of the kernels, as they are compiled for the ordinary run.
add_executable(sigmoe_ascend_mutants mutants.cpp ${MUTANT_FOLDER}/table.cpp
  $<FILTER:$<TARGET_OBJECTS:sigmoe_ascend_tests>,INCLUDE,test_\(rows|linear|experts|attention|qk_norm_rope_store|route|sample_kernel\)\\.cpp>)
target_include_directories(sigmoe_ascend_mutants PRIVATE ${INCLUDE}/ascend ${CMAKE_SOURCE_DIR}/kernels/ascend/twin ${CMAKE_CURRENT_SOURCE_DIR})
target_include_directories(sigmoe_ascend_mutants SYSTEM PRIVATE ${CMAKE_SOURCE_DIR}/csrc/third_party)
foreach(kernel ${WRAPPED})
  target_link_options(sigmoe_ascend_mutants PRIVATE -Wl,--wrap=sigmoe_${kernel})
endforeach()
target_link_libraries(sigmoe_ascend_mutants PRIVATE -Wl,--start-group sigmoe_ascend_mutated sigmoe_ascend_device
  sigmoe_ascend_host sigmoe_cpu sigmoe_backend -Wl,--end-group)
add_test(NAME ascend_mutants COMMAND sigmoe_ascend_mutants)
add_dependencies(sigmoe_ascend_check sigmoe_ascend_mutants)
