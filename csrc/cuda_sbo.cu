// The row operations around the products of the span boundary objective: boundary gather, LN(GELU(x)) of plain rows and
// of span + position rows, forward and backward (formulas in sbo_rows.h). Sums over rows go through chunks in a fixed
// order, so there are no atomics and the result depends on the shape alone.
#include "cuda_group.cuh"
#include "sbo_rows.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr int kThreads = 256;              // backward passes: one block for a chunk, three columns a thread at H = 768
constexpr int kCopyThreads = 128;          // one 16-byte access a thread covers a row of 1024 bf16
constexpr size_t kSharedBytes = 48 << 10;  // what a block may use without asking the driver for more
using RowBlock = Block<kThreads>;

extern __shared__ double shared_memory[];

// 16-byte pieces where the row allows them, single scalars elsewhere.
template <class Piece>
__global__ void __launch_bounds__(kCopyThreads) gather_boundaries_kernel(const BoundaryArgs args, int64_t pieces) {
  const int64_t s = blockIdx.x, left = args.span_left[s], right = args.span_right[s];
  const Piece* hidden = static_cast<const Piece*>(args.hidden);
  Piece* pair = static_cast<Piece*>(args.out) + 2 * s * pieces;
  const bool used = right > left;
  assert((!used || (left >= 0 && right < args.tokens)) && "span boundary outside the batch");
  for (int64_t i = threadIdx.x; i < pieces; i += kCopyThreads) {
    pair[i] = used ? hidden[left * pieces + i] : Piece{};
    pair[pieces + i] = used ? hidden[right * pieces + i] : Piece{};
  }
}

// Spans ascend, so only the neighbour can share a boundary token: the later span adds both gradients to it.
template <class T>
__global__ void __launch_bounds__(kCopyThreads) gather_boundaries_backward_kernel(const BoundaryArgs args) {
  const int64_t s = blockIdx.x, left = args.span_left[s], right = args.span_right[s], size = args.hidden_size;
  if (right <= left) return;
  assert(left >= 0 && right < args.tokens && "span boundary outside the batch");
  const T* grad = static_cast<const T*>(args.hidden) + 2 * s * size;
  T* out = static_cast<T*>(args.out);
  const bool joins = s > 0 && args.span_right[s - 1] == left && args.span_left[s - 1] < left;
  const bool joined = s + 1 < args.spans && args.span_left[s + 1] == right && args.span_right[s + 1] > right;
  for (int64_t h = threadIdx.x; h < size; h += kCopyThreads) {
    out[left * size + h] = joins ? store<T>(load(grad[h]) + load(grad[h - size])) : grad[h];
    if (!joined) out[right * size + h] = grad[size + h];
  }
}

// Forward rows: one warp each, with the row's GELU values in shared memory.
template <class T>
__global__ void gelu_layer_norm_kernel(const GeluLayerNormArgs args) {
  const int warp = int(threadIdx.x >> 5);
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp;
  if (row >= args.rows) return;
  auto* scratch = reinterpret_cast<working_t<T>*>(shared_memory) + warp * args.hidden_size;
  gelu_layer_norm_at<Warp, T>(Warp(), args, row, scratch);
}

template <class T>
__global__ void sbo_first_layer_kernel(const SboFirstLayerArgs args) {
  const int warp = int(threadIdx.x >> 5);
  const int64_t k = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp;
  if (k >= args.targets) return;
  auto* scratch = reinterpret_cast<working_t<T>*>(shared_memory) + warp * args.hidden_size;
  sbo_first_layer_at<Warp, T>(Warp(), args, k, scratch);
}

// Shared memory of a backward block: 32 reduction values, then rows of `size` working values.
template <class W>
__device__ W* shared_rows() {
  return reinterpret_cast<W*>(shared_memory + 32);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) gelu_layer_norm_backward_kernel(const GeluLayerNormBackwardArgs args) {
  gelu_layer_norm_backward_chunk<RowBlock, T>(RowBlock{shared_memory}, args, blockIdx.x, shared_rows<working_t<T>>());
}

// Each span's first SBO target; spans without one keep -1.
__global__ void first_targets_kernel(const int64_t* target_spans, const int64_t* sbo_ids, int64_t targets,
                                     int64_t spans, int64_t* first_targets) {
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= targets || sbo_ids[k] == kIgnore) return;
  const int64_t s = target_spans[k];
  assert(s >= 0 && s < spans && "SBO target outside its table");
  for (int64_t j = k - 1; j >= 0 && target_spans[j] == s; --j) {
    if (sbo_ids[j] != kIgnore) return;
  }
  first_targets[s] = k;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) sbo_first_layer_backward_kernel(const SboFirstLayerBackwardArgs args) {
  sbo_first_layer_backward_chunk<RowBlock, T>(RowBlock{shared_memory}, args, blockIdx.x, shared_rows<working_t<T>>());
}

// Warps of a forward block: as many as their rows fit in shared memory, four at most (more would not help: a row is
// independent of the others).
template <class W>
int forward_warps(int64_t hidden_size) {
  const int64_t fit = int64_t(kSharedBytes) / (hidden_size * int64_t(sizeof(W)));
  if (fit < 1)
    throw std::runtime_error("spanbert_ext: hidden_size " + std::to_string(hidden_size) +
                             " is too large for CUDA rows");
  return int(fit < 4 ? fit : 4);
}

