// Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011). A draw is a pure function of key and counter,
// so a sequence's mask is the same on every device, in any batch and before and after a resume.
#pragma once

#include "common/portable.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

struct Words {
  uint32_t first, second;
};

struct FourWords {
  uint32_t word[4];
};

SPANBERT_HD FourWords philox_words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

SPANBERT_HD Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  const FourWords all = philox_words(c0, c1, c2, c3, k0, k1);
  return {all.word[0], all.word[1]};
}

// The draws of one sequence. Numbers below 2^31 belong to sampled spans, the others to positions of the sequence.
struct SequenceDraws {
  uint64_t seed;
  uint64_t sample;
  uint32_t epoch;

  SPANBERT_HD Words draw(uint32_t number) const {
    return philox(number, epoch, uint32_t(sample), uint32_t(sample >> 32), uint32_t(seed), uint32_t(seed >> 32));
  }
  SPANBERT_HD Words span(uint32_t number) const { return draw(number); }
  SPANBERT_HD Words position(int64_t place) const { return draw(0x80000000u + uint32_t(place)); }
};

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
