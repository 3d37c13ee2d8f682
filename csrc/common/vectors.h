// Sixteen bytes at a time, the widest access of one thread: the one way to read and write them, with the hints that a
// GPU's caches take. A row that one block reads once is kept out of L1, where what all rows read shall stay.
#pragma once

#include "common/portable.h"

#if defined(__CUDACC__) || defined(SPANBERT_EMULATOR)
#include <cuda_runtime.h>
#endif

namespace spanbert {
namespace SPANBERT_VARIANT {

constexpr int kVectorBytes = 16;

struct alignas(kVectorBytes) Vector {
  uint32_t words[4];
};

// Scalars of a vector: 8 of 16 bits, 4 of 32.
template <class T>
constexpr int kVectorWidth = kVectorBytes / int(sizeof(T));

enum class Cache { kDefault, kOnce, kForAll };

// `from` is a multiple of 16 bytes. Memory read as kForAll may not be written while the kernel runs.
template <Cache kCache = Cache::kDefault>
SPANBERT_HD Vector read_vector(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4* at = static_cast<const uint4*>(from);
  uint4 words;
  if constexpr (kCache == Cache::kOnce) {
    words = __ldcg(at);
  } else if constexpr (kCache == Cache::kForAll) {
    words = __ldg(at);
  } else {
    words = *at;
  }
  return {{words.x, words.y, words.z, words.w}};
#elif defined(SPANBERT_EMULATOR)
  Vector vector;
  ::emulator::read_wide(from, &vector, kVectorBytes, kCache == Cache::kForAll);
  return vector;
#else
  Vector vector;
  memcpy(&vector, from, kVectorBytes);
  return vector;
#endif
}

SPANBERT_HD void write_vector(void* to, const Vector& vector) {
#if defined(__CUDA_ARCH__)
  *static_cast<uint4*>(to) = make_uint4(vector.words[0], vector.words[1], vector.words[2], vector.words[3]);
#elif defined(SPANBERT_EMULATOR)
  ::emulator::write_wide(to, &vector, kVectorBytes);
#else
  memcpy(to, &vector, kVectorBytes);
#endif
}

// Keeps an address of global memory in registers; the compiler would compute it anew at every access.
template <class T>
SPANBERT_HD T* in_registers(T* pointer) {
#ifdef __CUDA_ARCH__
  size_t address = __cvta_generic_to_global(pointer);
  asm("" : "+l"(address));
  return static_cast<T*>(__cvta_global_to_generic(address));
#else
  return pointer;
#endif
}

// Two 16-bit scalars in one word, rounded to nearest, the first in the low half.
SPANBERT_HD uint32_t pack_pair(float low, float high, bf16) {
#ifdef __CUDA_ARCH__
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return store<bf16>(low).bits | uint32_t(store<bf16>(high).bits) << 16;
#endif
}
SPANBERT_HD uint32_t pack_pair(float low, float high, fp16) {
#ifdef __CUDA_ARCH__
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return store<fp16>(low).bits | uint32_t(store<fp16>(high).bits) << 16;
#endif
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
