// What the CUDA sources use of the CUDA runtime, for a C++ compiler: keywords without meaning, indices and warp
// operations of the emulated thread, and one device whose memory is the CPU's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../emulator.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

using dim3 = ::emulator::Dim;
#define threadIdx (::emulator::here.thread)
#define blockIdx (::emulator::here.block)
#define blockDim (::emulator::here.block_dim)
#define gridDim (::emulator::here.grid_dim)

// The place where an operation stands in the sources.
#define SPANBERT_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SPANBERT_PLACE) { ::emulator::meet_block(file, line); }
inline void __syncwarp(unsigned lanes = ~0u, SPANBERT_PLACE) { ::emulator::sync_warp(lanes, file, line); }

template <class T>
T __shfl_sync(unsigned lanes, T value, int from, SPANBERT_PLACE) {
  return ::emulator::exchange("__shfl_sync", lanes, value, from & 31, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int bits, SPANBERT_PLACE) {
  return ::emulator::exchange("__shfl_xor_sync", lanes, value, ::emulator::lane() ^ bits, file, line);
}
template <class T>
T __shfl_up_sync(unsigned lanes, T value, unsigned delta, SPANBERT_PLACE) {
  const int lane = ::emulator::lane(), from = lane - int(delta);
  return ::emulator::exchange("__shfl_up_sync", lanes, value, from < 0 ? lane : from, file, line);
}
inline unsigned __ballot_sync(unsigned lanes, unsigned vote, SPANBERT_PLACE) {
  return ::emulator::ballot(lanes, vote != 0, file, line);
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaFuncAttributeMaxDynamicSharedMemorySize, cudaEnableDefault };
#define CUDART_VERSION 12050

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = int(::emulator::card().shared_bytes);
  return cudaSuccess;
}
template <class Function>
cudaError_t cudaFuncSetAttribute(Function* function, int, int bytes) {
  ::emulator::allow_shared(reinterpret_cast<const void*>(function), size_t(bytes));
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, int) {
  *function = ::emulator::driver_function(name);
  return cudaSuccess;
}
