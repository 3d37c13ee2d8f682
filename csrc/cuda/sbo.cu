// The row operations around the products of the span boundary objective: boundary gather, LN(GELU(x)) of plain rows and
// of span + position rows, forward and backward (formulas in sbo.h). Sums over rows go through chunks in a fixed
// order, so there are no atomics (ops.h says what that promises).
#include <algorithm>
#include <type_traits>

#include "cuda/group.cuh"
#include "rows/sbo.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr int kCopyThreads = 128;  // one 16-byte access a thread covers a row of 1024 bf16
constexpr int kForwardWarps = 4;   // rows share nothing: larger blocks would only coarsen the grid
constexpr int64_t kReductionBytes = 32 * sizeof(double);  // what Block needs
// Position sums of a block stay in shared memory up to here: every architecture since 8.0 grants a block 99 KB.
constexpr int64_t kPositionBytes = 96 << 10;

// Packed rows have at most kWidest columns, those of BERT-large; twice that would not fit a warp's registers.
constexpr int kWidest = 1024;

// Rows of another width or place, and double ones (gradient checks): one column an access, values in shared memory.
using StridedRow = Strided<Warp>;
using StridedChunk = Strided<Block<256>>;

// Forward, a warp a row: kWidest / 32 values a lane in registers, a few accesses in flight before the first is used.
template <class T>
using PackedRow =
    std::conditional_t<sizeof(T) <= 4, Packed<Warp, kVectorWidth<T>, kWidest / 32 / kVectorWidth<T>>, StridedRow>;
static_assert(PackedRow<bf16>::kColumns == kWidest && PackedRow<float>::kColumns == kWidest, "a row is covered");

// Backward, a block a chunk: one access a thread covers the row, so each of the six arrays is one pack of registers.
template <class T>
using PackedChunk =
    std::conditional_t<sizeof(T) <= 4, Packed<Block<kWidest / kVectorWidth<T>>, kVectorWidth<T>, 1>, StridedChunk>;
static_assert(PackedChunk<bf16>::Group::kSize == 128 && PackedChunk<float>::Group::kSize == 256,
              "few warps meet in the row reductions");

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

// Whether rows of T, and all that lies beside them, can be reached in whole accesses,
template <class T, class... Pointers>
bool rows_are_vectors(int64_t hidden_size, Pointers... pointers) {
  return hidden_size % kVectorWidth<T> == 0 && (aligned(pointers) && ...);
}

// and fit the registers.
template <class T, class... Pointers>
bool packs_fit(int64_t hidden_size, Pointers... pointers) {
  return sizeof(T) <= 4 && hidden_size <= kWidest && rows_are_vectors<T>(hidden_size, pointers...);
}

// kPack columns at a time: an access of 16 bytes where rows allow it, single scalars elsewhere.
template <class T, int kPack>
struct GatherBoundaries {
  static constexpr const char* kName = "gather_boundaries";
  static constexpr int kThreads = kCopyThreads, kBlocks = 0;
  using Args = BoundaryArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const int64_t s = blockIdx.x, left = args.span_left[s], right = args.span_right[s], size = args.hidden_size;
    const T* hidden = static_cast<const T*>(args.hidden);
    T* pair = static_cast<T*>(args.out) + 2 * s * size;
    const bool used = has_boundaries(args, s);
    assert((!used || (left >= 0 && left < args.tokens && right < args.tokens)) && "span boundary outside the batch");
    for (int64_t h = int64_t(threadIdx.x) * kPack; h < size; h += kThreads * kPack) {
      copy_pack(used ? hidden + left * size + h : nullptr, pair + h);
      copy_pack(used ? hidden + right * size + h : nullptr, pair + size + h);
    }
  }

  // Zeros from nowhere.
  SPANBERT_DEVICE static void copy_pack(const T* from, T* to) {
    if constexpr (kPack == 1) {
      *to = from ? *from : T{};
    } else {
      write_vector(to, from ? read_vector(from) : Vector{});
    }
  }
};

