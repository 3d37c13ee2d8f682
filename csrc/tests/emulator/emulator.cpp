#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "record.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#endif

#ifdef __x86_64__
// Saves the registers that a function must keep, and the stack pointer behind `from`; goes on with the stack `to`.
asm(R"(
.text
.local emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void emulator_switch(void** from, void* to);
#else
#error "the emulator switches between threads on x86-64 only"
#endif

namespace emulator {

Here here;

namespace {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 128 << 10, kPage = 4096, kGuard = 64, kSharedByDefault = 48 << 10;
constexpr uint16_t kPoison = 0x7FF7;  // repeated: not a number in fp16, bf16, fp32 and (signalling) fp64
constexpr uint8_t kGuardByte = 0xB7;

enum class State { kReady, kInWarp, kAtBarrier, kDone };

struct Fiber {
  void* stack_pointer;
  void* fake_stack;  // of the address sanitizer
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

struct SharedArray {
  const void* site;
  char* memory;
  size_t bytes;
  const char* name;
};

struct Counts {
  uint64_t launches = 0, blocks = 0, threads = 0, barriers = 0, warp_operations = 0;
  ~Counts();
};

struct Launch {
  const char* name = "";
  const void* kernel = nullptr;
  size_t dynamic_bytes = 0;
  const std::function<void()>* thread = nullptr;
};

std::mutex one_launch_at_a_time;
Launch current;
std::vector<Fiber> fibers(kMostThreads);
unsigned count = 0, finished = 0, at_barrier = 0, running = 0;
bool in_kernel = false, stopped = false;  // stopped: the launch before did not end
std::vector<unsigned> ready;
std::string fault;
void* scheduler = nullptr;
#ifdef EMULATOR_ASAN
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif
std::map<const void*, size_t> allowed_shared;
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

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

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

// Stacks -------------------------------------------------------------------------------------------------------------

// Below each lies a page that nobody may touch.
char* stacks() {
  static char* const memory = [] {
    void* found = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) throw std::runtime_error("emulator: no memory for the stacks of 1024 threads");
    for (unsigned i = 0; i < kMostThreads; ++i) mprotect(static_cast<char*>(found) + i * kStack, kPage, PROT_NONE);
    return static_cast<char*>(found);
  }();
  return memory;
}

void switch_to_fiber(unsigned index) {
  Fiber& fiber = fibers[index];
  running = index;
  here.thread = fiber.thread;
  in_kernel = true;
  record::begin_thread(index);
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, stacks() + index * kStack + kPage, kStack - kPage);
#endif
  emulator_switch(&scheduler, fiber.stack_pointer);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
  record::end_thread();
  in_kernel = false;
}

void switch_to_scheduler(bool for_ever = false) {
  Fiber& fiber = fibers[running];
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
  emulator_switch(&fiber.stack_pointer, scheduler);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
  static_cast<void>(for_ever);
}

void run_fiber() {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  (*current.thread)();
  fibers[running].state = State::kDone;
  switch_to_scheduler(true);
}

void prepare(unsigned index, Dim block) {
  Fiber& fiber = fibers[index];
  fiber = Fiber{};
  fiber.thread = Dim(index % block.x, index / block.x % block.y, index / (block.x * block.y));
  fiber.state = State::kReady;
  char* const bottom = stacks() + index * kStack + kPage;
  void** top = reinterpret_cast<void**>(bottom + kStack - kPage) - 2;
  *top = reinterpret_cast<void*>(run_fiber);
  fiber.stack_pointer = top - 6;  // six registers, of any value
}

// Messages -----------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  return line;
}

std::string place(const char* file, int line) {
  if (!file) return "?";
  const char* short_name = std::strstr(file, "csrc/");
  return text("%s:%d", short_name ? short_name : file, line);
}

std::string doing(const Fiber& fiber) {
  switch (fiber.state) {
    case State::kDone: return "has left the kernel";
    case State::kReady: return "runs";
    case State::kAtBarrier: return "waits at the barrier of " + place(fiber.file, fiber.line);
    case State::kInWarp:
      return text("waits at %s(0x%08x) of ", fiber.operation, fiber.lanes) + place(fiber.file, fiber.line);
  }
  return "";
}

std::string located(unsigned thread, const std::string& what) {
  return text("emulator: kernel %s, block %u, thread %u of %u: ", current.name, here.block.x, thread, count) + what;
}

// Nobody can go on: who waits for whom?
std::string deadlock() {
  for (unsigned i = 0; i < count; ++i) {
    if (fibers[i].state != State::kInWarp) continue;
    for (unsigned bit = 0; bit < kWarp; ++bit) {
      const unsigned other = i / kWarp * kWarp + bit;
      if (!(fibers[i].lanes >> bit & 1u)) continue;
      if (other >= count)
        return located(i, doing(fibers[i]) + text(" for lane %u, which the block does not have", bit));
      const Fiber& missing = fibers[other];
      const bool comes = missing.state == State::kInWarp && missing.lanes == fibers[i].lanes &&
                         !std::strcmp(missing.operation, fibers[i].operation);
      if (!comes) return located(i, doing(fibers[i]) + text(" for lane %u, which ", bit) + doing(missing));
    }
  }
  for (unsigned i = 0; i < count; ++i) {
    if (fibers[i].state != State::kAtBarrier) continue;
    for (unsigned other = 0; other < count; ++other) {
      if (fibers[other].state != State::kAtBarrier) {
        return located(i, doing(fibers[i]) + text(" for thread %u, which ", other) + doing(fibers[other]));
      }
    }
  }
  return "emulator: nobody waits";
}

// Meetings -----------------------------------------------------------------------------------------------------------

void wait(State state, const char* operation, unsigned lanes, const char* file, int line) {
  Fiber& fiber = fibers[running];
  fiber.state = state;
  fiber.operation = operation;
  fiber.lanes = lanes;
  fiber.file = file;
  fiber.line = line;
  switch_to_scheduler();
}

void wake(unsigned index) {
  fibers[index].state = State::kReady;
  ready.push_back(index);
}

// A fiber has come to a warp operation: if it was the last of its lanes, all go on.
void complete_warp(unsigned index) {
  const Fiber& last = fibers[index];
  const unsigned first = index / kWarp * kWarp;
  unsigned votes = 0;
  for (unsigned bit = 0; bit < kWarp; ++bit) {
    if (!(last.lanes >> bit & 1u)) continue;
    if (first + bit >= count) return;
    const Fiber& other = fibers[first + bit];
    if (other.state != State::kInWarp || other.lanes != last.lanes || std::strcmp(other.operation, last.operation)) {
      return;
    }
    votes |= unsigned(other.word & 1u) << bit;
  }
  const bool votes_only = !std::strcmp(last.operation, "__ballot_sync");
  for (unsigned bit = 0; bit < kWarp; ++bit) {
    if (!(last.lanes >> bit & 1u)) continue;
    Fiber& fiber = fibers[first + bit];
    fiber.result = votes_only ? votes : fibers[first + unsigned(fiber.from)].word;
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
    if (fibers[i].line != fibers[0].line || std::strcmp(fibers[i].file, fibers[0].file)) {
      throw std::runtime_error(located(i, doing(fibers[i]) + ", while thread 0 " + doing(fibers[0])));
    }
  }
  ++counts.barriers;
  at_barrier = 0;
  record::meet_block();
  for (unsigned i = 0; i < count; ++i) wake(i);
}

// Shared memory ------------------------------------------------------------------------------------------------------

constexpr size_t kArena = (232448 + kSharedByDefault) * 2;
alignas(128) char arena[kArena];
size_t arena_used = 0, static_bytes = 0;
std::vector<SharedArray> arrays;

size_t granted() {
  const auto found = allowed_shared.find(current.kernel);
  return found == allowed_shared.end() ? kSharedByDefault : std::max(found->second, kSharedByDefault);
}

char* add_array(const void* site, size_t bytes, const char* name) {
  const size_t begin = (arena_used + kGuard + 15) / 16 * 16, end = begin + bytes;
  if (end + kGuard > kArena) throw std::runtime_error("emulator: the arena of shared memory is too small");
  ASAN_UNPOISON_MEMORY_REGION(arena + arena_used, end + kGuard - arena_used);
  std::memset(arena + arena_used, kGuardByte, end + kGuard - arena_used);
  for (size_t i = 0; i < bytes; ++i) arena[begin + i] = char(i % 2 ? kPoison >> 8 : kPoison);
  ASAN_POISON_MEMORY_REGION(arena + arena_used, begin - arena_used);
  ASAN_POISON_MEMORY_REGION(arena + end, kGuard);
  arena_used = end;
  arrays.push_back({site, arena + begin, bytes, name});
  record::share(arena + begin, bytes, name);
  return arena + begin;
}

// Two arrays share the zone between them: the nearer one is named.
void check_guards() {
  for (size_t i = 0; i < kGuard; ++i) {
    for (const SharedArray& array : arrays) {
      char* const places[2] = {array.memory - 1 - i, array.memory + array.bytes + i};
      for (const char* at : places) {
        ASAN_UNPOISON_MEMORY_REGION(at, 1);
        if (uint8_t(*at) != kGuardByte) {
          throw std::runtime_error(
              text("emulator: kernel %s, block %u: byte %td of the shared array %s [%zu bytes] was "
                   "written",
                   current.name, here.block.x, at - array.memory, array.name, array.bytes));
        }
      }
    }
  }
}

// Blocks -------------------------------------------------------------------------------------------------------------

void run_block(Dim block) {
  arrays.clear();
  arena_used = static_bytes = 0;
  finished = at_barrier = 0;
  record::begin_block();
  add_array(nullptr, current.dynamic_bytes, "of the launch");
  ready.clear();
  for (unsigned i = 0; i < count; ++i) {
    prepare(i, block);
    ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[draw_below(unsigned(ready.size()))], ready.back());
    const unsigned index = ready.back();
    ready.pop_back();
    switch_to_fiber(index);
    if (!fault.empty()) throw std::runtime_error(fault);
    switch (fibers[index].state) {
      case State::kDone: ++finished; break;
      case State::kInWarp: complete_warp(index); break;
      case State::kAtBarrier:
        if (++at_barrier == count) complete_barrier();
        break;
      case State::kReady: break;
    }
  }
  if (finished < count) throw std::runtime_error(deadlock());
  check_guards();
  record::end_block();
  ++counts.blocks;
  counts.threads += count;
}

}  // namespace

