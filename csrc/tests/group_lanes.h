// A group of 32 threads that meet at barriers, as a warp or a block would, for the tests that run the group algorithms
// of a GPU on the CPU (group_test.cpp, group_loss_test.cpp).
#pragma once

#include <barrier>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "common/portable.h"

using namespace spanbert;
using namespace spanbert::SPANBERT_VARIANT;

namespace {

int checks = 0, failures = 0;

void expect(bool good, const char* what, int64_t detail) {
  ++checks;
  if (good) return;
  std::printf("FAILED: %s (%lld)\n", what, static_cast<long long>(detail));
  ++failures;
}

constexpr int kLanes = 32;

struct Meeting {
  std::barrier<> barrier{kLanes};
  double values[kLanes];
  double pairs[2][2 * kLanes];
  int64_t integers[kLanes];
};

struct Lanes {
  static constexpr int kSize = kLanes;
  Meeting* meeting;
  int lane;

  int rank() const { return lane; }
  static constexpr int size() { return kLanes; }
  void sync() const { meeting->barrier.arrive_and_wait(); }

  int64_t* slots(int64_t) const { return meeting->integers; }
  int64_t* slots(int) const { return meeting->integers; }
  double* slots(double) const { return meeting->values; }
  double* slots(float) const { return meeting->values; }

  template <class N, class Combine>
  N reduce(N x, const Combine& combine) const {
    slots(x)[lane] = x;
    sync();
    N all = N(slots(x)[0]);
    for (int i = 1; i < kLanes; ++i) all = combine(all, N(slots(x)[i]));
    sync();
    return all;
  }
  template <class N>
  N sum(N x) const {
    return reduce(x, [](N a, N b) { return a + b; });
  }
  template <class N>
  N max(N x) const {
    return reduce(x, [](N a, N b) { return b > a ? b : a; });
  }
  // What a Block does: one barrier, and two places that take turns (a third call must not find a reader of the first).
  template <class N>
  void sum_pair(N& a, N& b, int turn) const {
    double* places = meeting->pairs[turn];
    places[2 * lane] = a;
    places[2 * lane + 1] = b;
    sync();
    a = b = 0;
    for (int i = 0; i < kLanes; ++i) {
      a += N(places[2 * i]);
      b += N(places[2 * i + 1]);
    }
  }
  uint32_t broadcast(uint32_t x, int from) const {
    meeting->integers[lane] = x;
    sync();
    const uint32_t value = uint32_t(meeting->integers[from]);
    sync();
    return value;
  }
  int exclusive_sum(int x, int& total) const {
    meeting->integers[lane] = x;
    sync();
    int before = 0;
    total = 0;
    for (int i = 0; i < kLanes; ++i) {
      if (i < lane) before += int(meeting->integers[i]);
      total += int(meeting->integers[i]);
    }
    sync();
    return before;
  }
  template <class Flags>
  void pack_flags(int64_t n, const Flags& flags, uint64_t* low, uint64_t* high) const {
    if (lane == 0) OneThread().pack_flags(n, flags, low, high);
    sync();
  }
};

// Runs work(group) in 32 threads.
template <class Work>
void run_lanes(const Work& work) {
  Meeting meeting;
  std::vector<std::thread> threads;
  for (int lane = 0; lane < kLanes; ++lane) threads.emplace_back([&, lane] { work(Lanes{&meeting, lane}); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
