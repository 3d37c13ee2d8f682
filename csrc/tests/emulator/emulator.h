// Runs CUDA kernels on the CPU, for tests: block by block, each thread as a fiber of its own, in a random order drawn
// from a seed. Warps of 32 meet at `*_sync` operations and blocks at barriers; whoever does not come stops the launch
// with an exception that names the kernel, the block, the thread and the line. Shared memory is filled with NaNs before
// every block and lies between guard zones.
//
// It shows what depends on geometry, indices, barriers and order. It does not show speed, what a compiler for GPUs
// makes of the code, or what a weaker memory model than the CPU's would do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

namespace emulator {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs.
struct Here {
  Dim thread{0, 0, 0}, block{0, 0, 0}, block_dim, grid_dim;
};
extern Here here;

// Limits of the emulated GPU. SPANBERT_EMULATOR_SHARED sets the bytes of shared memory that a block may ask for: 232448
// (227 KB, compute capability 9.0) unless set; 101376 makes a card of 8.6, 8.9 or 12.0.
struct Card {
  size_t shared_bytes;
};
const Card& card();

int lane();

// Stops the launch from within a kernel.
[[noreturn]] __attribute__((format(printf, 1, 4))) void fail(const char* format, const char* file, int line, ...);

void meet_block(const char* file, int line);
void sync_warp(unsigned lanes, const char* file, int line);
uint64_t exchange_words(const char* operation, unsigned lanes, uint64_t word, int from, const char* file, int line);
unsigned ballot(unsigned lanes, bool vote, const char* file, int line);

// The value of lane `from`.
template <class T>
T exchange(const char* operation, unsigned lanes, T value, int from, const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "what a shuffle moves");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = exchange_words(operation, lanes, word, from, file, line);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

// The array of a block that stands at a place in the sources.
void* shared_array(const void* site, size_t bytes, const char* name);
void* dynamic_shared();
void allow_shared(const void* kernel, size_t bytes);

// Accesses of 16 bytes. What a kernel reads through the read-only cache it may not write.
void read_wide(const void* from, void* to, size_t bytes, bool read_only, const char* file = __builtin_FILE(),
               int line = __builtin_LINE());
void write_wide(void* to, const void* from, size_t bytes, const char* file = __builtin_FILE(),
                int line = __builtin_LINE());

void launch(const char* name, const void* kernel, int most_threads, unsigned blocks, Dim block, size_t shared_bytes,
            const std::function<void()>& thread);

void* driver_function(const char* name);

}  // namespace emulator
