// Which columns of a row dropout drops, as a pure function of (seed, site, row, column): the backward pass draws again
// instead of keeping a mask, and every device and instruction set finds the same mask. One Philox4x32-10 call with
// counter (block, row, site, row >> 32) serves the eight columns of a block: column 8 * block + j takes bits
// 16 * (j % 2) .. + 15 of word j / 2. It is dropped when these 16 bits are below the threshold, so the probability is
// that of a multiple of 2^-16, exactly.
#pragma once

#include "common/philox.h"

#if defined(__x86_64__) && !defined(__CUDACC__)
#include <immintrin.h>
#define SPANBERT_WIDE_PHILOX
#endif

namespace spanbert {
namespace SPANBERT_VARIANT {

constexpr int kDrawColumns = 8;
// draw_row writes whole vectors: its buffer holds the row rounded up to this many columns.
constexpr int64_t kDrawGrain = 64;
SPANBERT_HD int64_t draw_columns(int64_t size) { return (size + kDrawGrain - 1) / kDrawGrain * kDrawGrain; }

struct DropoutDraws {
  uint64_t seed;
  uint32_t site;

  SPANBERT_HD FourWords block(int64_t row, int64_t number) const {
    return philox_words(uint32_t(number), uint32_t(row), site, uint32_t(uint64_t(row) >> 32), uint32_t(seed),
                        uint32_t(seed >> 32));
  }
};

// The draw of column j of a block.
SPANBERT_HD uint32_t draw_of(const FourWords& block, int j) { return (block.word[j / 2] >> (16 * (j % 2))) & 0xFFFFu; }

#ifdef SPANBERT_WIDE_PHILOX
// One counter in each 64-bit lane. Only the low halves count (the multiplication reads nothing else), so no round has
// to clear the upper ones: two multiplications, two shifts and four xors for a whole vector.
#if defined(__AVX512F__)
constexpr __mmask8 kAllEight = 0xFF;  // the forms without a mask make gcc 12 warn of its own header
typedef uint64_t DrawLanes __attribute__((vector_size(64)));
SPANBERT_HD DrawLanes low_products(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm512_maskz_mul_epu32(kAllEight, (__m512i)a, (__m512i)b);
}
SPANBERT_HD DrawLanes even_pairs(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm512_maskz_unpacklo_epi64(kAllEight, (__m512i)a, (__m512i)b);
}
SPANBERT_HD DrawLanes odd_pairs(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm512_maskz_unpackhi_epi64(kAllEight, (__m512i)a, (__m512i)b);
}
#elif defined(__AVX2__)
typedef uint64_t DrawLanes __attribute__((vector_size(32)));
SPANBERT_HD DrawLanes low_products(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
SPANBERT_HD DrawLanes even_pairs(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
}
SPANBERT_HD DrawLanes odd_pairs(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
}
#else
typedef uint64_t DrawLanes __attribute__((vector_size(16)));
SPANBERT_HD DrawLanes low_products(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
SPANBERT_HD DrawLanes even_pairs(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm_unpacklo_epi64((__m128i)a, (__m128i)b);
}
SPANBERT_HD DrawLanes odd_pairs(DrawLanes a, DrawLanes b) {
  return (DrawLanes)_mm_unpackhi_epi64((__m128i)a, (__m128i)b);
}
#endif
constexpr int kLanes64 = int(sizeof(DrawLanes) / 8);

// The draws of a row, column by column, by one thread.
SPANBERT_HD void draw_row(const DropoutDraws& draws, int64_t row, int64_t size, uint16_t* out) {
  // Blocks are dealt to lanes in the order in which the pairs below leave them: 0, n/2, 1, n/2 + 1, ...
  DrawLanes numbers;
  for (int lane = 0; lane < kLanes64; ++lane) numbers[lane] = uint64_t(lane / 2 + (lane % 2) * (kLanes64 / 2));
  const DrawLanes zero = numbers - numbers, low_half = zero + 0xFFFFFFFFull;
  const DrawLanes m0 = zero + 0xD2511F53ull, m1 = zero + 0xCD9E8D57ull;
  const uint32_t site = draws.site, low_key = uint32_t(draws.seed), high_key = uint32_t(draws.seed >> 32);
  for (int64_t h = 0; h < size; h += kLanes64 * kDrawColumns) {
    DrawLanes c0 = numbers + uint64_t(h / kDrawColumns), c1 = zero + uint64_t(uint32_t(row));
    DrawLanes c2 = zero + uint64_t(site), c3 = zero + (uint64_t(row) >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t k0 = low_key + uint32_t(round) * 0x9E3779B9u, k1 = high_key + uint32_t(round) * 0xBB67AE85u;
      const DrawLanes p0 = low_products(m0, c0), p1 = low_products(m1, c2);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c3 = p0;
    }
    const DrawLanes first = (c0 & low_half) | (c1 << 32), second = (c2 & low_half) | (c3 << 32);
    const DrawLanes even = even_pairs(first, second), odd = odd_pairs(first, second);
    memcpy(out + h, &even, sizeof(even));
    memcpy(out + h + sizeof(even) / 2, &odd, sizeof(odd));
  }
}
#endif

// The draws of a row by a group, whose threads may still be reading those of the row before.
template <class Group>
SPANBERT_HD void draw_row(const Group& g, const DropoutDraws& draws, int64_t row, int64_t size, uint16_t* out) {
#ifdef SPANBERT_WIDE_PHILOX
  if (Group::kSize == 1) return draw_row(draws, row, size, out);
#endif
  g.sync();
  for (int64_t block = g.rank(); block * kDrawColumns < size; block += g.size()) {
    const FourWords words = draws.block(row, block);
    for (int j = 0; j < kDrawColumns; ++j) out[block * kDrawColumns + j] = uint16_t(draw_of(words, j));
  }
  g.sync();
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