// What kernels call --------------------------------------------------------------------------------------------------

const Card& card() {
  static const Card found{size_t(from_environment("SPANBERT_EMULATOR_SHARED", 232448))};
  return found;
}

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
  switch_to_scheduler(true);
  std::abort();
}

void meet_block(const char* file, int line) { wait(State::kAtBarrier, "__syncthreads", 0, file, line); }

void sync_warp(unsigned lanes, const char* file, int line) {
  exchange_words("__syncwarp", lanes, 0, lane(), file, line);
}

uint64_t exchange_words(const char* operation, unsigned lanes, uint64_t word, int from, const char* file, int line) {
  Fiber& fiber = fibers[running];
  if (!(lanes >> lane() & 1u)) fail("%s(0x%08x) does not name its own lane %d", file, line, operation, lanes, lane());
  if (!(lanes >> from & 1u)) {
    fail("%s(0x%08x) reads lane %d, which it does not name", file, line, operation, lanes, from);
  }
  fiber.word = word;
  fiber.from = from;
  wait(State::kInWarp, operation, lanes, file, line);
  return fiber.result;
}

unsigned ballot(unsigned lanes, bool vote, const char* file, int line) {
  return unsigned(exchange_words("__ballot_sync", lanes, vote, lane(), file, line));
}

