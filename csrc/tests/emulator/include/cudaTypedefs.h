// The driver functions that the sources ask for by name.
#pragma once
#include <cuda_runtime.h>

using CUcontext = void*;
using CUdevice = int;
using CUresult = int;
constexpr CUresult CUDA_SUCCESS = 0;
using PFN_cuCtxGetCurrent_v4000 = CUresult (*)(CUcontext*);
using PFN_cuCtxSetCurrent_v4000 = CUresult (*)(CUcontext);
using PFN_cuCtxGetDevice_v2000 = CUresult (*)(CUdevice*);
