// What every other header needs on both sides: the host+device marker, 16-bit scalars that work without CUDA headers,
// elementary functions that vectorise on the CPU, and the group of one thread. A group is the set of threads that work
// on one sequence or row together: one thread here, a warp or a block in cuda/span_mask.cu. It offers rank, size, sync,
// reductions and scratch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define SPANBERT_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define SPANBERT_HD __forceinline
#else
#define SPANBERT_HD inline __attribute__((always_inline))
#endif
#ifdef _MSC_VER
#include <intrin.h>
#endif
#if defined(__F16C__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

// Hints for loops that the compiler would not vectorise by itself; MSVC knows OpenMP without them.
#if defined(__CUDACC__) || defined(_MSC_VER)
#define SPANBERT_SIMD
#define SPANBERT_SIMD_SUM(...)
#define SPANBERT_SIMD_MAX(...)
#else
#define SPANBERT_PRAGMA(text) _Pragma(#text)
#define SPANBERT_SIMD SPANBERT_PRAGMA(omp simd)
#define SPANBERT_SIMD_SUM(...) SPANBERT_PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#define SPANBERT_SIMD_MAX(...) SPANBERT_PRAGMA(omp simd reduction(max : __VA_ARGS__))
#endif

// One header is compiled for several instruction sets; each gets a namespace of its own, or the linker would keep one
// copy of an inline function and run AVX-512 code on a machine without it.
#ifndef SPANBERT_VARIANT
#define SPANBERT_VARIANT baseline
#endif

