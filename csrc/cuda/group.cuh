// What the CUDA files share: the groups of a warp and of a block, and sums over chunks.
#pragma once

#include <cstdio>

#include "common/portable.h"
#include "cuda/launch.cuh"
#include "ops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Warp {
  static constexpr int kSize = 32;

  SPANBERT_DEVICE int rank() const { return int(threadIdx.x & 31); }
  SPANBERT_HD static constexpr int size() { return kSize; }
  SPANBERT_DEVICE void sync() const { __syncwarp(); }

  template <class N>
  SPANBERT_DEVICE N sum(N x) const {
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
  }
  template <class N>
  SPANBERT_DEVICE N max(N x) const {
    for (int step = 16; step > 0; step >>= 1) {
      const N other = __shfl_xor_sync(kAllLanes, x, step);
      x = other > x ? other : x;
    }
    return x;
  }
  template <class N>
  SPANBERT_DEVICE void sum_pair(N& a, N& b, int) const {
    a = sum(a);
    b = sum(b);
  }
  SPANBERT_DEVICE uint32_t broadcast(uint32_t x, int lane) const { return __shfl_sync(kAllLanes, x, lane); }
  // Sum of x over lower lanes; `total` becomes the sum over all.
  SPANBERT_DEVICE int exclusive_sum(int x, int& total) const {
    int inclusive = x;
    for (int step = 1; step < kSize; step <<= 1) {
      const int lower = __shfl_up_sync(kAllLanes, inclusive, step);
      if (rank() >= step) inclusive += lower;
    }
    total = __shfl_sync(kAllLanes, inclusive, kSize - 1);
    return inclusive - x;
  }
  template <class Flags>
  SPANBERT_DEVICE void pack_flags(int64_t n, const Flags& flags, uint64_t* low, uint64_t* high) const {
    for (int64_t base = 0; base < n; base += 64) {
      const int64_t i = base + rank(), j = i + 32;
      const unsigned first = i < n ? flags(i) : 0, second = j < n ? flags(j) : 0;
      const uint64_t low_bits = __ballot_sync(kAllLanes, first & 1) | uint64_t(__ballot_sync(kAllLanes, second & 1))
                                                                          << 32;
      const uint64_t high_bits = __ballot_sync(kAllLanes, first & 2) | uint64_t(__ballot_sync(kAllLanes, second & 2))
                                                                           << 32;
      if (rank() == 0) {
        low[base >> 6] = low_bits;
        high[base >> 6] = high_bits;
      }
    }
  }
};

// All threads of a block. Reductions go through `memory`, 32 values of 8 bytes in shared memory.
template <int kThreads>
struct Block {
  static constexpr int kSize = kThreads;
  static_assert(kThreads % 32 == 0 && kThreads <= 1024, "a block is whole warps");
  double* memory;

  SPANBERT_DEVICE int rank() const { return int(threadIdx.x); }
  SPANBERT_HD static constexpr int size() { return kThreads; }
  SPANBERT_DEVICE void sync() const { __syncthreads(); }

  template <class N, class Combine>
  SPANBERT_DEVICE N reduce(N x, const Combine& combine) const {
    N* values = reinterpret_cast<N*>(memory);
    __syncthreads();  // the last reduction's readers are done with `memory`
    if ((threadIdx.x & 31) == 0) values[threadIdx.x >> 5] = x;
    __syncthreads();
    N all = values[0];
    for (int warp = 1; warp < kThreads / 32; ++warp) all = combine(all, values[warp]);
    return all;
  }
  template <class N>
  SPANBERT_DEVICE N sum(N x) const {
    return reduce(Warp().sum(x), [](N a, N b) { return a + b; });
  }
  template <class N>
  SPANBERT_DEVICE N max(N x) const {
    return reduce(Warp().max(x), [](N a, N b) { return b > a ? b : a; });
  }
  // Sums two values over the block behind one barrier. Calls that follow each other take turns 0 and 1: whoever still
  // reads the last pair cannot be overtaken by two calls, so two places are enough.
  template <class N>
  SPANBERT_DEVICE void sum_pair(N& a, N& b, int turn) const {
    constexpr int kWarps = kThreads / 32;
    static_assert(4 * kWarps * sizeof(N) <= 32 * sizeof(double), "two turns of pairs fit in `memory`");
    N* values = reinterpret_cast<N*>(memory) + turn * 2 * kWarps;
    a = Warp().sum(a);
    b = Warp().sum(b);
    if ((threadIdx.x & 31) == 0) {
      values[2 * (threadIdx.x >> 5)] = a;
      values[2 * (threadIdx.x >> 5) + 1] = b;
    }
    __syncthreads();
    a = values[0];
    b = values[1];
    for (int warp = 1; warp < kWarps; ++warp) {
      a += values[2 * warp];
      b += values[2 * warp + 1];
    }
  }
};

