// Softmax and dropout of attention scores on the GPU (formulas in attention_rows.h): a warp has a row, which stays in
// shared memory. Nothing of the package calls it yet: attention with dropout on a GPU is torch's.
#include "attention_rows.h"
#include "cuda_group.cuh"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr size_t kSharedBytes = 48 << 10;  // what a block may use without asking the driver for more

extern __shared__ double shared_rows[];

__device__ int64_t warp_row() { return int64_t(blockIdx.x) * kWarps + (threadIdx.x >> 5); }

// What a warp needs for a row: working values, then draws; whole doubles.
template <class W>
__host__ __device__ size_t row_bytes(int64_t width) {
  const size_t bytes = size_t(width) * sizeof(W) + size_t(draw_columns(width)) * sizeof(uint16_t);
  return (bytes + sizeof(double) - 1) / sizeof(double) * sizeof(double);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) attention_weights_kernel(const AttentionWeightsArgs args) {
  using W = working_t<T>;
  const int64_t row = warp_row();
  if (row >= args.rows) return;
  char* memory = reinterpret_cast<char*>(shared_rows) + (threadIdx.x >> 5) * row_bytes<W>(args.width);
  W* values = reinterpret_cast<W*>(memory);
  attention_weights_row<T>(Warp(), args, row, values, reinterpret_cast<uint16_t*>(values + args.width));
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) attention_weights_backward_kernel(const AttentionWeightsArgs args) {
  const int64_t row = warp_row();
  if (row < args.rows) attention_weights_backward_row<T>(Warp(), args, row);
}

}  // namespace

void launch_attention_weights(const AttentionWeightsArgs& args, const Place& place) {
  if (args.rows * args.width == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const size_t bytes = kWarps * row_bytes<working_t<T>>(args.width);
    if (bytes > kSharedBytes) {
      check(cudaFuncSetAttribute(attention_weights_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
            "shared memory for this number of keys");
    }
    attention_weights_kernel<T><<<blocks_for(args.rows, kWarps), kThreads, bytes, stream_of(place)>>>(args);
  });
  check(cudaGetLastError(), "attention_weights launch");
}

void launch_attention_weights_backward(const AttentionWeightsArgs& args, const Place& place) {
  if (args.rows * args.width == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    attention_weights_backward_kernel<T><<<blocks_for(args.rows, kWarps), kThreads, 0, stream_of(place)>>>(args);
  });
  check(cudaGetLastError(), "attention_weights_backward launch");
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
