// The row operations around the products of the span boundary objective: boundary gather, LN(GELU(x)) of plain rows and
// of span + position rows, forward and backward (formulas in sbo_rows.h). Sums over rows go through chunks in a fixed
// order, so there are no atomics: the same tensors give the same bits. Sums inside a row are grouped by how it is read,
// in packs or column by column (packs_fit), so a view that begins between multiples of 16 bytes may differ from its
// copy in the last bits; what torch allocates begins at such a multiple.
#include <type_traits>

#include "cuda_group.cuh"
#include "sbo_rows.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr int kCopyThreads = 128;  // one 16-byte access a thread covers a row of 1024 bf16
constexpr int kIndexThreads = 256;
constexpr int kForwardWarps = 4;           // rows share nothing: larger blocks would only coarsen the grid
constexpr size_t kSharedBytes = 48 << 10;  // what a block may use without asking the driver for more
constexpr size_t kReductionBytes = 32 * sizeof(double);  // what Block needs
// Position sums of a block stay in shared memory up to here: every architecture since 8.0 grants a block 99 KB.
constexpr size_t kPositionBytes = 96 << 10;

// Packed rows have at most kWidest columns, those of BERT-large; twice that would not fit a warp's registers.
constexpr int kWidest = 1024;

// Rows of another width or place, and double ones (gradient checks): one column an access, values in shared memory.
using StridedRow = Strided<Warp>;
using StridedChunk = Strided<Block<256>>;

// Forward, a warp a row: kWidest / 32 values a lane in registers, a few accesses in flight before the first is used.
template <class T>
using PackedRow =
    std::conditional_t<sizeof(T) <= 4, Packed<Warp, kAccessWidth<T>, kWidest / 32 / kAccessWidth<T>>, StridedRow>;
static_assert(PackedRow<bf16>::kColumns == kWidest && PackedRow<float>::kColumns == kWidest, "a row is covered");

// Backward, a block a chunk: one access a thread covers the row, so each of the six arrays is one pack of registers.
template <class T>
using PackedChunk =
    std::conditional_t<sizeof(T) <= 4, Packed<Block<kWidest / kAccessWidth<T>>, kAccessWidth<T>, 1>, StridedChunk>;
static_assert(PackedChunk<bf16>::Group::kSize == 128 && PackedChunk<float>::Group::kSize == 256,
              "few warps meet in the row reductions");

extern __shared__ double shared_memory[];

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kAccessBytes == 0; }

// Whether rows of T, and all that lies beside them, can be reached in whole accesses and fit the registers.
template <class T, class... Pointers>
bool packs_fit(int64_t hidden_size, Pointers... pointers) {
  return sizeof(T) <= 4 && hidden_size <= kWidest && hidden_size % kAccessWidth<T> == 0 && (aligned(pointers) && ...);
}

// 16-byte pieces where the row allows them, single scalars elsewhere.
template <class Piece>
__global__ void __launch_bounds__(kCopyThreads) gather_boundaries_kernel(const BoundaryArgs args, int64_t pieces) {
  const int64_t s = blockIdx.x, left = args.span_left[s], right = args.span_right[s];
  const Piece* hidden = static_cast<const Piece*>(args.hidden);
  Piece* pair = static_cast<Piece*>(args.out) + 2 * s * pieces;
  const bool used = has_boundaries(args, s);
  assert((!used || (left >= 0 && left < args.tokens && right < args.tokens)) && "span boundary outside the batch");
  for (int64_t i = threadIdx.x; i < pieces; i += kCopyThreads) {
    pair[i] = used ? hidden[left * pieces + i] : Piece{};
    pair[pieces + i] = used ? hidden[right * pieces + i] : Piece{};
  }
}

// Spans ascend, so only the neighbour can share a boundary token: the later span adds both gradients to it. Both
// boundaries of a span of one token between internal endpoints are that token, and no neighbour's.
template <class T, int kPack>
__global__ void __launch_bounds__(kCopyThreads) gather_boundaries_backward_kernel(const BoundaryArgs args) {
  const int64_t s = blockIdx.x, left = args.span_left[s], right = args.span_right[s], size = args.hidden_size;
  if (!has_boundaries(args, s)) return;
  assert(left >= 0 && left < args.tokens && right < args.tokens && "span boundary outside the batch");
  const T* grad = static_cast<const T*>(args.hidden) + 2 * s * size;
  T* out = static_cast<T*>(args.out);
  const bool joins = s > 0 && args.span_right[s - 1] == left && args.span_left[s - 1] < left;
  const bool joined = s + 1 < args.spans && args.span_left[s + 1] == right && args.span_right[s + 1] > right;
  const bool alone = left == right;
  for (int64_t h = int64_t(threadIdx.x) * kPack; h < size; h += kCopyThreads * kPack) {
    Pack<working_t<T>, kPack> sum = load_pack<kPack>(grad + h);
    if (joins || alone) {
      const Pack<working_t<T>, kPack> other = load_pack<kPack>(alone ? grad + size + h : grad + h - size);
      SPANBERT_EACH
      for (int j = 0; j < kPack; ++j) sum.at[j] += other.at[j];
    }
    store_pack(out + left * size + h, sum);
    if (!joined && !alone) store_pack(out + right * size + h, load_pack<kPack>(grad + size + h));
  }
}

