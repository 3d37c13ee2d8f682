// Shared memory of the block that runs: filled with NaNs before every block, each array between guard zones.
#pragma once

#include <cstddef>

namespace emulator::shared {

void begin_launch(const char* name, const void* kernel, size_t dynamic_bytes);  // throws where that is too much
void begin_block();
void end_block(const char* kernel);  // throws where somebody wrote beside an array
bool owns(const void* at);

}  // namespace emulator::shared