namespace spanbert {
namespace SPANBERT_VARIANT {

struct bf16 {
  uint16_t bits;
};

struct fp16 {
  uint16_t bits;
};

template <class To, class From>
SPANBERT_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// fp32 is the working type of every row of at most 32 bits, double of double rows (gradient checks).
template <class T>
struct Working {
  using type = float;
};
template <>
struct Working<double> {
  using type = double;
};
template <class T>
using working_t = typename Working<T>::type;

SPANBERT_HD float load(float x) { return x; }
SPANBERT_HD double load(double x) { return x; }
SPANBERT_HD float load(bf16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

// fp16 without the type _Float16, which C++ compilers have only from GCC 12 and clang 15 on. Both directions give the
// bits of the F16C instructions for every input, also for denormals and for the payload of a NaN, which becomes quiet.
SPANBERT_HD float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, rest = uint32_t(half & 0x7FFFu) << 13;
  // 2^-14 + m * 2^-24 has m in the mantissa: subtracting 2^-14 leaves the denormal half without touching a denormal
  // float, which a thread may have switched off.
  const float tiny = bit_cast<float>(rest + 0x38800000u) - bit_cast<float>(0x38800000u);
  const uint32_t finite = rest < 0x00800000u ? bit_cast<uint32_t>(tiny) : rest + (112u << 23);
  const uint32_t quiet = rest > 0x0F800000u ? 0x00400000u : 0u;
  return bit_cast<float>(sign | (rest < 0x0F800000u ? finite : rest | 0x7F800000u | quiet));
}

SPANBERT_HD uint16_t float_to_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7FFFFFFFu;
  // To nearest, ties to even: below 2^-14 by adding 0.5, whose last bit is 2^-24; above by adding half of what is cut
  // off. A carry goes on into the exponent, from 65520 on to infinity.
  const uint32_t tiny = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (rest - (112u << 23) + 0xFFFu + ((rest >> 13) & 1u)) >> 13;
  const uint32_t huge = rest > 0x7F800000u ? 0x7E00u | ((rest >> 13) & 0x3FFu) : 0x7C00u;
  return uint16_t(sign | (rest < 0x38800000u ? tiny : (rest < 0x47800000u ? normal : huge)));
}

SPANBERT_HD float load(fp16 x) {
#if defined(__CUDACC__)
  return __half2float(__half(__half_raw{x.bits}));
#elif defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  return half_to_float(x.bits);
#endif
}

template <class T>
SPANBERT_HD T store(working_t<T> x);
template <>
SPANBERT_HD float store<float>(float x) {
  return x;
}
template <>
SPANBERT_HD double store<double>(double x) {
  return x;
}
template <>
SPANBERT_HD bf16 store<bf16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return bf16{uint16_t(nan ? (bits >> 16) | 0x40u : rounded)};
}
template <>
SPANBERT_HD fp16 store<fp16>(float x) {
#if defined(__CUDACC__)
  return fp16{__half_raw(__float2half_rn(x)).x};
#elif defined(__F16C__)
  return fp16{uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  return fp16{float_to_half(x)};
#endif
}

// exp(x) for -87 <= x <= 88: 2^n times a polynomial in the remainder; relative error below 2e-7. libm's expf is not
// vectorised by the compiler without options that would change other code. Elsewhere the result means nothing.
SPANBERT_HD float exponential_between(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691e-4f;
  p = p * r + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const uint32_t exponent = (bit_cast<uint32_t>(shifted) + 127u) << 23;
  return p * bit_cast<float>(exponent);
}

SPANBERT_HD float exponential(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  return x < -87.0f ? 0.0f : exponential_between(clamped);
#endif
}
SPANBERT_HD double exponential(double x) { return exp(x); }

// exp(x) for x <= 0, as GELU and softmax need it: the blends of a clamp at both ends would be a tenth of a vectorised
// GELU.
SPANBERT_HD float decay(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  return x < -87.0f ? 0.0f : exponential_between(x);
#endif
}

SPANBERT_HD double decay(double x) { return exp(x); }

// GELU(x) = x * Phi(x) and its derivative Phi(x) + x * phi(x), both from one exponential. For the float tail
// Q(u) = 1 - Phi(u) = exp(-u^2 / 2) * t * poly(t), t = 1 / (1 + 0.3045.. u): a minimax fit on [0, 14] with relative
// error 9e-8, so the negative side loses no digits to cancellation.
template <class W>
struct Gelu {
  W value, slope;
};

SPANBERT_HD Gelu<float> gelu(float x) {
  const float u = x < 0.0f ? -x : x;
  const float bell = decay(-0.5f * x * x);
  const float t = 1.0f / (1.0f + 0.3045197948750225f * u);
  float poly = 0.0367515882632086f;
  poly = poly * t - 0.15399519676072254f;
  poly = poly * t + 0.18863776634470944f;
  poly = poly * t - 0.04027120336406995f;
  poly = poly * t + 0.12214000574777419f;
  poly = poly * t + 0.10297183213206618f;
  poly = poly * t + 0.122319696291651f;
  poly = poly * t + 0.12144555347841787f;
  const float tail = bell * t * poly;
  const float below = x < 0.0f ? tail : 1.0f - tail;
  return {x < 0.0f ? x * tail : x - x * tail, below + x * 0.3989422804014327f * bell};
}
SPANBERT_HD Gelu<double> gelu(double x) {
  const double below = 0.5 * erfc(-x * 0.70710678118654752440);
  return {x * below, below + x * 0.39894228040143267794 * exp(-0.5 * x * x)};
}

// 2^x. On a GPU one instruction, whose relative error is below 2^-22 and which takes denormal results for 0.
SPANBERT_HD float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
SPANBERT_HD double power_of_two(double x) { return exp2(x); }

// A product that no addition is fused with: threads exchange it and must all have added the same number.
SPANBERT_HD float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
SPANBERT_HD double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

SPANBERT_HD int popcount(uint64_t w) {
#if defined(__CUDA_ARCH__)
  return __popcll(w);
#elif defined(_MSC_VER)
  w -= (w >> 1) & 0x5555555555555555ull;
  w = (w & 0x3333333333333333ull) + ((w >> 2) & 0x3333333333333333ull);
  return int((((w + (w >> 4)) & 0x0F0F0F0F0F0F0F0Full) * 0x0101010101010101ull) >> 56);
#else
  return __builtin_popcountll(w);
#endif
}

// Index of the lowest and highest set bit; w must not be 0.
SPANBERT_HD int lowest_bit(uint64_t w) {
#if defined(__CUDA_ARCH__)
  return __ffsll(w) - 1;
#elif defined(_MSC_VER)
  unsigned long index;
  _BitScanForward64(&index, w);
  return int(index);
#else
  return __builtin_ctzll(w);
#endif
}
SPANBERT_HD int highest_bit(uint64_t w) {
#if defined(__CUDA_ARCH__)
  return 63 - __clzll(w);
#elif defined(_MSC_VER)
  unsigned long index;
  _BitScanReverse64(&index, w);
  return int(index);
#else
  return 63 - __builtin_clzll(w);
#endif
}

// Bits below position i (0 <= i <= 63).
SPANBERT_HD uint64_t bits_below(int i) { return (uint64_t(1) << i) - 1; }

// Position of the bit of rank r (0-based) in w; popcount(w) must exceed r.
SPANBERT_HD int select_bit(uint64_t w, int r) {
#if defined(__BMI2__) && !defined(__CUDA_ARCH__)
  return __builtin_ctzll(__builtin_ia32_pdep_di(uint64_t(1) << r, w));
#else
  int base = 0;
  for (int width = 32; width > 0; width >>= 1) {
    const int low = popcount((w >> base) & bits_below(width));
    if (r >= low) {
      r -= low;
      base += width;
    }
  }
  return base;
#endif
}

// The group of one thread.
struct OneThread {
  static constexpr int kSize = 1;

  int rank() const { return 0; }
  static constexpr int size() { return kSize; }
  void sync() const {}
  template <class N>
  N sum(N x) const {
    return x;
  }
  template <class N>
  N max(N x) const {
    return x;
  }
  template <class N>
  void sum_pair(N&, N&, int) const {}

  // Bit 0 of flags(i) goes to bit i of `low`, bit 1 to bit i of `high`. Eight flag bytes become eight bits by one
  // multiplication, since a lookup for every position is the cost of this loop.
  template <class Flags>
  void pack_flags(int64_t n, const Flags& flags, uint64_t* low, uint64_t* high) const {
    for (int64_t base = 0; base < n; base += 64) {
      uint8_t bytes[64] = {};
      const int count = n - base < 64 ? int(n - base) : 64;
      for (int j = 0; j < count; ++j) bytes[j] = flags(base + j);
      uint64_t low_bits = 0, high_bits = 0;
      for (int j = 0; j < 8; ++j) {
        uint64_t eight;
        memcpy(&eight, bytes + 8 * j, 8);
        const uint64_t ones = 0x0101010101010101ull, gather = 0x0102040810204080ull;
        low_bits |= (((eight & ones) * gather) >> 56) << (8 * j);
        high_bits |= ((((eight >> 1) & ones) * gather) >> 56) << (8 * j);
      }
      low[base >> 6] = low_bits;
      high[base >> 6] = high_bits;
    }
  }
};

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
