// Kernels whose counts are known by hand, for python_tests/native/test_emulator_counts.py; in no build of the module.
#include "common/vectors.h"
#include "cuda/launch.cuh"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

struct Arrays {
  const float* from;
  float* to;
  int stride;
};

// A value a thread, `stride` values apart; 0: all threads read one.
struct Copy {
  static constexpr const char* kName = "copy";
  static constexpr int kThreads = 64, kBlocks = 0;
  using Args = Arrays;

  SPANBERT_DEVICE static void run(const Args& args) {
    const unsigned i = blockIdx.x * kThreads + threadIdx.x;
    args.to[i] = args.from[i * unsigned(args.stride)];
  }
};

struct CopyVectors {
  static constexpr const char* kName = "copy_vectors";
  static constexpr int kThreads = 64, kBlocks = 0;
  using Args = Arrays;

  SPANBERT_DEVICE static void run(const Args& args) {
    const unsigned i = 4 * (blockIdx.x * kThreads + threadIdx.x);
    write_vector(args.to + i, read_vector(args.from + i * unsigned(args.stride)));
  }
};

// Twice a loop that some lanes leave before others.
struct Ragged {
  static constexpr const char* kName = "ragged";
  static constexpr int kThreads = 64, kBlocks = 0;
  using Args = Arrays;

  SPANBERT_DEVICE static void run(const Args& args) {
    float sum = 0;
    for (int round = 0; round < 2; ++round) {
      for (unsigned i = threadIdx.x & 31; i < 40; i += 32) sum += args.from[i];
      __syncwarp();
    }
    args.to[blockIdx.x * kThreads + threadIdx.x] = sum;
  }
};

// Everybody writes the array together; then thread i reads element i * stride of a type of 4, 8 or 16 bytes.
template <class T>
struct SharedReads {
  static constexpr const char* kName = "shared_reads";
  static constexpr int kThreads = 64, kBlocks = 0, kWords = 2048;
  using Args = Arrays;
  using Words = float[kWords];

  SPANBERT_DEVICE static void run(const Args& args) {
    SPANBERT_SHARED(Words, words);
    for (unsigned i = threadIdx.x; i < kWords; i += kThreads) words[i] = float(i);
    __syncthreads();
    const void* at = reinterpret_cast<const T*>(words) + (threadIdx.x & 31) * unsigned(args.stride);
    if constexpr (sizeof(T) == sizeof(Vector)) {
      args.to[threadIdx.x] = bit_cast<float>(read_vector(at).words[0]);
    } else {
      args.to[threadIdx.x] = float(*static_cast<const T*>(at));
    }
    __syncthreads();
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void spanbert_run_sample(int which, int blocks, const float* from,
                                                                           float* to, int stride) {
  const Arrays arrays{from, to, stride};
  const Grid grid{blocks, 64};
  switch (which) {
    case 0: return launch<Copy>(grid, nullptr, arrays);
    case 1: return launch<CopyVectors>(grid, nullptr, arrays);
    case 2: return launch<Ragged>(grid, nullptr, arrays);
    case 4: return launch<SharedReads<float>>(grid, nullptr, arrays);
    case 8: return launch<SharedReads<double>>(grid, nullptr, arrays);
    case 16: return launch<SharedReads<Vector>>(grid, nullptr, arrays);
  }
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