void* shared_array(const void* site, size_t bytes, const char* name) {
  for (const SharedArray& array : arrays) {
    if (array.site == site) return array.memory;
  }
  static_bytes += (bytes + 15) / 16 * 16;
  if (static_bytes > kSharedByDefault) fail("%zu bytes of shared arrays exceed 48 KB", nullptr, 0, static_bytes);
  const size_t most = granted() > kSharedByDefault ? card().shared_bytes : kSharedByDefault;
  if (static_bytes + current.dynamic_bytes > most) {
    fail("%zu bytes of shared arrays and %zu of the launch exceed the %zu of a block", nullptr, 0, static_bytes,
         current.dynamic_bytes, most);
  }
  return add_array(site, bytes, name);
}

void* dynamic_shared() { return arrays[0].memory; }

void allow_shared(const void* kernel, size_t bytes) { allowed_shared[kernel] = bytes; }

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
  current = {name, kernel, shared_bytes, &thread};
  if (stopped) {  // its threads left their frames behind
    for (unsigned i = 0; i < kMostThreads; ++i) {
      ASAN_UNPOISON_MEMORY_REGION(stacks() + i * kStack + kPage, kStack - kPage);
    }
  }
  stopped = true;  // until it ends
  fault.clear();
  here.block = Dim(0, 0, 0);
  if (count == 0 || count > unsigned(most_threads) || count > kMostThreads) {
    throw std::runtime_error(
        text("emulator: kernel %s: %u threads a block, its bounds allow %d", name, count, most_threads));
  }
  if (blocks == 0 || blocks > 0x7FFFFFFFu)
    throw std::runtime_error(text("emulator: kernel %s: %u blocks", name, blocks));
  if (shared_bytes > granted() || shared_bytes > card().shared_bytes) {
    throw std::runtime_error(text("emulator: kernel %s: %zu bytes of shared memory, granted are %zu of %zu", name,
                                  shared_bytes, granted(), card().shared_bytes));
  }
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

bool record::on_a_stack(const void* at) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(stacks());
  return offset < kMostThreads * kStack;
}

bool record::in_shared_memory(const void* at) { return at >= arena && at < arena + kArena; }

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
