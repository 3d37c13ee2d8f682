// GELU(x + bias) and its gradients on the GPU (formulas in bias_gelu_rows.h): a block has 256 columns of a chunk of
// rows, each of its warps a share of the rows and each thread eight columns. Double and odd sizes go column by column.
#include "bias_gelu_rows.h"
#include "cuda_group.cuh"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kStrip = 256;  // columns of a block
using RowBlock = Block<kThreads>;
template <class W>
using Strip = PacketColumns<Warp, W, 1>;
static_assert(Strip<float>::kMost == kStrip, "a warp has a whole strip");

__device__ int64_t strip_start() { return int64_t(blockIdx.y) * kStrip; }
__device__ int64_t strip_size(const BiasGeluArgs& args) {
  return args.size - strip_start() < kStrip ? args.size - strip_start() : kStrip;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) bias_gelu_kernel(const BiasGeluArgs args) {
  const Warp warp;
  Strip<working_t<T>> columns(warp, strip_size(args));
  bias_gelu_chunk<T>(columns, args, strip_start(), blockIdx.x, int(threadIdx.x >> 5), kWarps);
}

// The sums of the warps are added in their order.
template <class T>
__global__ void __launch_bounds__(kThreads, 3) bias_gelu_backward_kernel(const BiasGeluArgs args) {
  using W = working_t<T>;
  __shared__ alignas(16) W staged[kWarps][kStrip];
  const Warp group;
  const int warp = int(threadIdx.x >> 5);
  Strip<W> columns(group, strip_size(args));
  Eight<W> sum[1];
  bias_gelu_backward_chunk<T>(columns, args, strip_start(), blockIdx.x, warp, kWarps, sum);
  columns.each([&](Spot at) { columns.write(staged[warp], at, sum[0]); });
  __syncthreads();
  if (int64_t(threadIdx.x) >= strip_size(args)) return;
  W total = staged[0][threadIdx.x];
  for (int other = 1; other < kWarps; ++other) total += staged[other][threadIdx.x];
  static_cast<W*>(args.partials)[int64_t(blockIdx.x) * args.size + strip_start() + threadIdx.x] = total;
}

// One column a thread, for any size and alignment.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) any_bias_gelu_kernel(const BiasGeluArgs args) {
  __shared__ working_t<T> bias[kStrip];
  const RowBlock block{nullptr};  // no reductions
  StridedColumns<RowBlock, working_t<T>> columns{block, strip_size(args), bias, nullptr};
  bias_gelu_chunk<T>(columns, args, strip_start(), blockIdx.x, 0, 1);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) any_bias_gelu_backward_kernel(const BiasGeluArgs args) {
  using W = working_t<T>;
  __shared__ W bias[kStrip];
  const RowBlock block{nullptr};
  StridedColumns<RowBlock, W> columns{block, strip_size(args), bias, nullptr};
  W* sum = static_cast<W*>(args.partials) + int64_t(blockIdx.x) * args.size + strip_start();
  bias_gelu_backward_chunk<T>(columns, args, strip_start(), blockIdx.x, 0, 1, sum);
}

bool in_packets(const BiasGeluArgs& a) {
  uintptr_t bits = 0;
  for (const void* p : {a.x, a.bias, static_cast<const void*>(a.out), a.grad_out, static_cast<const void*>(a.grad_x)}) {
    bits |= reinterpret_cast<uintptr_t>(p);
  }
  return bits % 16 == 0 && a.size % 8 == 0;
}

dim3 grid_of(const BiasGeluArgs& args) {
  return dim3(blocks_for(args.rows, norm_rows_per_chunk(args.rows)), blocks_for(args.size, kStrip));
}

}  // namespace

void launch_bias_gelu(const BiasGeluArgs& args, const Place& place) {
  if (args.rows * args.size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    if constexpr (sizeof(T) <= 4) {
      if (in_packets(args)) return bias_gelu_kernel<T><<<grid_of(args), kThreads, 0, stream_of(place)>>>(args);
    }
    any_bias_gelu_kernel<T><<<grid_of(args), kThreads, 0, stream_of(place)>>>(args);
  });
  check(cudaGetLastError(), "bias_gelu launch");
}

void launch_bias_gelu_backward(const BiasGeluArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  const int64_t chunks = blocks_for(args.rows, norm_rows_per_chunk(args.rows));
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    const auto run = [&] {
      if constexpr (sizeof(T) <= 4) {
        if (in_packets(args)) return bias_gelu_backward_kernel<T><<<grid_of(args), kThreads, 0, stream>>>(args);
      }
      any_bias_gelu_backward_kernel<T><<<grid_of(args), kThreads, 0, stream>>>(args);
    };
    if (args.rows * args.size > 0) run();
    check(cudaGetLastError(), "bias_gelu_backward launch");
    launch_sum_chunks(static_cast<const W*>(args.partials), chunks, args.size, args.size,
                      static_cast<W*>(args.grad_bias), stream);
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