// Shared memory of a backward block; raises the kernel's limit where the default does not do.
template <class W, class Kernel>
size_t backward_bytes(Kernel* kernel, int64_t rows, int64_t hidden_size) {
  const size_t bytes = 32 * sizeof(double) + size_t(rows * hidden_size) * sizeof(W);
  if (bytes > kSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
          "shared memory for this hidden size");
  }
  return bytes;
}

}  // namespace

void launch_gather_boundaries(const BoundaryArgs& args, const Place& place) {
  if (args.spans * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int64_t bytes = args.hidden_size * int64_t(sizeof(T));
    if (bytes % 16 == 0 && reinterpret_cast<uintptr_t>(args.hidden) % 16 == 0) {
      gather_boundaries_kernel<int4><<<unsigned(args.spans), kCopyThreads, 0, stream_of(place)>>>(args, bytes / 16);
    } else {
      gather_boundaries_kernel<T><<<unsigned(args.spans), kCopyThreads, 0, stream_of(place)>>>(args, args.hidden_size);
    }
  });
  check(cudaGetLastError(), "gather_boundaries launch");
}

void launch_gather_boundaries_backward(const BoundaryArgs& args, const Place& place) {
  if (args.tokens * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    check(cudaMemsetAsync(args.out, 0, size_t(args.tokens * args.hidden_size) * sizeof(T), stream_of(place)), "memset");
    if (args.spans == 0) return;
    gather_boundaries_backward_kernel<T><<<unsigned(args.spans), kCopyThreads, 0, stream_of(place)>>>(args);
  });
  check(cudaGetLastError(), "gather_boundaries_backward launch");
}

void launch_gelu_layer_norm(const GeluLayerNormArgs& args, const Place& place) {
  if (args.rows * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int warps = forward_warps<working_t<T>>(args.hidden_size);
    const size_t bytes = size_t(warps * args.hidden_size) * sizeof(working_t<T>);
    gelu_layer_norm_kernel<T><<<blocks_for(args.rows, warps), 32 * warps, bytes, stream_of(place)>>>(args);
  });
  check(cudaGetLastError(), "gelu_layer_norm launch");
}

void launch_gelu_layer_norm_backward(const GeluLayerNormBackwardArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const int64_t chunks = (args.rows + kRowsPerChunk - 1) / kRowsPerChunk, size = args.hidden_size;
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    const size_t bytes = backward_bytes<W>(gelu_layer_norm_backward_kernel<T>, kNormBackwardRows, size);
    if (chunks > 0) {
      gelu_layer_norm_backward_kernel<T><<<unsigned(chunks), kThreads, bytes, stream_of(place)>>>(args);
      check(cudaGetLastError(), "gelu_layer_norm_backward launch");
    }
    const W* partials = static_cast<const W*>(args.partials);
    launch_sum_chunks(partials, chunks, 3 * size, size, static_cast<W*>(args.grad_weight), stream_of(place));
    launch_sum_chunks(partials + size, chunks, 3 * size, size, static_cast<W*>(args.grad_bias), stream_of(place));
    launch_sum_chunks(partials + 2 * size, chunks, 3 * size, size, static_cast<W*>(args.grad_x_sum), stream_of(place));
  });
}

void launch_sbo_first_layer(const SboFirstLayerArgs& args, const Place& place) {
  if (args.targets * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int warps = forward_warps<working_t<T>>(args.hidden_size);
    const size_t bytes = size_t(warps * args.hidden_size) * sizeof(working_t<T>);
    sbo_first_layer_kernel<T><<<blocks_for(args.targets, warps), 32 * warps, bytes, stream_of(place)>>>(args);
  });
  check(cudaGetLastError(), "sbo_first_layer launch");
}

void launch_sbo_first_layer_backward(const SboFirstLayerBackwardArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  const int64_t chunks = (args.spans + kSpansPerChunk - 1) / kSpansPerChunk, size = args.hidden_size;
  if (args.spans > 0) {
    check(cudaMemsetAsync(args.first_targets, 0xFF, size_t(args.spans) * sizeof(int64_t), stream), "memset");
  }
  if (args.targets > 0) {
    first_targets_kernel<<<blocks_for(args.targets, kThreads), kThreads, 0, stream>>>(
        args.target_spans, args.sbo_ids, args.targets, args.spans, args.first_targets);
    check(cudaGetLastError(), "first_targets launch");
  }
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    const size_t bytes = backward_bytes<W>(sbo_first_layer_backward_kernel<T>, kSboBackwardRows, size);
    if (chunks > 0) {
      sbo_first_layer_backward_kernel<T><<<unsigned(chunks), kThreads, bytes, stream>>>(args);
      check(cudaGetLastError(), "sbo_first_layer_backward launch");
    }
    const W* partials = static_cast<const W*>(args.partials);
    const int64_t stride = (2 + args.positions) * size;
    launch_sum_chunks(partials, chunks, stride, size, static_cast<W*>(args.grad_weight), stream);
    launch_sum_chunks(partials + size, chunks, stride, size, static_cast<W*>(args.grad_bias), stream);
    launch_sum_chunks(partials + 2 * size, chunks, stride, args.positions * size,
                      static_cast<T*>(args.grad_position_rows), stream);
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
