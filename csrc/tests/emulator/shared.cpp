#include "shared.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "emulator.h"
#include "record.h"
#include "sanitizer.h"
#include "text.h"

namespace emulator {

namespace shared {

namespace {

constexpr size_t kGuard = 64, kByDefault = 48 << 10;
constexpr uint16_t kPoison = 0x7FF7;  // repeated: not a number in fp16, bf16, fp32 and (signalling) fp64
constexpr uint8_t kGuardByte = 0xB7;
constexpr size_t kArena = (232448 + kByDefault) * 2;

struct Array {
  const void* site;
  char* memory;
  size_t bytes;
  const char* name;
};

alignas(128) char arena[kArena];
size_t used = 0, static_bytes = 0, dynamic_bytes = 0, granted = 0;
std::vector<Array> arrays;
std::map<const void*, size_t> allowed;

char* add(const void* site, size_t bytes, const char* name) {
  const size_t begin = (used + kGuard + 15) / 16 * 16, end = begin + bytes;
  if (end + kGuard > kArena) throw std::runtime_error("emulator: the arena of shared memory is too small");
  ASAN_UNPOISON_MEMORY_REGION(arena + used, end + kGuard - used);
  std::memset(arena + used, kGuardByte, end + kGuard - used);
  for (size_t i = 0; i < bytes; ++i) arena[begin + i] = char(i % 2 ? kPoison >> 8 : kPoison);
  ASAN_POISON_MEMORY_REGION(arena + used, begin - used);
  ASAN_POISON_MEMORY_REGION(arena + end, kGuard);
  used = end;
  arrays.push_back({site, arena + begin, bytes, name});
  record::share(arena + begin, bytes, name);
  return arena + begin;
}

}  // namespace

void begin_launch(const char* name, const void* kernel, size_t bytes) {
  const auto found = allowed.find(kernel);
  granted = found == allowed.end() ? kByDefault : std::max(found->second, kByDefault);
  dynamic_bytes = bytes;
  if (bytes > granted || bytes > card().shared_bytes) {
    throw std::runtime_error(text("emulator: kernel %s: %zu bytes of shared memory, granted are %zu of %zu", name,
                                  bytes, granted, card().shared_bytes));
  }
}

void begin_block() {
  arrays.clear();
  used = static_bytes = 0;
  add(nullptr, dynamic_bytes, "of the launch");
}

// Two arrays share the zone between them: the nearer one is named.
void end_block(const char* kernel) {
  for (size_t i = 0; i < kGuard; ++i) {
    for (const Array& array : arrays) {
      char* const places[2] = {array.memory - 1 - i, array.memory + array.bytes + i};
      for (const char* at : places) {
        ASAN_UNPOISON_MEMORY_REGION(at, 1);
        if (uint8_t(*at) == kGuardByte) continue;
        throw std::runtime_error(
            text("emulator: kernel %s, block %u: byte %td of the shared array %s [%zu bytes] was written", kernel,
                 here.block.x, at - array.memory, array.name, array.bytes));
      }
    }
  }
}

bool owns(const void* at) { return at >= arena && at < arena + kArena; }

}  // namespace shared

const Card& card() {
  static const Card found{size_t(from_environment("SPANBERT_EMULATOR_SHARED", 232448))};
  return found;
}

void* shared_array(const void* site, size_t bytes, const char* name) {
  using namespace shared;
  for (const Array& array : arrays) {
    if (array.site == site) return array.memory;
  }
  static_bytes += (bytes + 15) / 16 * 16;
  if (static_bytes > kByDefault) fail("%zu bytes of shared arrays exceed 48 KB", nullptr, 0, static_bytes);
  const size_t most = granted > kByDefault ? card().shared_bytes : kByDefault;
  if (static_bytes + dynamic_bytes > most) {
    fail("%zu bytes of shared arrays and %zu of the launch exceed the %zu of a block", nullptr, 0, static_bytes,
         dynamic_bytes, most);
  }
  return add(site, bytes, name);
}

void* dynamic_shared() { return shared::arrays[0].memory; }

void allow_shared(const void* kernel, size_t bytes) { shared::allowed[kernel] = bytes; }

}  // namespace emulator
