// The one way to start a kernel, and the words for what only a GPU has. Each has a second meaning for ordinary C++
// compilers: there a launch goes to the emulator of csrc/tests/emulator, which runs the threads on the CPU.
//
// A kernel is a struct with
//   kName     what messages call it
//   kThreads  the most threads of a block
//   kBlocks   so many blocks of kThreads shall fit a multiprocessor, which bounds the registers of a thread; 0: the
//             compiler weighs it (1 would let it take all registers)
//   Args      the arguments of a launch, which stay in constant memory
//   run       what one thread does with them
#pragma once

#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef __CUDACC__
#define SPANBERT_DEVICE __device__ __forceinline__
// An array in shared memory, declared where it is used. `Type` may not hold a comma.
#define SPANBERT_SHARED(Type, name) alignas(16) __shared__ Type name
#else
#define SPANBERT_DEVICE inline
#define SPANBERT_SHARED(Type, name)  \
  static const char name##_site = 0; \
  Type& name = *static_cast<std::add_pointer_t<Type>>(::emulator::shared_array(&name##_site, sizeof(Type), #name))
#endif

namespace spanbert {
namespace SPANBERT_VARIANT {

// Shared memory of a launch, behind no array of the kernel's own: it begins at a multiple of 16 bytes.
template <class T>
SPANBERT_DEVICE T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#else
  return static_cast<T*>(::emulator::dynamic_shared());
#endif
}

constexpr int64_t kSharedByDefault = 48 << 10;  // bytes a block may use without asking the driver for more
constexpr int64_t kMostThreads = 1024, kMostBlocks = INT32_MAX;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // forgotten, or the next launch would report it once more
    throw std::runtime_error(std::string("spanbert_ext: CUDA ") + what +
                             " failed (or an earlier kernel did): " + cudaGetErrorString(status));
  }
}

// So many blocks of `rows` rows of `threads` threads; `shared_bytes` beside the arrays of the kernel.
struct Grid {
  int64_t blocks, threads, rows = 1, shared_bytes = 0;
};

// Stops a number of 64 bits that a kernel would read as 32 bits of it.
inline void check_limit(const char* kernel, const char* what, int64_t value, int64_t most) {
  if (value < 0 || value > most) {
    throw std::runtime_error(std::string("spanbert_ext: kernel ") + kernel + " was given " + std::to_string(value) +
                             " " + what + "; it takes " + std::to_string(most) + " at most");
  }
}

constexpr int64_t divide_up(int64_t work, int64_t per_block) { return (work + per_block - 1) / per_block; }

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    entry(const __grid_constant__ typename Kernel::Args args) {
  Kernel::run(args);
}

// More shared memory than the default has to be asked for, kernel by kernel; how much there is depends on the GPU.
template <class Function>
void allow_shared(const char* kernel, Function* function, int64_t bytes) {
  int device = 0, most = 0;
  check(cudaGetDevice(&device), kernel);
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), kernel);
  check_limit(kernel, "bytes of shared memory on this GPU", bytes, most);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), kernel);
}

// No blocks: nothing happens.
template <class Kernel>
void launch(const Grid& grid, cudaStream_t stream, const typename Kernel::Args& args) {
  static_assert(Kernel::kThreads % 32 == 0 && Kernel::kThreads <= kMostThreads, "a block is whole warps");
  static_assert(sizeof(args) <= 4096, "kernel arguments beyond 4 KB need a newer driver");
  const char* name = Kernel::kName;
  check_limit(name, "blocks", grid.blocks, kMostBlocks);
  check_limit(name, "rows of threads", grid.rows, kMostThreads);
  check_limit(name, "threads a row", grid.threads, kMostThreads);
  check_limit(name, "threads a block", grid.threads * grid.rows, Kernel::kThreads);
  check_limit(name, "bytes of shared memory", grid.shared_bytes, INT32_MAX);
  if (grid.blocks == 0) return;
  if (grid.shared_bytes > kSharedByDefault) allow_shared(name, entry<Kernel>, grid.shared_bytes);
  const dim3 block(unsigned(grid.threads), unsigned(grid.rows));
#ifdef __CUDACC__
  entry<Kernel><<<unsigned(grid.blocks), block, size_t(grid.shared_bytes), stream>>>(args);
#else
  ::emulator::launch(name, reinterpret_cast<const void*>(entry<Kernel>), Kernel::kThreads, unsigned(grid.blocks), block,
                     size_t(grid.shared_bytes), [&] { entry<Kernel>(args); });
  static_cast<void>(stream);
#endif
  check(cudaGetLastError(), name);
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
