#include "emulator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"
#include "record.h"
#include "sanitizer.h"
#include "shared.h"
#include "text.h"

namespace emulator {

Here here;

namespace {

constexpr unsigned kWarp = 32, kMostThreads = fibers::kMost;

enum class State { kReady, kInWarp, kAtBarrier, kDone };

struct Thread {
  Dim thread;
  State state;
  // What it waits for.
  const char* operation;
  unsigned lanes;
  int from;
  uint64_t word, result;
  const char* file;
  int line;
};

struct Counts {
  uint64_t launches = 0, blocks = 0, threads = 0, barriers = 0, warp_operations = 0;
  ~Counts();
};

struct Launch {
  const char* name = "";
  const std::function<void()>* thread = nullptr;
};

std::mutex one_launch_at_a_time;
Launch current;
std::vector<Thread> threads(kMostThreads);
unsigned count = 0, finished = 0, at_barrier = 0, running = 0;
bool in_kernel = false, stopped = false;  // stopped: the launch before did not end
std::vector<unsigned> ready;
std::string fault;
Counts counts;

// Random orders: SplitMix64.
uint64_t random_state = 1;
uint64_t draw() {
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
unsigned draw_below(unsigned limit) { return unsigned((draw() >> 32) * limit >> 32); }

// One line for every process that launched something; `run` adds them up.
Counts::~Counts() {
  const char* path = std::getenv("SPANBERT_EMULATOR_COUNTS");
  if (!path || launches == 0) return;
  if (FILE* out = std::fopen(path, "a")) {
    std::fprintf(out, "%llu %llu %llu %llu %llu\n", (unsigned long long)launches, (unsigned long long)blocks,
                 (unsigned long long)threads, (unsigned long long)barriers, (unsigned long long)warp_operations);
    std::fclose(out);
  }
}

// Threads ------------------------------------------------------------------------------------------------------------

void run_thread() {
  (*current.thread)();
  threads[running].state = State::kDone;
}

void prepare(unsigned index, Dim block) {
  Thread& thread = threads[index];
  thread = Thread{};
  thread.thread = Dim(index % block.x, index / block.x % block.y, index / (block.x * block.y));
  thread.state = State::kReady;
  fibers::prepare(index, run_thread);
}

// Until the thread waits or ends.
void go_on(unsigned index) {
  running = index;
  here.thread = threads[index].thread;
  in_kernel = true;
  record::begin_thread(index);
  fibers::enter(index);
  record::end_thread();
  in_kernel = false;
}

// Messages -----------------------------------------------------------------------------------------------------------

std::string place(const char* file, int line) {
  if (!file) return "?";
  const char* short_name = std::strstr(file, "csrc/");
  return text("%s:%d", short_name ? short_name : file, line);
}

std::string doing(const Thread& thread) {
  switch (thread.state) {
    case State::kDone: return "has left the kernel";
    case State::kReady: return "runs";
    case State::kAtBarrier: return "waits at the barrier of " + place(thread.file, thread.line);
    case State::kInWarp:
      return text("waits at %s(0x%08x) of ", thread.operation, thread.lanes) + place(thread.file, thread.line);
  }
  return "";
}

std::string located(unsigned thread, const std::string& what) {
  return text("emulator: kernel %s, block %u, thread %u of %u: ", current.name, here.block.x, thread, count) + what;
}

// Nobody can go on: who waits for whom?
std::string deadlock() {
  for (unsigned i = 0; i < count; ++i) {
    if (threads[i].state != State::kInWarp) continue;
    for (unsigned bit = 0; bit < kWarp; ++bit) {
      const unsigned other = i / kWarp * kWarp + bit;
      if (!(threads[i].lanes >> bit & 1u)) continue;
      if (other >= count)
        return located(i, doing(threads[i]) + text(" for lane %u, which the block does not have", bit));
      const Thread& missing = threads[other];
      const bool comes = missing.state == State::kInWarp && missing.lanes == threads[i].lanes &&
                         !std::strcmp(missing.operation, threads[i].operation);
      if (!comes) return located(i, doing(threads[i]) + text(" for lane %u, which ", bit) + doing(missing));
    }
  }
  for (unsigned i = 0; i < count; ++i) {
    if (threads[i].state != State::kAtBarrier) continue;
    for (unsigned other = 0; other < count; ++other) {
      if (threads[other].state != State::kAtBarrier) {
        return located(i, doing(threads[i]) + text(" for thread %u, which ", other) + doing(threads[other]));
      }
    }
  }
  return "emulator: nobody waits";
}

// Meetings -----------------------------------------------------------------------------------------------------------

void wait(State state, const char* operation, unsigned lanes, const char* file, int line) {
  Thread& thread = threads[running];
  thread.state = state;
  thread.operation = operation;
  thread.lanes = lanes;
  thread.file = file;
  thread.line = line;
  fibers::leave();
}

void wake(unsigned index) {
  threads[index].state = State::kReady;
  ready.push_back(index);
}

// A thread has come to a warp operation: if it was the last of its lanes, all go on.
void complete_warp(unsigned index) {
  const Thread& last = threads[index];
  const unsigned first = index / kWarp * kWarp;
  unsigned votes = 0;
  for (unsigned bit = 0; bit < kWarp; ++bit) {
    if (!(last.lanes >> bit & 1u)) continue;
    if (first + bit >= count) return;
    const Thread& other = threads[first + bit];
    if (other.state != State::kInWarp || other.lanes != last.lanes || std::strcmp(other.operation, last.operation)) {
      return;
    }
    votes |= unsigned(other.word & 1u) << bit;
  }
  const bool votes_only = !std::strcmp(last.operation, "__ballot_sync");
  for (unsigned bit = 0; bit < kWarp; ++bit) {
    if (!(last.lanes >> bit & 1u)) continue;
    Thread& thread = threads[first + bit];
    thread.result = votes_only ? votes : threads[first + unsigned(thread.from)].word;
  }
  ++counts.warp_operations;
  record::meet_warp(first / kWarp, last.lanes, !std::strcmp(last.operation, "__syncwarp"));
  const unsigned lanes = last.lanes;
  for (unsigned bit = 0; bit < kWarp; ++bit) {
    if (lanes >> bit & 1u) wake(first + bit);
  }
}

void complete_barrier() {
  for (unsigned i = 1; i < count; ++i) {
    if (threads[i].line != threads[0].line || std::strcmp(threads[i].file, threads[0].file)) {
      throw std::runtime_error(located(i, doing(threads[i]) + ", while thread 0 " + doing(threads[0])));
    }
  }
  ++counts.barriers;
  at_barrier = 0;
  record::meet_block();
  for (unsigned i = 0; i < count; ++i) wake(i);
}

// Blocks -------------------------------------------------------------------------------------------------------------

void run_block(Dim block) {
  finished = at_barrier = 0;
  record::begin_block();
  shared::begin_block();
  ready.clear();
  for (unsigned i = 0; i < count; ++i) {
    prepare(i, block);
    ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[draw_below(unsigned(ready.size()))], ready.back());
    const unsigned index = ready.back();
    ready.pop_back();
    go_on(index);
    if (!fault.empty()) throw std::runtime_error(fault);
    switch (threads[index].state) {
      case State::kDone: ++finished; break;
      case State::kInWarp: complete_warp(index); break;
      case State::kAtBarrier:
        if (++at_barrier == count) complete_barrier();
        break;
      case State::kReady: break;
    }
  }
  if (finished < count) throw std::runtime_error(deadlock());
  shared::end_block(current.name);
  record::end_block();
  ++counts.blocks;
  counts.threads += count;
}

}  // namespace

// What kernels call --------------------------------------------------------------------------------------------------

int lane() { return int(running % kWarp); }

void fail(const char* format, const char* file, int line, ...) {
  char message[768];
  va_list arguments;
  va_start(arguments, line);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  const std::string whole = located(running, message + (file ? " at " + place(file, line) : ""));
  if (!in_kernel) throw std::runtime_error(whole);
  fault = whole;
  fibers::leave(true);
  std::abort();
}

void meet_block(const char* file, int line) { wait(State::kAtBarrier, "__syncthreads", 0, file, line); }

void sync_warp(unsigned lanes, const char* file, int line) {
  exchange_words("__syncwarp", lanes, 0, lane(), file, line);
}

uint64_t exchange_words(const char* operation, unsigned lanes, uint64_t word, int from, const char* file, int line) {
  Thread& thread = threads[running];
  if (!(lanes >> lane() & 1u)) fail("%s(0x%08x) does not name its own lane %d", file, line, operation, lanes, lane());
  if (!(lanes >> from & 1u)) {
    fail("%s(0x%08x) reads lane %d, which it does not name", file, line, operation, lanes, from);
  }
  thread.word = word;
  thread.from = from;
  wait(State::kInWarp, operation, lanes, file, line);
  return thread.result;
}

unsigned ballot(unsigned lanes, bool vote, const char* file, int line) {
  return unsigned(exchange_words("__ballot_sync", lanes, vote, lane(), file, line));
}

void read_wide(const void* from, void* to, size_t bytes, bool, const char* file, int line) {
  if (reinterpret_cast<uintptr_t>(from) % bytes) fail("misaligned read of %zu bytes at %p", file, line, bytes, from);
  record::access(from, bytes, false, __builtin_return_address(0));
  std::memcpy(to, from, bytes);
}

void write_wide(void* to, const void* from, size_t bytes, const char* file, int line) {
  if (reinterpret_cast<uintptr_t>(to) % bytes) fail("misaligned write of %zu bytes at %p", file, line, bytes, to);
  record::access(to, bytes, true, __builtin_return_address(0));
  std::memcpy(to, from, bytes);
}

void launch(const char* name, const void* kernel, int most_threads, unsigned blocks, Dim block, size_t shared_bytes,
            const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  count = block.x * block.y * block.z;
  current = {name, &thread};
  if (stopped) fibers::forget_frames();
  stopped = true;  // until it ends
  fault.clear();
  here.block = Dim(0, 0, 0);
  if (count == 0 || count > unsigned(most_threads) || count > kMostThreads) {
    throw std::runtime_error(
        text("emulator: kernel %s: %u threads a block, its bounds allow %d", name, count, most_threads));
  }
  if (blocks == 0 || blocks > 0x7FFFFFFFu)
    throw std::runtime_error(text("emulator: kernel %s: %u blocks", name, blocks));
  shared::begin_launch(name, kernel, shared_bytes);
  here.block_dim = block;
  here.grid_dim = Dim(blocks);
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned i = blocks; i > 1; --i) std::swap(order[i - 1], order[draw_below(i)]);
  record::begin_launch(name, blocks, count);
  for (const unsigned index : order) {
    here.block = Dim(index, 0, 0);
    run_block(block);
  }
  record::end_launch();
  stopped = false;
  ++counts.launches;
}

