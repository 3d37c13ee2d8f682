// What the CPU files share: threads for an amount of work, scratch memory, sums over chunks, dispatch by dtype.
// Compiled once for every instruction set, so nothing here may use inline functions of the standard library (the linker
// would merge their copies across instruction sets).
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdlib>

#include "common/portable.h"
#include "ops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

constexpr OneThread kAlone{};
// Below this much work a loop is not worth waking other threads for.
constexpr int64_t kSerialTokens = 4096;
constexpr int64_t kSerialElements = 32768;

#ifdef _OPENMP
int threads_for(int64_t work, int64_t serial_work) { return work <= serial_work ? 1 : omp_get_max_threads(); }
#else
[[maybe_unused]] int threads_for(int64_t, int64_t) { return 1; }
#endif

// Working storage of one thread, of the size a row needs; freed at the end of the parallel region.
template <class W>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<W*>(std::malloc(sizeof(W) * (count > 0 ? count : 1)))) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  W* data() const { return data_; }

 private:
  W* data_;
};

// out[h] = sum over chunks, in order, of partials[chunk * stride + h].
template <class W>
void sum_chunks(const W* partials, int64_t chunks, int64_t stride, int64_t count, W* out) {
#pragma omp parallel for schedule(static) num_threads(threads_for(chunks* count, kSerialElements))
  for (int64_t block = 0; block < (count + 255) / 256; ++block) {
    const int64_t first = block * 256, end = first + 256 < count ? first + 256 : count;
    for (int64_t h = first; h < end; ++h) out[h] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t h = first; h < end; ++h) out[h] += partials[chunk * stride + h];
    }
  }
}

}  // namespace

#define SPANBERT_BY_DTYPE(name, Args)                       \
  void name(const Args& args, const Place&) {               \
    switch (args.dtype) {                                   \
      case Dtype::kFloat32: return name##_as<float>(args);  \
      case Dtype::kBFloat16: return name##_as<bf16>(args);  \
      case Dtype::kFloat16: return name##_as<fp16>(args);   \
      case Dtype::kFloat64: return name##_as<double>(args); \
    }                                                       \
  }

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
