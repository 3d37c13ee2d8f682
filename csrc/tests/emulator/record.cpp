// Who touched which byte: every access of a kernel, as the compiler reports it to a thread sanitizer, against those
// before it. Two threads conflict when one of them writes and nothing orders them: no barrier of their block, no
// __syncwarp that both took part in. Blocks are never ordered. The order in which the emulator happened to run them
// does not matter. Shuffles and ballots exchange values and order no memory, as CUDA has it.
#include "record.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "count.h"
#include "emulator.h"

namespace emulator::record {

namespace {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kPage = 1024;  // bytes whose cells are allocated together

struct Touch {
  unsigned block = 0, thread = 0, time = 0;
  const void* code = nullptr;  // null: nobody
};

struct Cell {
  unsigned generation = 0;  // of the launch, or of the block for shared memory
  Touch write, reads[2];    // of two threads, where several read
};

struct Array {
  uintptr_t begin, end;
  std::string name;
};

struct Page {
  Cell cells[kPage];
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_page = 0;
Cell* last_cells = nullptr;

std::vector<Array> arrays;
unsigned launch_number = 0, block_number = 0, threads = 0, thread = 0;
unsigned clocks[kMostThreads], at_barrier[kMostThreads], seen[kMostThreads][kWarp];

Cell& cell_of(uintptr_t at) {
  const uintptr_t page = at / kPage;
  if (page != last_page || !last_cells) {
    std::unique_ptr<Page>& cells = pages[page];
    if (!cells) cells.reset(new Page);
    last_page = page;
    last_cells = cells->cells;
  }
  return last_cells[at % kPage];
}

bool ordered(const Touch& before) {
  if (before.block != here.block.x) return false;
  if (before.thread == thread || before.time < at_barrier[before.thread]) return true;
  return before.thread / kWarp == thread / kWarp && before.time < seen[thread][before.thread % kWarp];
}

const Array* array_at(uintptr_t at) {
  for (const Array& array : arrays) {
    if (at >= array.begin && at < array.end) return &array;
  }
  return nullptr;
}

std::string named(uintptr_t at) {
  char text[256];
  if (const Array* array = array_at(at)) {
    std::snprintf(text, sizeof(text), "byte %zu of the shared array %s", size_t(at - array->begin),
                  array->name.c_str());
  } else {
    std::snprintf(text, sizeof(text), "global memory at %p", reinterpret_cast<void*>(at));
  }
  return text;
}

void report(const Touch& other, bool other_writes, bool writes, uintptr_t at, const void* code) {
  fail("%s %s at %s, and block %u, thread %u %s it at %s with nothing between them", nullptr, 0,
       writes ? "writes" : "reads", named(at).c_str(), line_of(code).c_str(), other.block, other.thread,
       other_writes ? "wrote" : "read", line_of(other.code).c_str());
}

void check_byte(uintptr_t at, bool shared, bool writes, const void* code) {
  Cell& cell = cell_of(at);
  const unsigned generation = shared ? block_number : launch_number;
  if (cell.generation != generation) {
    cell = Cell{};
    cell.generation = generation;
  }
  if (shared && !writes && !cell.write.code) {
    fail("reads %s at %s, which no thread wrote", nullptr, 0, named(at).c_str(), line_of(code).c_str());
  }
  if (cell.write.code && !ordered(cell.write)) report(cell.write, true, writes, at, code);
  const Touch own{here.block.x, thread, clocks[thread], code};
  if (writes) {
    for (const Touch& read : cell.reads) {
      if (read.code && !ordered(read)) report(read, false, true, at, code);
    }
    cell.reads[0].code = cell.reads[1].code = nullptr;
    cell.write = own;
  } else {
    const bool first = !cell.reads[0].code || ordered(cell.reads[0]);
    cell.reads[first ? 0 : 1] = own;
  }
}

// The stack of the thread that launches, where the arguments stand until a thread has copied them.
bool on_the_callers_stack(uintptr_t at) {
  thread_local uintptr_t begin = 0, end = 0;
  if (!end) {
    pthread_attr_t attributes;
    void* memory = nullptr;
    size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &memory, &bytes);
    pthread_attr_destroy(&attributes);
    begin = reinterpret_cast<uintptr_t>(memory);
    end = begin + bytes;
  }
  return at >= begin && at < end;
}

bool is_own(const void* pointer) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(pointer), index = reinterpret_cast<uintptr_t>(&here);
  return on_a_stack(pointer) || (at >= index && at < index + sizeof(here)) || on_the_callers_stack(at);
}

bool recording = false;  // a kernel runs, not the host code of the same sources

}  // namespace

