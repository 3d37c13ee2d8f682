// Cross entropy of logit rows with their gradient in place (formulas in softmax_rows.h), and the bias gradients as
// column sums by head: partial sums over fixed chunks of rows, added in order.
#include "cuda_group.cuh"
#include "softmax_rows.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr int kThreads = 512;  // one row of 29k logits is 57 a thread; the row stays in L1 for its three passes
constexpr int kColumnThreads = 256;
using RowBlock = Block<kThreads>;

template <class T>
__global__ void __launch_bounds__(kThreads, 2) cross_entropy_rows_kernel(const CrossEntropyArgs args) {
  using W = working_t<T>;
  __shared__ double memory[32];
  const int64_t row = blockIdx.x, target = args.targets[row];
  assert((target == kIgnore || (target >= 0 && target < args.vocab_size)) && "target outside the vocabulary");
  assert((!args.head || (args.head[row] >= 0 && args.head[row] < args.heads)) && "head without a bias");
  const W loss = cross_entropy_row<RowBlock, W, T>(RowBlock{memory}, args, row);
  if (threadIdx.x == 0) static_cast<W*>(args.losses)[row] = loss;
}

// A thread owns a column; a block adds one chunk of rows, 64 at a time to keep the digits of late terms. Two heads are
// summed in one pass over the gradient.
template <class T>
__global__ void __launch_bounds__(kColumnThreads) bias_gradient_kernel(const CrossEntropyArgs args) {
  using W = working_t<T>;
  const int64_t v = int64_t(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (v >= args.vocab_size) return;
  const T* grad = static_cast<const T*>(args.logits) + v;
  W* out = static_cast<W*>(args.partials) + int64_t(blockIdx.y) * args.heads * args.vocab_size + v;
  const int64_t begin = int64_t(blockIdx.y) * kColumnRowsPerChunk, limit = begin + kColumnRowsPerChunk;
  const int64_t end = limit < args.rows ? limit : args.rows;
  for (int64_t head = 0; head < args.heads; head += 2) {
    W even = 0, odd = 0;
    for (int64_t base = begin; base < end; base += kRowsPerSum) {
      W even_sum = 0, odd_sum = 0;
      for (int64_t row = base; row < base + kRowsPerSum && row < end; ++row) {
        const int64_t own = (args.head ? args.head[row] : 0) - head;
        const W value = load(grad[row * args.stride]);
        even_sum += own == 0 ? value : W(0);
        odd_sum += own == 1 ? value : W(0);
      }
      even += even_sum;
      odd += odd_sum;
    }
    out[head * args.vocab_size] = even;
    if (head + 1 < args.heads) out[(head + 1) * args.vocab_size] = odd;
  }
}

}  // namespace

void launch_cross_entropy_rows(const CrossEntropyArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const cudaStream_t stream = stream_of(place);
  by_dtype(args.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    using W = working_t<T>;
    if (args.rows > 0) {
      cross_entropy_rows_kernel<T><<<unsigned(args.rows), kThreads, 0, stream>>>(args);
      check(cudaGetLastError(), "cross_entropy_rows launch");
    }
    if (!args.grad_bias) return;
    const int64_t chunks = (args.rows + kColumnRowsPerChunk - 1) / kColumnRowsPerChunk;
    if (chunks > 0) {
      const dim3 grid(blocks_for(args.vocab_size, kColumnThreads), unsigned(chunks));
      bias_gradient_kernel<T><<<grid, kColumnThreads, 0, stream>>>(args);
      check(cudaGetLastError(), "bias_gradient launch");
    }
    const int64_t count = args.heads * args.vocab_size;
    launch_sum_chunks(static_cast<const W*>(args.partials), chunks, count, count, static_cast<W*>(args.grad_bias),
                      stream);
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