bool record::on_a_stack(const void* at) { return fibers::owns(at); }

bool record::in_shared_memory(const void* at) { return shared::owns(at); }

// The driver has one context, of device 0.
void* driver_function(const char* name) {
  const std::string wanted = name;
  if (wanted == "cuCtxGetCurrent") {
    return reinterpret_cast<void*>(+[](void** context) {
      *context = &here;
      return 0;
    });
  }
  if (wanted == "cuCtxGetDevice") {
    return reinterpret_cast<void*>(+[](int* device) { return *device = 0; });
  }
  return reinterpret_cast<void*>(+[](void*) { return 0; });
}

}  // namespace emulator

// What tests call, through ctypes.
extern "C" __attribute__((visibility("default"))) void spanbert_emulator_seed(uint64_t seed) {
  emulator::random_state = seed;
}

namespace {
// Which thread a sanitizer's report is about, and the seed of the environment.
const int started = [] {
  emulator::random_state = emulator::from_environment("SPANBERT_EMULATOR_SEED", 1);
#ifdef EMULATOR_ASAN
  __sanitizer_set_death_callback([] {
    if (emulator::in_kernel) std::fprintf(stderr, "%s\n", emulator::located(emulator::running, "stopped").c_str());
  });
#endif
  return 0;
}();
}  // namespace
