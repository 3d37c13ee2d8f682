// What load(fp16) and store<fp16> make of bits: writes the floats of all 65536 halves to stdout, then the half of every
// float that stdin holds. Not part of the module; python_tests/native/test_half.py compiles it and compares with numpy.
#include <cstdio>

#include "common/portable.h"

using namespace spanbert::SPANBERT_VARIANT;

int main() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = load(fp16{uint16_t(bits)});
    std::fwrite(&value, sizeof(value), 1, stdout);
  }
  float value;
  while (std::fread(&value, sizeof(value), 1, stdin) == 1) {
    const uint16_t bits = store<fp16>(value).bits;
    std::fwrite(&bits, sizeof(bits), 1, stdout);
  }
  return std::ferror(stdout);
}
