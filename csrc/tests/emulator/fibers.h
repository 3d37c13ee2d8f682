// Stacks for the emulated threads, and the switch between them and whoever runs them.
#pragma once

namespace emulator::fibers {

constexpr unsigned kMost = 1024;

void prepare(unsigned index, void (*run)());  // the next `enter` begins `run`
void enter(unsigned index);                   // until it leaves or has run
void leave(bool for_ever = false);            // called by the one that was entered
void forget_frames();                         // of threads that will not be entered again
bool owns(const void* at);                    // whether an address lies on one of the stacks

}  // namespace emulator::fibers
