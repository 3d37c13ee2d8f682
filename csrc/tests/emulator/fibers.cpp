#include "fibers.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "sanitizer.h"

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

namespace emulator::fibers {

namespace {

constexpr size_t kStack = 128 << 10, kPage = 4096;

struct Fiber {
  void* stack_pointer;
  void* fake_stack;  // of the address sanitizer
  void (*run)();
};

Fiber all[kMost];
unsigned entered = 0;
void* outside = nullptr;  // the stack pointer of whoever entered
#ifdef EMULATOR_ASAN
void* outside_fake_stack = nullptr;
const void* outside_stack = nullptr;
size_t outside_bytes = 0;
#endif

// Below each lies a page that nobody may touch.
char* stacks() {
  static char* const memory = [] {
    void* found =
        mmap(nullptr, kMost * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) throw std::runtime_error("emulator: no memory for the stacks of 1024 threads");
    for (unsigned i = 0; i < kMost; ++i) mprotect(static_cast<char*>(found) + i * kStack, kPage, PROT_NONE);
    return static_cast<char*>(found);
  }();
  return memory;
}

char* bottom(unsigned index) { return stacks() + index * kStack + kPage; }

void begin() {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &outside_stack, &outside_bytes);
#endif
  all[entered].run();
  leave(true);
}

}  // namespace

void prepare(unsigned index, void (*run)()) {
  void** top = reinterpret_cast<void**>(bottom(index) + kStack - kPage) - 2;
  *top = reinterpret_cast<void*>(begin);
  all[index] = {top - 6, nullptr, run};  // six registers, of any value
}

void enter(unsigned index) {
  entered = index;
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&outside_fake_stack, bottom(index), kStack - kPage);
#endif
  emulator_switch(&outside, all[index].stack_pointer);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(outside_fake_stack, nullptr, nullptr);
#endif
}

void leave(bool for_ever) {
  Fiber& fiber = all[entered];
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber.fake_stack, outside_stack, outside_bytes);
#endif
  emulator_switch(&fiber.stack_pointer, outside);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &outside_stack, &outside_bytes);
#endif
  static_cast<void>(for_ever);
}

void forget_frames() {
  for (unsigned i = 0; i < kMost; ++i) ASAN_UNPOISON_MEMORY_REGION(bottom(i), kStack - kPage);
}

bool owns(const void* at) {
  return reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(stacks()) < kMost * kStack;
}

}  // namespace emulator::fibers