// All threads of a block whose size is chosen at launch. `memory` is 64 values of 8 bytes: maxima and sums have halves
// of their own, so a reduction needs one barrier as long as both kinds take turns (the barrier of the one stands
// between the readers and the next writers of the other).
struct AnyBlock {
  static constexpr int kSize = 1024;  // at most
  double* memory;

  SPANBERT_DEVICE int rank() const { return int(threadIdx.x); }
  SPANBERT_DEVICE int size() const { return int(blockDim.x); }
  SPANBERT_DEVICE void sync() const { __syncthreads(); }

  // Warps leave their results in order; then each warp reduces all of them in the same order.
  template <class N>
  SPANBERT_DEVICE N gather(N x, N neutral, double* half) const {
    N* values = reinterpret_cast<N*>(half);
    const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5), warps = int(blockDim.x >> 5);
    if (lane == 0) values[warp] = x;
    __syncthreads();
    return lane < warps ? values[lane] : neutral;
  }
  template <class N>
  SPANBERT_DEVICE N sum(N x) const {
    return Warp().sum(gather(Warp().sum(x), N(0), memory + 32));
  }
  template <class N>
  SPANBERT_DEVICE N max(N x) const {
    const N all = Warp().max(x);
    return Warp().max(gather(all, all, memory));
  }
};

// Makes the tensors' device current for the launches of one call and gives the thread back the context it had, which
// may be none: going back to a device number instead would create a context on GPU 0 for a process that uses another.
// Defined in cuda/span_mask.cu.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void* before_ = nullptr;  // a CUcontext
  bool changed_ = false;
};

inline cudaStream_t stream_of(const Place& place) { return static_cast<cudaStream_t>(place.stream); }

// Column sums of partials [chunks, count]. A block owns 32 columns; its rows of threads take every
// kChunkLanes-th chunk and are added in order, so the result depends on the shape alone.
constexpr int kChunkLanes = 16;

template <class W>
struct ChunkSum {
  W value;
  int64_t column;
  bool valid;  // one thread of each column holds its sum
};

template <class W>
SPANBERT_DEVICE ChunkSum<W> sum_of_chunks(const W* partials, int64_t chunks, int64_t count) {
  using Lanes = W[kChunkLanes][32];
  SPANBERT_SHARED(Lanes, lanes);
  const int64_t h = int64_t(blockIdx.x) * 32 + threadIdx.x;
  W sum = 0;
  if (h < count) {
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += kChunkLanes) sum += partials[chunk * count + h];
  }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || h >= count) return {0, h, false};
  for (int lane = 1; lane < kChunkLanes; ++lane) sum += lanes[lane][threadIdx.x];
  return {sum, h, true};
}

inline Grid grid_of_chunk_sums(int64_t count) { return {divide_up(count, 32), 32, kChunkLanes}; }

template <class W>
struct SumChunks {
  static constexpr const char* kName = "sum_chunks";
  static constexpr int kThreads = 32 * kChunkLanes, kBlocks = 0;
  struct Args {
    const W* partials;
    int64_t chunks, count;
    W* out;
  };

  SPANBERT_DEVICE static void run(const Args& args) {
    const ChunkSum<W> sum = sum_of_chunks(args.partials, args.chunks, args.count);
    if (sum.valid) args.out[sum.column] = sum.value;
  }
};

// Calls run(T()) with the scalar type of a dtype.
template <class Run>
void by_dtype(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::kFloat32: return run(float());
    case Dtype::kBFloat16: return run(bf16());
    case Dtype::kFloat16: return run(fp16());
    case Dtype::kFloat64: return run(double());
  }
}

// The launchers, one for each operation of the table in cuda/span_mask.cu.
int64_t launch_span_mask(const SpanMaskArgs& args, const Place& place);
void launch_gather_boundaries(const BoundaryArgs& args, const Place& place);
void launch_gather_boundaries_backward(const BoundaryArgs& args, const Place& place);
void launch_gelu_layer_norm(const GeluLayerNormArgs& args, const Place& place);
void launch_gelu_layer_norm_backward(const GeluLayerNormBackwardArgs& args, const Place& place);
void launch_sbo_first_layer(const SboFirstLayerArgs& args, const Place& place);
void launch_sbo_first_layer_backward(const SboFirstLayerBackwardArgs& args, const Place& place);
void launch_cross_entropy_rows(const CrossEntropyArgs& args, const Place& place);
void launch_dropout_norm(const DropoutNormArgs& args, const Place& place);
void launch_dropout_norm_backward(const DropoutNormArgs& args, const Place& place);

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