// Values of a thread's columns in shared memory, behind those of the reductions; Packed columns leave them alone.
template <class W>
__device__ W* shared_rows() {
  return reinterpret_cast<W*>(shared_memory + 32);
}

// A warp a row or target; Strided rows lie side by side in shared memory.
template <class T, class Columns>
__global__ void __launch_bounds__(32 * kForwardWarps) gelu_layer_norm_kernel(const GeluLayerNormArgs args) {
  const int warp = int(threadIdx.x >> 5);
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp;
  if (row >= args.rows) return;
  auto* scratch = shared_rows<working_t<T>>() + warp * kForwardArrays * args.hidden_size;
  gelu_layer_norm_at<T>(Columns{Warp(), args.hidden_size}, args, row, scratch);
}

template <class T, class Columns>
__global__ void __launch_bounds__(32 * kForwardWarps) sbo_first_layer_kernel(const SboFirstLayerArgs args) {
  const int warp = int(threadIdx.x >> 5);
  const int64_t k = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp;
  if (k >= args.targets) return;
  auto* scratch = shared_rows<working_t<T>>() + warp * kForwardArrays * args.hidden_size;
  sbo_first_layer_at<T>(Columns{Warp(), args.hidden_size}, args, k, scratch);
}

template <class T, class Columns>
__global__ void __launch_bounds__(Columns::Group::kSize, 2)
    gelu_layer_norm_backward_kernel(const GeluLayerNormBackwardArgs args) {
  const Columns columns{{shared_memory}, args.hidden_size};
  gelu_layer_norm_backward_chunk<T>(columns, args, blockIdx.x, shared_rows<working_t<T>>());
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

template <class T, class Columns>
__global__ void __launch_bounds__(Columns::Group::kSize, 2)
    sbo_first_layer_backward_kernel(const SboFirstLayerBackwardArgs args, bool shared_positions) {
  using W = working_t<T>;
  const Columns columns{{shared_memory}, args.hidden_size};
  W* positions = shared_positions ? shared_rows<W>() : nullptr;
  W* scratch = shared_rows<W>() + (shared_positions ? args.positions * args.hidden_size : 0);
  sbo_first_layer_backward_chunk<T>(columns, args, blockIdx.x, scratch, positions);
}

// The parameter gradients of a backward pass from its partials [chunks, 2 H + rest]: two of the working type, [H] each,
// and the rest, [rest] of type T.
template <class W, class T>
__global__ void sum_gradients_kernel(const W* partials, int64_t chunks, int64_t hidden_size, int64_t rest, W* weight,
                                     W* bias, T* others) {
  const int64_t count = 2 * hidden_size + rest;
  const ChunkSum<W> sum = sum_of_chunks(partials, chunks, count, count);
  if (!sum.valid) return;
  if (sum.column < hidden_size) {
    weight[sum.column] = sum.value;
  } else if (sum.column < 2 * hidden_size) {
    bias[sum.column - hidden_size] = sum.value;
  } else {
    others[sum.column - 2 * hidden_size] = store<T>(sum.value);
  }
}

template <class W, class T>
void launch_sum_gradients(const void* partials, int64_t chunks, int64_t hidden_size, int64_t rest, void* weight,
                          void* bias, void* others, cudaStream_t stream) {
  if (hidden_size == 0) return;
  sum_gradients_kernel<W, T><<<blocks_for(2 * hidden_size + rest, 32), dim3(32, kChunkLanes), 0, stream>>>(
      static_cast<const W*>(partials), chunks, hidden_size, rest, static_cast<W*>(weight), static_cast<W*>(bias),
      static_cast<T*>(others));
  check(cudaGetLastError(), "sum_gradients launch");
}

// Warps of a forward block of Strided rows: as many as fit in shared memory, up to kForwardWarps.
template <class W>
int strided_warps(int64_t hidden_size) {
  const int64_t fit = int64_t(kSharedBytes - kReductionBytes) / (kForwardArrays * hidden_size * int64_t(sizeof(W)));
  if (fit < 1)
    throw std::runtime_error("spanbert_ext: hidden_size " + std::to_string(hidden_size) +
                             " is too large for CUDA rows");
  return int(fit < kForwardWarps ? fit : kForwardWarps);
}

// Shared memory of a backward block; raises the kernel's limit where the default does not do.
template <class W, class Kernel>
size_t backward_bytes(Kernel* kernel, int64_t values) {
  const size_t bytes = kReductionBytes + size_t(values) * sizeof(W);
  if (bytes > kSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
          "shared memory for this hidden size");
  }
  return bytes;
}

