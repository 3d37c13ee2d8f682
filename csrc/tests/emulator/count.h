// Counters of what a kernel moves, from the accesses that a recording build sees (count.cpp).
#pragma once

#include <cstddef>

namespace emulator::count {

bool is_on();
void begin_launch(const char* kernel, unsigned blocks, unsigned threads);
void end_launch();
void end_block();
void begin_thread(unsigned thread);
void meet_block();
void meet_warp(unsigned warp, unsigned lanes);
void access(const void* at, size_t bytes, bool writes, bool shared, const void* code);

}  // namespace emulator::count
