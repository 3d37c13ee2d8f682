// Cross entropy of logit rows with their gradient in place, and the bias gradients. A row of whole pieces of 16 bytes
// is read once into registers (softmax_pieces.h); other rows take the scalar path of softmax.h.
#include <algorithm>

#include "cuda/group.cuh"
#include "rows/column_sums.h"
#include "rows/softmax_pieces.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

// A thread holds ten pieces of 16-bit values, 40 of its 80 registers: a row of 29056 is 384 threads, so two rows share
// a multiprocessor and one loads while the other computes. Registers instead of shared memory, because the biases of a
// head (116 KB) then stay in L1, which both passes of every row read.
constexpr int kMostHeld = 7680;  // pieces of a block: 61440 16-bit values
template <class T>
constexpr int kHeldPieces = sizeof(T) == 2 ? 10 : 12;
constexpr int kStreamedPieces = 4, kStreamThreads = 384;  // rows too long to hold, or unaligned, are read twice
constexpr int kColumnLanes = 32, kRowLanes = 8, kColumnThreads = kColumnLanes * kRowLanes;
static_assert(kColumnRowsPerChunk == kRowLanes * kRowsPerSum, "the partial sums have a row for every chunk");

SPANBERT_DEVICE void check_row(const CrossEntropyArgs& args, int64_t row) {
  const int64_t target = args.targets[row];
  assert((target == kIgnore || (target >= 0 && target < args.vocab_size)) && "target outside the vocabulary");
  assert((!args.head || (args.head[row] >= 0 && args.head[row] < args.heads)) && "head without a bias");
}

template <class T, int kBatch, bool kHeld, bool kAligned>
struct CrossEntropyRows {
  static constexpr const char* kName = "cross_entropy_rows";
  static constexpr int kThreads = kHeld || !kAligned ? kMostHeld / kHeldPieces<T> : kStreamThreads;
  static constexpr int kBlocks = kHeld || !kAligned ? 1 : 2;
  using Args = CrossEntropyArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    using Memory = double[2 * 32];
    SPANBERT_SHARED(Memory, memory);
    const int64_t row = blockIdx.x;
    check_row(args, row);
    const auto loss = cross_entropy_piece_row<T, kBatch, kHeld, kAligned>(AnyBlock{memory}, args, row);
    if (threadIdx.x == 0) static_cast<working_t<T>*>(args.losses)[row] = loss;
  }
};

// Neighbouring blocks take neighbouring columns of one chunk of rows.
template <class T, bool kWide>
struct BiasGradient {
  using Sums = ColumnSums<T, kWide, kColumnLanes, kRowLanes>;
  static constexpr const char* kName = "bias_gradient";
  static constexpr int kThreads = kColumnThreads, kBlocks = 3;
  struct Args {
    CrossEntropyArgs rows;
    unsigned column_blocks;
  };

  SPANBERT_DEVICE static void run(const Args& args) {
    SPANBERT_SHARED(Sums, shared);
    bias_gradient_block(Block<kThreads>{nullptr}, args.rows, blockIdx.x / args.column_blocks,
                        blockIdx.x % args.column_blocks, shared);
  }
};

bool at_16_bytes(const void* address, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && row_bytes % 16 == 0;
}

template <class T>
void launch_rows(const CrossEntropyArgs& args, bool wide, cudaStream_t stream) {
  using Held = CrossEntropyRows<T, kHeldPieces<T>, true, true>;
  using Streamed = CrossEntropyRows<T, kStreamedPieces, false, true>;
  using Unaligned = CrossEntropyRows<T, kStreamedPieces, false, false>;
  const bool wide_bias = !args.bias || at_16_bytes(args.bias, args.bias_stride * int64_t(sizeof(working_t<T>)));
  check_limit(Held::kName, "logits a row", args.stride, 1 << 30);  // columns are counted in 32 bits
  // The number of threads decides the order of a row's sum, so it follows from the shape alone, not from alignment.
  const int64_t pieces = args.vocab_size * int64_t(sizeof(T)) / 16;
  const bool fits = pieces <= kMostHeld;
  const int64_t threads = fits ? 32 * std::max<int64_t>(1, divide_up(pieces, 32 * kHeldPieces<T>)) : kStreamThreads;
  if (!wide || !wide_bias) {
    launch<Unaligned>({args.rows, threads}, stream, args);
  } else if (fits) {
    launch<Held>({args.rows, threads}, stream, args);
  } else {
    launch<Streamed>({args.rows, threads}, stream, args);
  }
}

template <class T, bool kWide>
void launch_bias_gradient(const CrossEntropyArgs& args, int64_t chunks, cudaStream_t stream) {
  using Kernel = BiasGradient<T, kWide>;
  const int64_t column_blocks = divide_up(args.vocab_size, Kernel::Sums::kColumns);
  launch<Kernel>({chunks * column_blocks, Kernel::kThreads}, stream, {args, unsigned(column_blocks)});
}

}  // namespace

void launch_cross_entropy_rows(const CrossEntropyArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    const bool wide = at_16_bytes(args.logits, args.stride * int64_t(sizeof(T)));
    launch_rows<T>(args, wide, stream);
    if (!args.grad_bias) return;
    const int64_t chunks = divide_up(args.rows, kColumnRowsPerChunk), count = args.heads * args.vocab_size;
    if (wide) {
      launch_bias_gradient<T, true>(args, chunks, stream);
    } else {
      launch_bias_gradient<T, false>(args, chunks, stream);
    }
    launch<SumChunks<W>>(grid_of_chunk_sums(count), stream,
                         {static_cast<const W*>(args.partials), chunks, count, static_cast<W*>(args.grad_bias)});
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
