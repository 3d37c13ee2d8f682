// Residual connections on the GPU: LN(dropout(x) + residual) and dropout(LN(x + residual)), forward and backward
// (formulas in dropout_norm.h). A row's columns stay in registers and move 16 bytes at a time: one warp has a row of up
// to 1024 columns, one block a row of up to 8192. Double rows and odd sizes take the plain loops with shared memory.
#include <type_traits>

#include "cuda/group.cuh"
#include "rows/dropout_norm.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

// Both sums in one meeting of the block.
template <int kThreads, class W>
SPANBERT_DEVICE Pair<W> sum_pair(const Block<kThreads>& g, W first, W second) {
  static_assert(2 * kThreads / 32 <= 32, "the block's memory holds 32 values");
  Pair<W>* values = reinterpret_cast<Pair<W>*>(g.memory);
  first = Warp().sum(first);
  second = Warp().sum(second);
  __syncthreads();  // the last reduction's readers are done
  if ((threadIdx.x & 31) == 0) values[threadIdx.x >> 5] = {first, second};
  __syncthreads();
  Pair<W> all = values[0];
  for (int warp = 1; warp < kThreads / 32; ++warp) {
    all.first += values[warp].first;
    all.second += values[warp].second;
  }
  return all;
}

namespace {

constexpr int kForwardWarps = 4;  // rows of a forward block; they do not depend on each other
// Warps that share the rows of a chunk: at 140 registers a thread, three blocks of four warps fit where one of eight
// does.
constexpr int kBackwardWarps = 4;
constexpr int kRowThreads = 256;
constexpr int kPackets = 4;  // of eight columns a thread
constexpr int64_t kWarpColumns = int64_t(kPackets) * 8 * 32, kBlockColumns = int64_t(kPackets) * 8 * kRowThreads;
using RowBlock = Block<kRowThreads>;
using ReductionMemory = double[32];
static_assert(kWarpColumns == 1024 && kBlockColumns == 8192, "documented above");

template <class X, class S>
struct DropoutNorm {
  static constexpr const char* kName = "dropout_norm";
  static constexpr int kThreads = 32 * kForwardWarps, kBlocks = 0;
  using Args = DropoutNormArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const int64_t row = int64_t(blockIdx.x) * kForwardWarps + (threadIdx.x >> 5);
    if (row >= args.rows) return;
    const Warp warp;
    PacketColumns<Warp, float, kPackets> columns(warp, args.hidden_size);
    dropout_norm_row<Drop::kEither, X, S>(columns, args, row);
  }
};

template <class X, class S>
struct WideDropoutNorm {
  static constexpr const char* kName = "wide_dropout_norm";
  static constexpr int kThreads = kRowThreads, kBlocks = 1;
  using Args = DropoutNormArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    SPANBERT_SHARED(ReductionMemory, memory);
    const RowBlock block{memory};
    PacketColumns<RowBlock, float, kPackets> columns(block, args.hidden_size);
    dropout_norm_row<Drop::kEither, X, S>(columns, args, blockIdx.x);
  }
};

// The warps of a block take turns with the rows of a chunk; their sums are added in the order of the warps.
// BERT-base needs three packets only, and a fourth would cost a third of the warps that fit.
template <class X, class S, int kRowPackets>
struct DropoutNormBackward {
  static constexpr const char* kName = "dropout_norm_backward";
  static constexpr int kThreads = 32 * kBackwardWarps, kBlocks = kRowPackets == 3 ? 3 : 2;
  using Args = DropoutNormArgs;
  using Columns = PacketColumns<Warp, float, kRowPackets>;
  using Staged = float[kBackwardWarps][Columns::kMost];

  SPANBERT_DEVICE static void run(const Args& args) {
    SPANBERT_SHARED(Staged, staged);
    const Warp group;
    const int warp = int(threadIdx.x >> 5);
    Columns columns(group, args.hidden_size);
    typename Columns::Sums sums;
    dropout_norm_backward_chunk<Drop::kEither, X, S>(columns, args, blockIdx.x, warp, kBackwardWarps, sums);
    float* out = static_cast<float*>(args.partials) + int64_t(blockIdx.x) * 2 * args.hidden_size;
    for (int which = 0; which < 2; ++which) {
      columns.each(
          [&](Spot at) { columns.write(staged[warp], at, which == 0 ? sums.first[at.part] : sums.second[at.part]); });
      __syncthreads();
      for (int64_t h = threadIdx.x; h < args.hidden_size; h += kThreads) {
        float sum = staged[0][h];
        for (int other = 1; other < kBackwardWarps; ++other) sum += staged[other][h];
        out[which * args.hidden_size + h] = sum;
      }
      __syncthreads();
    }
  }
};

template <class X, class S>
struct WideDropoutNormBackward {
  static constexpr const char* kName = "wide_dropout_norm_backward";
  static constexpr int kThreads = kRowThreads, kBlocks = 1;
  using Args = DropoutNormArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    using Columns = PacketColumns<RowBlock, float, kPackets>;
    SPANBERT_SHARED(ReductionMemory, memory);
    const RowBlock block{memory};
    Columns columns(block, args.hidden_size);
    typename Columns::Sums sums;
    dropout_norm_backward_chunk<Drop::kEither, X, S>(columns, args, blockIdx.x, 0, 1, sums);
    float* out = static_cast<float*>(args.partials) + int64_t(blockIdx.x) * 2 * args.hidden_size;
    columns.each([&](Spot at) {
      columns.write(out, at, sums.first[at.part]);
      columns.write(out + args.hidden_size, at, sums.second[at.part]);
    });
  }
};

