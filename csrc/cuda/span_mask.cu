// Span masking on the GPU, and the table of all CUDA operations. A warp samples a sequence (span_sampler.h); targets of
// the batch are numbered by a scan over the sequences' budgets; then a warp writes a sequence's targets, one lane each.
#include <cudaTypedefs.h>

#include <algorithm>

#include "cuda/group.cuh"
#include "rows/span_sampler.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr int kWarpsPerBlock = 4;  // sampling is latency bound: small blocks spread a batch of 256 rows over 64 SMs
constexpr int kRowThreads = 32 * kWarpsPerBlock;
constexpr int kScanThreads = 1024;
constexpr int64_t kCopyBlocks = 1056;  // eight on each of 132 multiprocessors

SPANBERT_DEVICE SequenceDraws draws_of(const SpanMaskArgs& args, int64_t row) {
  return {args.settings.seed, uint64_t(args.sample_ids[row]), uint32_t(args.epoch[0])};
}

SPANBERT_DEVICE int64_t warp_index() { return int64_t(blockIdx.x) * kWarpsPerBlock + (threadIdx.x >> 5); }

// Sequences that fall, leave the stream or reach into the one before stop the kernel: two warps would write the same
// labels and bitmaps.
SPANBERT_DEVICE void check_bounds(const SpanMaskArgs& args, int64_t row) {
  const int64_t start = args.starts[row], end = args.ends[row], before = row > 0 ? args.ends[row - 1] : 0;
  if (start < before || end < start || end > args.total) {
    printf("spanbert_ext: sequence %lld has bounds [%lld, %lld) behind %lld in a batch of %lld tokens\n",
           (long long)row, (long long)start, (long long)end, (long long)before, (long long)args.total);
    assert(false && "sequence bounds: starts and ends must ascend without overlap");
  }
}

template <class Token>
struct SpanSample {
  static constexpr const char* kName = "span_sample";
  static constexpr int kThreads = kRowThreads, kBlocks = 4;
  using Args = SpanMaskArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const Token* tokens = static_cast<const Token*>(args.tokens);
    const int64_t threads = int64_t(gridDim.x) * kThreads;
    for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < args.total; i += threads) {
      static_cast<Token*>(args.input_ids)[i] = tokens[i];
      args.labels[i] = kIgnore;
    }
    const int64_t row = warp_index();
    if (row >= args.sequences) return;
    check_bounds(args, row);
    const Warp warp;
    const RowCounts counts = sample_row<Warp, Token>(warp, args, row, draws_of(args, row));
    if (counts.bad_place >= 0) {
      const int64_t flat = args.starts[row] + counts.bad_place;
      printf("spanbert_ext: token %lld of the flat batch has id %lld; expected 0 <= id < %lld\n", (long long)flat,
             (long long)tokens[flat], (long long)args.vocab_size);
      assert(false && "token id outside the vocabulary");
    }
    if (warp.rank() == 0) {
      args.row_counts[row + 1] = counts.targets;
      args.row_counts[args.sequences + 1 + row + 1] = counts.spans;
    }
  }
};

// Running sums of both rows of row_counts [2, N + 1], one block each; entry 0 becomes 0.
struct RunningSums {
  static constexpr const char* kName = "running_sums";
  static constexpr int kThreads = kScanThreads, kBlocks = 0;
  struct Args {
    int64_t* row_counts;
    int64_t sequences;
  };

  SPANBERT_DEVICE static void run(const Args& args) {
    using WarpSums = int64_t[kScanThreads / 32];
    SPANBERT_SHARED(WarpSums, warp_sums);
    const int64_t sequences = args.sequences;
    int64_t* counts = args.row_counts + int64_t(blockIdx.x) * (sequences + 1);
    int64_t before = 0;
    for (int64_t base = 0; base < sequences; base += kScanThreads) {
      const int64_t i = base + threadIdx.x;
      int64_t sum = i < sequences ? counts[i + 1] : 0;
      for (int step = 1; step < 32; step <<= 1) {
        const int64_t lower = __shfl_up_sync(kAllLanes, sum, step);
        if (int(threadIdx.x & 31) >= step) sum += lower;
      }
      if ((threadIdx.x & 31) == 31) warp_sums[threadIdx.x >> 5] = sum;
      __syncthreads();
      int64_t total = 0;
      for (int warp = 0; warp < kScanThreads / 32; ++warp) {
        if (warp == int(threadIdx.x >> 5)) sum += total;
        total += warp_sums[warp];
      }
      if (i < sequences) counts[i + 1] = before + sum;
      before += total;
      __syncthreads();  // warp_sums is written again in the next turn
    }
    if (threadIdx.x == 0) counts[0] = 0;
  }
};

