# Which GPUs a CUDA toolkit compiles for, by its version. As a script it prints the list:
#   cmake -DVERSION=12.4 -P cmake/architectures.cmake      ->  80-real;90
set(SPANBERT_OLDEST_CUDA 11.8)

# Machine code of one architecture runs on every GPU of the same major version from its minor version on: 80 serves 8.6
# (RTX 30) and 8.9 (Ada: RTX 40, L4, L40), 90 Hopper, 100 also 10.3, 120 also 12.1. 80 is the first with bf16. The newest
# is kept as PTX, too, from which a driver makes code for GPUs that come later. Jetson is another family: its GPUs run
# no code for these, nor PTX newer than themselves; there CMAKE_CUDA_ARCHITECTURES=87 (Orin) or 110 (Thor; 101 before
# CUDA 13) has to be set.
#
# 11.8 is the first toolkit that knows 90, 12.8 the first that knows 100 and 120.
function(spanbert_architectures version result reason)
  set(${reason} "" PARENT_SCOPE)
  if(version VERSION_LESS SPANBERT_OLDEST_CUDA)
    set(${result} "" PARENT_SCOPE)
    set(${reason} "CUDA ${version} is too old: ${SPANBERT_OLDEST_CUDA} or newer is needed" PARENT_SCOPE)
  elseif(version VERSION_LESS 12.8)
    set(${result} 80-real 90 PARENT_SCOPE)
  else()
    set(${result} 80-real 90-real 100-real 120 PARENT_SCOPE)
  endif()
endfunction()

if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
  if(NOT VERSION MATCHES "^[0-9]+\\.[0-9]+(\\.[0-9]+)?$")
    message(FATAL_ERROR "VERSION must be that of a CUDA toolkit, as in -DVERSION=12.4; got '${VERSION}'")
  endif()
  spanbert_architectures(${VERSION} architectures reason)
  if(reason)
    message(FATAL_ERROR "${reason}")
  endif()
  execute_process(COMMAND "${CMAKE_COMMAND}" -E echo "${architectures}")
endif()
