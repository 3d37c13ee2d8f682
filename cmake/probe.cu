// What the CUDA sources need of a toolkit and its host compiler, as small as it can be: compiled and linked when the
// build is configured, never run.
#include <cudaTypedefs.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>

struct Args {
  int64_t value;
};

template <class T>
__global__ void probe_kernel(const __grid_constant__ Args args, T* out) {
  if constexpr (std::is_same_v<T, float>) *out = __half2float(__float2half_rn(float(args.value)));
  assert(args.value >= 0);
}

int main() {
  probe_kernel<float><<<1, 32>>>(Args{1}, nullptr);
  return std::string(cudaGetErrorString(cudaGetLastError())).empty();
}