std::string line_of(const void* code) {
  Dl_info module;
  const char* address = static_cast<const char*>(code) - 1;  // the call lies before its return
  if (!dladdr(address, &module)) return "?";
  char command[512], line[512];
  std::snprintf(command, sizeof(command), "addr2line -ie '%s' 0x%zx 2>/dev/null", module.dli_fname,
                size_t(address - static_cast<const char*>(module.dli_fbase)));
  std::string all;
  if (FILE* lines = popen(command, "r")) {
    while (std::fgets(line, sizeof(line), lines)) {
      std::string text = line;
      text = text.substr(0, text.find_first_of("\n ("));
      const size_t base = text.rfind("csrc/");
      const bool emulators = text.find("csrc/tests/") != std::string::npos && text.find(".cu:") == std::string::npos;
      if (base == std::string::npos || emulators) continue;
      all += (all.empty() ? "" : " < ") + text.substr(base);
    }
    pclose(lines);
  }
  return all.empty() ? "?" : all;
}

void begin_launch(const char* kernel, unsigned blocks, unsigned launched) {
  if (count::is_on()) return count::begin_launch(kernel, blocks, launched);
  ++launch_number;
  threads = launched;
  if (pages.size() > (64u << 20) / kPage) {  // memory that was freed since
    pages.clear();
    last_cells = nullptr;
  }
}

void end_launch() {
  if (count::is_on()) count::end_launch();
}

void begin_block() {
  ++block_number;
  arrays.clear();
  std::fill_n(clocks, threads, 0u);
  std::fill_n(at_barrier, threads, 0u);
  std::fill_n(seen[0], size_t(threads) * kWarp, 0u);
}

void end_block() {
  if (count::is_on()) count::end_block();
}

void begin_thread(unsigned index) {
  recording = true;
  thread = index;
  count::begin_thread(index);
}

void end_thread() { recording = false; }

void share(const void* memory, size_t bytes, const char* name) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  arrays.push_back({begin, begin + bytes, name});
}

void meet_block() {
  if (count::is_on()) return count::meet_block();
  for (unsigned i = 0; i < threads; ++i) at_barrier[i] = ++clocks[i];
}

void meet_warp(unsigned warp, unsigned lanes, bool orders) {
  if (count::is_on()) return count::meet_warp(warp, lanes);
  if (!orders) return;
  unsigned joined[kWarp] = {};
  const unsigned first = warp * kWarp;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1u)) continue;
    ++clocks[first + lane];
    for (unsigned other = 0; other < kWarp; ++other) joined[other] = std::max(joined[other], seen[first + lane][other]);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (lanes >> lane & 1u) joined[lane] = clocks[first + lane];
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (lanes >> lane & 1u) std::copy_n(joined, kWarp, seen[first + lane]);
  }
}

void access(const void* pointer, size_t bytes, bool writes, const void* code) {
  if (!recording || is_own(pointer)) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
  const bool shared = in_shared_memory(pointer);
  if (shared) {
    const Array* array = array_at(at);
    if (!array || at + bytes > array->end) {
      fail("%s %zu bytes outside its shared arrays at %s", nullptr, 0, writes ? "writes" : "reads", bytes,
           line_of(code).c_str());
    }
  }
  if (count::is_on()) return count::access(pointer, bytes, writes, shared, code);
  for (size_t i = 0; i < bytes; ++i) check_byte(at + i, shared, writes, code);
}

}  // namespace emulator::record

// What compilers call for the thread sanitizer -----------------------------------------------------------------------

#define RECORD(bytes, writes) emulator::record::access(at, size_t(bytes), writes, __builtin_return_address(0))
#define RECORD_SIZE(size)                                             \
  void __tsan_read##size(void* at) { RECORD(size, false); }           \
  void __tsan_write##size(void* at) { RECORD(size, true); }           \
  void __tsan_unaligned_read##size(void* at) { RECORD(size, false); } \
  void __tsan_unaligned_write##size(void* at) { RECORD(size, true); } \
  void __tsan_volatile_read##size(void* at) { RECORD(size, false); }  \
  void __tsan_volatile_write##size(void* at) { RECORD(size, true); }  \
  void __tsan_read_write##size(void* at) { RECORD(size, false), RECORD(size, true); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
RECORD_SIZE(1)
RECORD_SIZE(2)
RECORD_SIZE(4)
RECORD_SIZE(8)
RECORD_SIZE(16)
void __tsan_read_range(void* at, unsigned long bytes) { RECORD(bytes, false); }
void __tsan_write_range(void* at, unsigned long bytes) { RECORD(bytes, true); }
// Of the static variables of host functions.
unsigned char __tsan_atomic8_load(const unsigned char* at, int) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
void __tsan_vptr_update(void**, void*) {}
void* __tsan_memcpy(void* at, const void* from, size_t bytes) {
  RECORD(bytes, true);
  emulator::record::access(from, bytes, false, __builtin_return_address(0));
  return std::memcpy(at, from, bytes);
}
void* __tsan_memset(void* at, int value, size_t bytes) {
  RECORD(bytes, true);
  return std::memset(at, value, bytes);
}
}
