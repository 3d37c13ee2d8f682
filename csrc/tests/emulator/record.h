// What the emulator tells a build that records accesses (record.cpp); other builds call nothing of it.
#pragma once

#include <cstddef>
#include <string>

namespace emulator::record {

#ifdef SPANBERT_EMULATOR_RECORDS
void begin_launch(const char* kernel, unsigned blocks, unsigned threads);
void end_launch();
void begin_block();
void end_block();
void begin_thread(unsigned thread);  // that from now on runs, until
void end_thread();
void share(const void* memory, size_t bytes, const char* name);
void meet_block();
void meet_warp(unsigned warp, unsigned lanes, bool orders);  // orders: as __syncwarp does, and a shuffle does not
void access(const void* at, size_t bytes, bool writes, const void* code);
std::string line_of(const void* code);  // in the sources, the innermost function first
#else
inline void begin_launch(const char*, unsigned, unsigned) {}
inline void end_launch() {}
inline void begin_block() {}
inline void end_block() {}
inline void begin_thread(unsigned) {}
inline void end_thread() {}
inline void share(const void*, size_t, const char*) {}
inline void meet_block() {}
inline void meet_warp(unsigned, unsigned, bool) {}
inline void access(const void*, size_t, bool, const void*) {}
#endif

// Of the emulator: whether an address lies on a thread's stack, which nobody else sees, or in shared memory.
bool on_a_stack(const void* at);
bool in_shared_memory(const void* at);

}  // namespace emulator::record