// Spans ascend, so only the neighbour can share a boundary token: the later span adds both gradients to it. Both
// boundaries of a span of one token between internal endpoints are that token, and no neighbour's.
template <class T, int kPack>
struct GatherBoundariesBackward {
  static constexpr const char* kName = "gather_boundaries_backward";
  static constexpr int kThreads = kCopyThreads, kBlocks = 0;
  using Args = BoundaryArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const int64_t s = blockIdx.x, left = args.span_left[s], right = args.span_right[s], size = args.hidden_size;
    if (!has_boundaries(args, s)) return;
    assert(left >= 0 && left < args.tokens && right < args.tokens && "span boundary outside the batch");
    const T* grad = static_cast<const T*>(args.hidden) + 2 * s * size;
    T* out = static_cast<T*>(args.out);
    const bool joins = s > 0 && args.span_right[s - 1] == left && args.span_left[s - 1] < left;
    const bool joined = s + 1 < args.spans && args.span_left[s + 1] == right && args.span_right[s + 1] > right;
    const bool alone = left == right;
    for (int64_t h = int64_t(threadIdx.x) * kPack; h < size; h += kThreads * kPack) {
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
};

// Values of a thread's columns in shared memory, behind those of the reductions; Packed columns leave them alone.
template <class W>
SPANBERT_DEVICE W* shared_rows() {
  return reinterpret_cast<W*>(dynamic_shared<double>() + 32);
}

// A warp a row or target; Strided rows lie side by side in shared memory.
template <class T, class Columns>
struct GeluLayerNorm {
  static constexpr const char* kName = "gelu_layer_norm";
  static constexpr int kThreads = 32 * kForwardWarps, kBlocks = 0;
  using Args = GeluLayerNormArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const int warp = int(threadIdx.x >> 5);
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp;
    if (row >= args.rows) return;
    auto* scratch = shared_rows<working_t<T>>() + warp * kForwardArrays * args.hidden_size;
    gelu_layer_norm_at<T>(Columns{Warp(), args.hidden_size}, args, row, scratch);
  }
};

template <class T, class Columns>
struct SboFirstLayer {
  static constexpr const char* kName = "sbo_first_layer";
  static constexpr int kThreads = 32 * kForwardWarps, kBlocks = 0;
  using Args = SboFirstLayerArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const int warp = int(threadIdx.x >> 5);
    const int64_t k = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp;
    if (k >= args.targets) return;
    auto* scratch = shared_rows<working_t<T>>() + warp * kForwardArrays * args.hidden_size;
    sbo_first_layer_at<T>(Columns{Warp(), args.hidden_size}, args, k, scratch);
  }
};

template <class T, class Columns>
struct GeluLayerNormBackward {
  static constexpr const char* kName = "gelu_layer_norm_backward";
  static constexpr int kThreads = Columns::Group::kSize, kBlocks = 2;
  using Args = GeluLayerNormBackwardArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const Columns columns{{dynamic_shared<double>()}, args.hidden_size};
    gelu_layer_norm_backward_chunk<T>(columns, args, blockIdx.x, shared_rows<working_t<T>>());
  }
};

// Each span's first SBO target; spans without one keep -1.
struct FirstTargets {
  static constexpr const char* kName = "first_targets";
  static constexpr int kThreads = 256, kBlocks = 0;
  using Args = SboFirstLayerBackwardArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (k >= args.targets || args.sbo_ids[k] == kIgnore) return;
    const int64_t s = args.target_spans[k];
    assert(s >= 0 && s < args.spans && "SBO target outside its table");
    for (int64_t j = k - 1; j >= 0 && args.target_spans[j] == s; --j) {
      if (args.sbo_ids[j] != kIgnore) return;
    }
    args.first_targets[s] = k;
  }
};

template <class T, class Columns>
struct SboFirstLayerBackward {
  static constexpr const char* kName = "sbo_first_layer_backward";
  static constexpr int kThreads = Columns::Group::kSize, kBlocks = 2;

  struct Args {
    SboFirstLayerBackwardArgs rows;
    bool shared_positions;
  };

  SPANBERT_DEVICE static void run(const Args& args) {
    using W = working_t<T>;
    const int64_t size = args.rows.hidden_size;
    const Columns columns{{dynamic_shared<double>()}, size};
    W* positions = args.shared_positions ? shared_rows<W>() : nullptr;
    W* scratch = shared_rows<W>() + (args.shared_positions ? args.rows.positions * size : 0);
    sbo_first_layer_backward_chunk<T>(columns, args.rows, blockIdx.x, scratch, positions);
  }
};

// The parameter gradients of a backward pass from its partials [chunks, 2 H + rest]: two of the working type, [H] each,
// and the rest, [rest] of type T.
template <class W, class T>
struct SumGradients {
  static constexpr const char* kName = "sum_gradients";
  static constexpr int kThreads = 32 * kChunkLanes, kBlocks = 0;

  struct Args {
    const W* partials;
    int64_t chunks, hidden_size, rest;
    W *weight, *bias;
    T* others;
  };

  SPANBERT_DEVICE static void run(const Args& args) {
    const int64_t size = args.hidden_size;
    const ChunkSum<W> sum = sum_of_chunks(args.partials, args.chunks, 2 * size + args.rest);
    if (!sum.valid) return;
    if (sum.column < size) {
      args.weight[sum.column] = sum.value;
    } else if (sum.column < 2 * size) {
      args.bias[sum.column - size] = sum.value;
    } else {
      args.others[sum.column - 2 * size] = store<T>(sum.value);
    }
  }
};

template <class W, class T>
void launch_sum_gradients(const void* partials, int64_t chunks, int64_t hidden_size, int64_t rest, void* weight,
                          void* bias, void* others, cudaStream_t stream) {
  if (hidden_size == 0) return;
  launch<SumGradients<W, T>>(grid_of_chunk_sums(2 * hidden_size + rest), stream,
                             {static_cast<const W*>(partials), chunks, hidden_size, rest, static_cast<W*>(weight),
                              static_cast<W*>(bias), static_cast<T*>(others)});
}