// Launches a forward kernel with a warp for each of `rows`.
template <class T, class Args>
void launch_rows(void (*packed)(Args), void (*strided)(Args), bool fits, const Args& args, int64_t rows,
                 cudaStream_t stream) {
  using W = working_t<T>;
  if (fits) {
    packed<<<blocks_for(rows, kForwardWarps), 32 * kForwardWarps, 0, stream>>>(args);
  } else {
    const int warps = strided_warps<W>(args.hidden_size);
    const size_t bytes = kReductionBytes + size_t(warps * kForwardArrays * args.hidden_size) * sizeof(W);
    strided<<<blocks_for(rows, warps), 32 * warps, bytes, stream>>>(args);
  }
}

}  // namespace

void launch_gather_boundaries(const BoundaryArgs& args, const Place& place) {
  if (args.spans * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int64_t bytes = args.hidden_size * int64_t(sizeof(T));
    if (bytes % 16 == 0 && reinterpret_cast<uintptr_t>(args.hidden) % 16 == 0) {
      gather_boundaries_kernel<int4>
          <<<blocks_for(args.spans, 1), kCopyThreads, 0, stream_of(place)>>>(args, bytes / 16);
    } else {
      gather_boundaries_kernel<T>
          <<<blocks_for(args.spans, 1), kCopyThreads, 0, stream_of(place)>>>(args, args.hidden_size);
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
    const auto kernel = packs_fit<T>(args.hidden_size, args.hidden, args.out)
                            ? gather_boundaries_backward_kernel<T, kAccessWidth<T>>
                            : gather_boundaries_backward_kernel<T, 1>;
    kernel<<<blocks_for(args.spans, 1), kCopyThreads, 0, stream_of(place)>>>(args);
  });
  check(cudaGetLastError(), "gather_boundaries_backward launch");
}

void launch_gelu_layer_norm(const GeluLayerNormArgs& args, const Place& place) {
  if (args.rows * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const bool fits = packs_fit<T>(args.hidden_size, args.x, args.weight, args.bias, args.out);
    launch_rows<T>(gelu_layer_norm_kernel<T, PackedRow<T>>, gelu_layer_norm_kernel<T, StridedRow>, fits, args,
                   args.rows, stream_of(place));
  });
  check(cudaGetLastError(), "gelu_layer_norm launch");
}

void launch_gelu_layer_norm_backward(const GeluLayerNormBackwardArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  const int64_t chunks = (args.rows + kRowsPerChunk - 1) / kRowsPerChunk, size = args.hidden_size;
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    if (chunks > 0) {
      if (packs_fit<T>(size, args.grad_out, args.x, args.weight, args.grad_x, args.partials)) {
        gelu_layer_norm_backward_kernel<T, PackedChunk<T>>
            <<<blocks_for(chunks, 1), PackedChunk<T>::Group::kSize, kReductionBytes, stream>>>(args);
      } else {
        const auto kernel = gelu_layer_norm_backward_kernel<T, StridedChunk>;
        const size_t bytes = backward_bytes<W>(kernel, kBackwardArrays * size);
        kernel<<<blocks_for(chunks, 1), StridedChunk::Group::kSize, bytes, stream>>>(args);
      }
      check(cudaGetLastError(), "gelu_layer_norm_backward launch");
    }
    launch_sum_gradients<W, W>(args.partials, chunks, size, size, args.grad_weight, args.grad_bias, args.grad_x_sum,
                               stream);
  });
}

void launch_sbo_first_layer(const SboFirstLayerArgs& args, const Place& place) {
  if (args.targets * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const bool fits =
        packs_fit<T>(args.hidden_size, args.span_rows, args.position_rows, args.weight, args.bias, args.out);
    launch_rows<T>(sbo_first_layer_kernel<T, PackedRow<T>>, sbo_first_layer_kernel<T, StridedRow>, fits, args,
                   args.targets, stream_of(place));
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
    first_targets_kernel<<<blocks_for(args.targets, kIndexThreads), kIndexThreads, 0, stream>>>(
        args.target_spans, args.sbo_ids, args.targets, args.spans, args.first_targets);
    check(cudaGetLastError(), "first_targets launch");
  }
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    if (chunks > 0) {
      const bool fits = packs_fit<T>(size, args.grad_out, args.span_rows, args.position_rows, args.weight,
                                     args.grad_span_rows, args.partials);
      const int64_t positions = args.positions * size;
      if (fits) {
        const auto kernel = sbo_first_layer_backward_kernel<T, PackedChunk<T>>;
        const bool shared = size_t(positions) * sizeof(W) + kReductionBytes <= kPositionBytes;
        const size_t bytes = backward_bytes<W>(kernel, shared ? positions : 0);
        kernel<<<blocks_for(chunks, 1), PackedChunk<T>::Group::kSize, bytes, stream>>>(args, shared);
      } else {
        const auto kernel = sbo_first_layer_backward_kernel<T, StridedChunk>;
        const size_t bytes = backward_bytes<W>(kernel, kBackwardArrays * size);
        kernel<<<blocks_for(chunks, 1), StridedChunk::Group::kSize, bytes, stream>>>(args, false);
      }
      check(cudaGetLastError(), "sbo_first_layer_backward launch");
    }
    launch_sum_gradients<W, T>(args.partials, chunks, size, args.positions * size, args.grad_weight, args.grad_bias,
                               args.grad_position_rows, stream);
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
