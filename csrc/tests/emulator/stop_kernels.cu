// Kernels with a mistake each, and their neighbours without one, for python_tests/native/test_emulator.py; in no build
// of the module.
#include <cstdio>

#include "common/vectors.h"
#include "cuda/launch.cuh"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

// In the order of the names in test_emulator.py.
enum class What {
  kBarrierLeftOut,
  kTwoBarriers,
  kLaneAbsent,
  kLaneNotNamed,
  kOwnLaneNotNamed,
  kWarpAgainstBarrier,
  kAssertion,
  kMisalignedRead,
  kMisalignedWrite,
  kBehindShared,
  kBeforeShared,
  kLargeArray,
  kUninitialised,
  kRaceOfWarps,
  kRaceOfLanes,
  kRaceOfBlocks,
  kReadThenWritten,
  kBehindBarrier,
  kBehindSyncwarp,
  kBehindShuffle,
  kAllRead,
  kOrder,
};

struct Memory {
  float* values;  // [1024], at a multiple of 16 bytes
};

template <What what>
struct Sample {
  static constexpr const char* kName = "sample";
  static constexpr int kThreads = 64, kBlocks = 0;
  using Args = Memory;
  using Floats = float[kThreads];
  using Large = float[13000];

  SPANBERT_DEVICE static void run(const Args& args) {
    const unsigned i = threadIdx.x;
    SPANBERT_SHARED(Floats, shared);
    switch (what) {
      case What::kBarrierLeftOut:
        if (i != 5) __syncthreads();
        break;
      case What::kTwoBarriers:
        if (i < 32) {
          __syncthreads();
        } else {
          __syncthreads();
        }
        break;
      case What::kLaneAbsent:
        if (i % 32 != 7) __syncwarp();
        break;
      case What::kLaneNotNamed: __shfl_sync(0xFFFFu, i, 20); break;
      case What::kOwnLaneNotNamed: __syncwarp(0xFFFFu); break;
      case What::kWarpAgainstBarrier:
        if (i == 3) {
          __syncthreads();
        } else {
          __syncwarp();
        }
        break;
      case What::kAssertion: assert(i != 9); break;
      case What::kMisalignedRead: args.values[i] = bit_cast<float>(read_vector(args.values + 1).words[0]); break;
      case What::kMisalignedWrite: write_vector(args.values + 2 * i, Vector{}); break;
      case What::kBehindShared: shared[i + 1] = 1; break;
      case What::kBeforeShared: shared[int(i) - 1] = 1; break;
      case What::kLargeArray: {
        SPANBERT_SHARED(Large, large);
        large[i] = 1;
        break;
      }
      case What::kUninitialised: args.values[i] = shared[i]; break;
      case What::kRaceOfWarps:
        shared[i] = float(i);
        args.values[i] = shared[63 - i];
        break;
      case What::kRaceOfLanes:
        shared[i] = float(i);
        args.values[i] = shared[i ^ 1u];
        break;
      case What::kRaceOfBlocks: args.values[0] = float(i == 0 ? 1 : 2); break;
      case What::kReadThenWritten:
        shared[i] = 1;
        __syncthreads();
        args.values[i] = shared[63 - i];
        shared[i] = 2;
        break;
      case What::kBehindBarrier:
        shared[i] = float(i);
        __syncthreads();
        args.values[i] = shared[63 - i];
        break;
      case What::kBehindSyncwarp:
        shared[i] = float(i);
        __syncwarp();
        args.values[i] = shared[i ^ 1u];
        break;
      case What::kBehindShuffle:  // which orders no memory
        shared[i] = float(i);
        __shfl_xor_sync(~0u, i, 1);
        args.values[i] = shared[i ^ 1u];
        break;
      case What::kAllRead: args.values[i + 64] = args.values[0]; break;
      case What::kOrder: {  // which thread came first: changes with the seed
        if (i == 0) args.values[1] = args.values[0];
        args.values[0] = float(i);
        break;
      }
    }
  }
};

template <int... numbers>
void run_one(int which, const Grid& grid, const Memory& memory, std::integer_sequence<int, numbers...>) {
  static_cast<void>(((which == numbers ? launch<Sample<What(numbers)>>(grid, nullptr, memory), true : false) || ...));
}

}  // namespace

// Runs a kernel; writes why it stopped, or nothing.
extern "C" __attribute__((visibility("default"))) void spanbert_run_stop(int which, int64_t blocks, int64_t threads,
                                                                         int64_t shared_bytes, float* values,
                                                                         char* message, size_t room) {
  message[0] = 0;
  try {
    run_one(which, Grid{blocks, threads, 1, shared_bytes}, Memory{values},
            std::make_integer_sequence<int, int(What::kOrder) + 1>());
  } catch (const std::exception& error) {
    std::snprintf(message, room, "%s", error.what());
  }
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