// Launches a forward kernel with a warp for each of `rows`; of Strided rows as many to a block as fit shared memory.
template <template <class, class> class Kernel, class T, class Args>
void launch_rows(bool packed, const Args& args, int64_t rows, cudaStream_t stream) {
  if (packed) {
    launch<Kernel<T, PackedRow<T>>>({divide_up(rows, kForwardWarps), 32 * kForwardWarps}, stream, args);
    return;
  }
  using Strided = Kernel<T, StridedRow>;
  const int64_t row_bytes = kForwardArrays * args.hidden_size * int64_t(sizeof(working_t<T>));
  const int64_t fit = (kSharedByDefault - kReductionBytes) / row_bytes;
  const int64_t warps = std::min<int64_t>(std::max<int64_t>(fit, 1), kForwardWarps);
  launch<Strided>({divide_up(rows, warps), 32 * warps, 1, kReductionBytes + warps * row_bytes}, stream, args);
}

}  // namespace

void launch_gather_boundaries(const BoundaryArgs& args, const Place& place) {
  if (args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const Grid grid{args.spans, kCopyThreads};
    if (rows_are_vectors<T>(args.hidden_size, args.hidden, args.out)) {
      launch<GatherBoundaries<T, kVectorWidth<T>>>(grid, stream_of(place), args);
    } else {
      launch<GatherBoundaries<T, 1>>(grid, stream_of(place), args);
    }
  });
}

void launch_gather_boundaries_backward(const BoundaryArgs& args, const Place& place) {
  if (args.tokens * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    check(cudaMemsetAsync(args.out, 0, size_t(args.tokens * args.hidden_size) * sizeof(T), stream_of(place)), "memset");
    const Grid grid{args.spans, kCopyThreads};
    if (packs_fit<T>(args.hidden_size, args.hidden, args.out)) {
      launch<GatherBoundariesBackward<T, kVectorWidth<T>>>(grid, stream_of(place), args);
    } else {
      launch<GatherBoundariesBackward<T, 1>>(grid, stream_of(place), args);
    }
  });
}

void launch_gelu_layer_norm(const GeluLayerNormArgs& args, const Place& place) {
  if (args.rows * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const bool packed = packs_fit<T>(args.hidden_size, args.x, args.weight, args.bias, args.out);
    launch_rows<GeluLayerNorm, T>(packed, args, args.rows, stream_of(place));
  });
}

void launch_gelu_layer_norm_backward(const GeluLayerNormBackwardArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  const int64_t chunks = divide_up(args.rows, kRowsPerChunk), size = args.hidden_size;
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    if (packs_fit<T>(size, args.grad_out, args.x, args.weight, args.grad_x, args.partials)) {
      using Columns = PackedChunk<T>;
      launch<GeluLayerNormBackward<T, Columns>>({chunks, Columns::Group::kSize, 1, kReductionBytes}, stream, args);
    } else {
      const int64_t bytes = kReductionBytes + kBackwardArrays * size * int64_t(sizeof(W));
      launch<GeluLayerNormBackward<T, StridedChunk>>({chunks, StridedChunk::Group::kSize, 1, bytes}, stream, args);
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
    const bool packed =
        packs_fit<T>(args.hidden_size, args.span_rows, args.position_rows, args.weight, args.bias, args.out);
    launch_rows<SboFirstLayer, T>(packed, args, args.targets, stream_of(place));
  });
}

void launch_sbo_first_layer_backward(const SboFirstLayerBackwardArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  const int64_t chunks = divide_up(args.spans, kSpansPerChunk), size = args.hidden_size;
  if (args.spans > 0) {
    check(cudaMemsetAsync(args.first_targets, 0xFF, size_t(args.spans) * sizeof(int64_t), stream), "memset");
  }
  launch<FirstTargets>({divide_up(args.targets, FirstTargets::kThreads), FirstTargets::kThreads}, stream, args);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    const int64_t position_bytes = args.positions * size * int64_t(sizeof(W));
    if (packs_fit<T>(size, args.grad_out, args.span_rows, args.position_rows, args.weight, args.grad_span_rows,
                     args.partials)) {
      using Columns = PackedChunk<T>;
      const bool shared = position_bytes + kReductionBytes <= kPositionBytes;
      const int64_t bytes = kReductionBytes + (shared ? position_bytes : 0);
      launch<SboFirstLayerBackward<T, Columns>>({chunks, Columns::Group::kSize, 1, bytes}, stream, {args, shared});
    } else {
      const int64_t bytes = kReductionBytes + kBackwardArrays * size * int64_t(sizeof(W));
      launch<SboFirstLayerBackward<T, StridedChunk>>({chunks, StridedChunk::Group::kSize, 1, bytes}, stream,
                                                     {args, false});
    }
    launch_sum_gradients<W, T>(args.partials, chunks, size, args.positions * size, args.grad_weight, args.grad_bias,
                               args.grad_position_rows, stream);
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