template <class Token>
struct SpanEmit {
  static constexpr const char* kName = "span_emit";
  static constexpr int kThreads = kRowThreads, kBlocks = 4;
  using Args = SpanMaskArgs;

  SPANBERT_DEVICE static void run(const Args& args) {
    const int64_t used_targets = args.row_counts[args.sequences];
    const int64_t used_spans = args.row_counts[2 * args.sequences + 1];
    const int64_t threads = int64_t(gridDim.x) * kThreads, thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    for (int64_t k = used_targets + thread; k < args.target_capacity; k += threads) {
      args.target_positions[k] = args.target_spans[k] = args.target_offsets[k] = 0;
      args.target_ids[k] = args.sbo_ids[k] = kIgnore;
    }
    for (int64_t s = used_spans + thread; s < args.span_capacity; s += threads) {
      args.span_left[s] = args.span_right[s] = 0;
    }
    if (thread == 0) args.dropped_spans[0] = used_spans > args.span_capacity ? used_spans - args.span_capacity : 0;
    assert(used_targets <= args.target_capacity && "target_capacity is below the budget of the sequences");
    const int64_t row = warp_index();
    if (row < args.sequences) emit_row<Warp, Token>(Warp(), args, row, draws_of(args, row));
  }
};

template <class Token>
void launch_as(const SpanMaskArgs& args, cudaStream_t stream) {
  // A warp a sequence, and enough blocks to copy the tokens of few long sequences at speed.
  const int64_t for_rows = divide_up(args.sequences, kWarpsPerBlock), for_copy = divide_up(args.total, 1024);
  const int64_t blocks = std::max({for_rows, std::min(for_copy, kCopyBlocks), int64_t(1)});
  launch<SpanSample<Token>>({blocks, kRowThreads}, stream, args);
  launch<RunningSums>({2, kScanThreads}, stream, {args.row_counts, args.sequences});
  launch<SpanEmit<Token>>({blocks, kRowThreads}, stream, args);
}

}  // namespace

namespace {

// Functions of the driver, asked for by name: linking libcuda would keep the module from loading without a GPU.
template <class Function>
Function driver_function(const char* name) {
  void* address = nullptr;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault), name);
#else
  check(cudaGetDriverEntryPoint(name, &address, cudaEnableDefault), name);  // before 12.0 it reports nothing else
#endif
  if (!address) throw std::runtime_error(std::string("spanbert_ext: this CUDA driver has no ") + name);
  return reinterpret_cast<Function>(address);
}

struct Driver {
  PFN_cuCtxGetCurrent_v4000 get_context = driver_function<PFN_cuCtxGetCurrent_v4000>("cuCtxGetCurrent");
  PFN_cuCtxSetCurrent_v4000 set_context = driver_function<PFN_cuCtxSetCurrent_v4000>("cuCtxSetCurrent");
  PFN_cuCtxGetDevice_v2000 get_device = driver_function<PFN_cuCtxGetDevice_v2000>("cuCtxGetDevice");
};

const Driver& driver() {
  static const Driver functions{};
  return functions;
}

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  CUcontext before = nullptr;
  CUdevice current = -1;
  if (driver().get_context(&before) == CUDA_SUCCESS && before) driver().get_device(&current);
  if (current == device) return;
  check(cudaSetDevice(device), "device selection");
  before_ = before;
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) driver().set_context(static_cast<CUcontext>(before_));
}

int64_t launch_span_mask(const SpanMaskArgs& args, const Place& place) {
  const DeviceGuard guard(place.device);
  if (args.wide_tokens) {
    launch_as<int64_t>(args, stream_of(place));
  } else {
    launch_as<int32_t>(args, stream_of(place));
  }
  return -1;
}

const Operations kOperations = {
    launch_span_mask,
    launch_gather_boundaries,
    launch_gather_boundaries_backward,
    launch_gelu_layer_norm,
    launch_gelu_layer_norm_backward,
    launch_sbo_first_layer,
    launch_sbo_first_layer_backward,
    launch_cross_entropy_rows,
    launch_dropout_norm,
    launch_dropout_norm_backward,
};

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