// Any size: a row of working values and the row's draws in shared memory, behind what the block's reductions need.
template <class W>
SPANBERT_DEVICE StridedColumns<RowBlock, W> strided_columns(const RowBlock& block, int64_t size) {
  W* values = reinterpret_cast<W*>(block.memory + 32);
  return {block, size, values, reinterpret_cast<uint16_t*>(values + size)};
}

template <class X, class S>
struct AnyDropoutNorm {
  static constexpr const char* kName = "any_dropout_norm";
  static constexpr int kThreads = kRowThreads, kBlocks = 3;
  using Args = DropoutNormArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const RowBlock block{dynamic_shared<double>()};
    auto columns = strided_columns<working_t<S>>(block, args.hidden_size);
    dropout_norm_row<Drop::kEither, X, S>(columns, args, blockIdx.x);
  }
};

template <class X, class S>
struct AnyDropoutNormBackward {
  static constexpr const char* kName = "any_dropout_norm_backward";
  static constexpr int kThreads = kRowThreads, kBlocks = 3;
  using Args = DropoutNormArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    using W = working_t<S>;
    const RowBlock block{dynamic_shared<double>()};
    auto columns = strided_columns<W>(block, args.hidden_size);
    W* sums = static_cast<W*>(args.partials) + int64_t(blockIdx.x) * 2 * args.hidden_size;
    dropout_norm_backward_chunk<Drop::kEither, X, S>(columns, args, blockIdx.x, 0, 1, sums);
  }
};

template <class W>
int64_t strided_bytes(int64_t size) {
  return int64_t(sizeof(ReductionMemory)) + size * int64_t(sizeof(W)) + draw_columns(size) * int64_t(sizeof(uint16_t));
}

// An fp16 branch of an fp32 stream is rare where bf16 exists, and not worth a quarter more of compile time.
template <class X, class S>
constexpr bool kHasPackets = sizeof(S) <= 4 && !(std::is_same_v<X, fp16> && std::is_same_v<S, float>);

bool in_packets(const DropoutNormArgs& a) {
  uintptr_t bits = 0;
  for (const void* p : {a.x, a.residual, a.weight, a.bias, static_cast<const void*>(a.out), a.grad_out,
                        static_cast<const void*>(a.grad_x), static_cast<const void*>(a.grad_residual),
                        static_cast<const void*>(a.partials)}) {
    bits |= reinterpret_cast<uintptr_t>(p);
  }
  return bits % 16 == 0 && a.hidden_size % 8 == 0 && a.hidden_size <= kBlockColumns;
}

// x has the stream's dtype or is a 16-bit branch of an fp32 stream.
template <class Run>
void by_stream(const DropoutNormArgs& args, const Run& run) {
  switch (args.stream_dtype) {
    case Dtype::kFloat64: return run(double(), double());
    case Dtype::kBFloat16: return run(bf16(), bf16());
    case Dtype::kFloat16: return run(fp16(), fp16());
    case Dtype::kFloat32: break;
  }
  if (args.x_dtype == Dtype::kBFloat16) return run(bf16(), float());
  return args.x_dtype == Dtype::kFloat16 ? run(fp16(), float()) : run(float(), float());
}

template <class X, class S>
void forward(const DropoutNormArgs& args, cudaStream_t stream) {
  if constexpr (kHasPackets<X, S>) {
    if (in_packets(args)) {
      if (args.hidden_size <= kWarpColumns) {
        launch<DropoutNorm<X, S>>({divide_up(args.rows, kForwardWarps), 32 * kForwardWarps}, stream, args);
      } else {
        launch<WideDropoutNorm<X, S>>({args.rows, kRowThreads}, stream, args);
      }
      return;
    }
  }
  const int64_t bytes = strided_bytes<working_t<S>>(args.hidden_size);
  launch<AnyDropoutNorm<X, S>>({args.rows, kRowThreads, 1, bytes}, stream, args);
}

template <class X, class S>
void backward(const DropoutNormArgs& args, int64_t chunks, cudaStream_t stream) {
  if constexpr (kHasPackets<X, S>) {
    if (in_packets(args)) {
      if (args.hidden_size <= 768) {
        launch<DropoutNormBackward<X, S, 3>>({chunks, 32 * kBackwardWarps}, stream, args);
      } else if (args.hidden_size <= kWarpColumns) {
        launch<DropoutNormBackward<X, S, 4>>({chunks, 32 * kBackwardWarps}, stream, args);
      } else {
        launch<WideDropoutNormBackward<X, S>>({chunks, kRowThreads}, stream, args);
      }
      return;
    }
  }
  const int64_t bytes = strided_bytes<working_t<S>>(args.hidden_size);
  launch<AnyDropoutNormBackward<X, S>>({chunks, kRowThreads, 1, bytes}, stream, args);
}

}  // namespace

void launch_dropout_norm(const DropoutNormArgs& args, const Place& place) {
  if (args.rows * args.hidden_size == 0) return;
  const DeviceGuard guard(place.device);
  by_stream(args, [&](auto x, auto s) { forward<decltype(x), decltype(s)>(args, stream_of(place)); });
}

void launch_dropout_norm_backward(const DropoutNormArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  const int64_t size = args.hidden_size, chunks = divide_up(args.rows, norm_rows_per_chunk(args.rows));
  by_stream(args, [&](auto x, auto s) {
    using W = working_t<decltype(s)>;
    if (size > 0) backward<decltype(x), decltype(s)>(args, chunks, stream_of(place));
    launch<SumChunks<W>>(
        grid_of_chunk_sums(2 * size), stream_of(place),
        {static_cast<const W*>(args.partials), chunks, 2 * size, static_cast<W*>(args.grad_parameters)});
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
