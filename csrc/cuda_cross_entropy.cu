// Cross entropy of logit rows with their gradient in place, and the bias gradients. A row of whole pieces of 16 bytes
// is read once into registers (softmax_pieces.h); other rows take the scalar path of softmax_rows.h.
#include <algorithm>

#include "column_sums.h"
#include "cuda_group.cuh"
#include "softmax_pieces.h"

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

__device__ void check_row(const CrossEntropyArgs& args, int64_t row) {
  const int64_t target = args.targets[row];
  assert((target == kIgnore || (target >= 0 && target < args.vocab_size)) && "target outside the vocabulary");
  assert((!args.head || (args.head[row] >= 0 && args.head[row] < args.heads)) && "head without a bias");
}

template <class T, int kBatch, bool kHeld, bool kAligned>
__global__ void __launch_bounds__(kHeld || !kAligned ? kMostHeld / kHeldPieces<T> : kStreamThreads,
                                  kHeld || !kAligned ? 1 : 2) cross_entropy_rows_kernel(const CrossEntropyArgs args) {
  __shared__ double memory[2 * 32];
  const int64_t row = blockIdx.x;
  check_row(args, row);
  const auto loss = cross_entropy_piece_row<T, kBatch, kHeld, kAligned>(AnyBlock{memory}, args, row);
  if (threadIdx.x == 0) static_cast<working_t<T>*>(args.losses)[row] = loss;
}

// Neighbouring blocks take neighbouring columns of one chunk of rows.
template <class T, bool kWide>
__global__ void __launch_bounds__(kColumnThreads, 3)
    bias_gradient_kernel(const CrossEntropyArgs args, unsigned column_blocks) {
  __shared__ ColumnSums<T, kWide, kColumnLanes, kRowLanes> shared;
  bias_gradient_block(Block<kColumnThreads>{nullptr}, args, blockIdx.x / column_blocks, blockIdx.x % column_blocks,
                      shared);
}

bool at_16_bytes(const void* address, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && row_bytes % 16 == 0;
}

template <class T>
void launch_rows(const CrossEntropyArgs& args, bool wide, cudaStream_t stream) {
  const unsigned rows = blocks_for(args.rows, 1);
  const bool wide_bias = !args.bias || at_16_bytes(args.bias, args.bias_stride * int64_t(sizeof(working_t<T>)));
  if (args.stride > (1 << 30)) throw std::runtime_error("spanbert_ext: logit rows are too long for CUDA");
  // The number of threads decides the order of a row's sum, so it follows from the shape alone, not from alignment.
  const int64_t pieces = args.vocab_size * int64_t(sizeof(T)) / 16;
  const bool fits = pieces <= kMostHeld;
  const unsigned threads = fits ? 32 * std::max(1u, blocks_for(pieces, 32 * kHeldPieces<T>)) : kStreamThreads;
  if (!wide || !wide_bias) {
    cross_entropy_rows_kernel<T, kStreamedPieces, false, false><<<rows, threads, 0, stream>>>(args);
  } else if (fits) {
    cross_entropy_rows_kernel<T, kHeldPieces<T>, true, true><<<rows, threads, 0, stream>>>(args);
  } else {
    cross_entropy_rows_kernel<T, kStreamedPieces, false, true><<<rows, threads, 0, stream>>>(args);
  }
  check(cudaGetLastError(), "cross_entropy_rows launch");
}

template <class T, bool kWide>
void launch_bias_gradient(const CrossEntropyArgs& args, int64_t chunks, cudaStream_t stream) {
  const unsigned column_blocks = blocks_for(args.vocab_size, ColumnSums<T, kWide, kColumnLanes, kRowLanes>::kColumns);
  const unsigned blocks = blocks_for(chunks * column_blocks, 1);
  bias_gradient_kernel<T, kWide><<<blocks, kColumnThreads, 0, stream>>>(args, column_blocks);
  check(cudaGetLastError(), "bias_gradient launch");
}

}  // namespace

void launch_cross_entropy_rows(const CrossEntropyArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    const bool wide = at_16_bytes(args.logits, args.stride * int64_t(sizeof(T)));
    if (args.rows > 0) launch_rows<T>(args, wide, stream);
    if (!args.grad_bias) return;
    const int64_t chunks = (args.rows + kColumnRowsPerChunk - 1) / kColumnRowsPerChunk;
    if (chunks > 0 && wide) launch_bias_gradient<T, true>(args, chunks, stream);
    if (chunks > 0 && !wide) launch_bias_gradient<T, false>(args, chunks, stream);
    const int64_t count = args.heads * args.vocab_size;
    launch_sum_chunks(static_cast<const W*>(args.partials), chunks, count, count, static_cast<W*>(args.grad_bias),
                      stream);
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
