// What a GPU would be asked for: the accesses of a warp's lanes at one place of the code, the same time there, are one
// request. Times are counted anew whenever the whole warp meets, so that lanes which left a loop early do not shift
// those after it. Off until `spanbert_emulator_count(1)`; while it is on, races are not looked for.
//
// Of global memory a request takes the 32-byte sectors that its lanes touch, at best as many as its distinct bytes
// fill. Sectors are added up three times: for each request (no cache at all), once for each block (a perfect L1), once
// for each launch (a perfect L2). Those read and those written are counted apart.
// Shared memory has 32 banks of 4 bytes. Lanes are served at once, of 8 bytes 16 and of 16 bytes 8 at a time; the
// degree of such a turn is the most words that one bank has to give. A word that several lanes want is given once.
#include "count.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <unordered_set>
#include <vector>

#include "record.h"

namespace emulator::count {

namespace {

constexpr unsigned kWarp = 32, kMostWarps = 32, kBanks = 32;
constexpr uintptr_t kSector = 32, kWord = 4;

struct Access {
  uintptr_t at;
  size_t bytes;
  unsigned lane;
};

// Of one place in the code of one kernel; the last three count turns of shared memory.
struct Tally {
  uint64_t requests = 0, bytes = 0, sectors = 0, ideal = 0, turns = 0, degrees = 0, worst = 0;
  void add(const Tally& other) {
    requests += other.requests, bytes += other.bytes, sectors += other.sectors, ideal += other.ideal;
    turns += other.turns, degrees += other.degrees, worst = std::max(worst, other.worst);
  }
};

enum Kind { kReads, kWrites, kSharedReads, kSharedWrites, kKinds };
constexpr const char* kKindNames[kKinds] = {"read", "written", "shared_read", "shared_written"};

struct Kernel {
  uint64_t launches = 0, blocks = 0, threads = 0, barriers = 0;
  uint64_t by_block[2] = {}, by_launch[2] = {};  // sectors read, written
  std::map<std::pair<Kind, const void*>, Tally> places;
};

struct Request {
  Kind kind;
  std::vector<Access> lanes;
};

// The requests of a warp since it met, by place of the code and time there.
struct Warp {
  std::map<std::pair<const void*, unsigned>, Request> requests;
  std::map<const void*, unsigned> times[kWarp];
};

bool on = false;
std::map<std::string, Kernel> kernels;
Kernel* kernel = nullptr;
Warp warps[kMostWarps];
unsigned thread = 0;
std::unordered_set<uintptr_t> of_block[2], of_launch[2];

// Distinct units of `unit` bytes that accesses touch.
std::vector<uintptr_t> units(const Access* first, const Access* last, uintptr_t unit) {
  std::vector<uintptr_t> found;
  for (; first != last; ++first) {
    for (uintptr_t u = first->at / unit; u * unit < first->at + first->bytes; ++u) found.push_back(u);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

void tally_global(const Request& request, Tally& tally) {
  const Access *first = request.lanes.data(), *last = first + request.lanes.size();
  const std::vector<uintptr_t> sectors = units(first, last, kSector);
  tally.sectors += sectors.size();
  tally.ideal += (units(first, last, 1).size() + kSector - 1) / kSector;
  of_block[request.kind].insert(sectors.begin(), sectors.end());
}

void tally_shared(Request& request, Tally& tally) {
  std::sort(request.lanes.begin(), request.lanes.end(),
            [](const Access& a, const Access& b) { return a.lane < b.lane; });
  const size_t bytes = request.lanes[0].bytes;
  const unsigned at_once = bytes <= 4 ? kWarp : bytes <= 8 ? kWarp / 2 : kWarp / 4;
  for (size_t first = 0, last; first < request.lanes.size(); first = last) {
    const unsigned turn = request.lanes[first].lane / at_once;
    for (last = first; last < request.lanes.size() && request.lanes[last].lane / at_once == turn;) ++last;
    uint64_t wanted[kBanks] = {};
    for (const uintptr_t word : units(&request.lanes[first], request.lanes.data() + last, kWord)) {
      ++wanted[word % kBanks];
    }
    const uint64_t degree = *std::max_element(wanted, wanted + kBanks);
    ++tally.turns;
    tally.degrees += degree;
    tally.worst = std::max(tally.worst, degree);
  }
}

void finish(Warp& warp) {
  for (auto& [place, request] : warp.requests) {
    Tally& tally = kernel->places[{request.kind, place.first}];
    ++tally.requests;
    for (const Access& access : request.lanes) tally.bytes += access.bytes;
    request.kind < kSharedReads ? tally_global(request, tally) : tally_shared(request, tally);
  }
  warp.requests.clear();
  for (auto& times : warp.times) times.clear();
}

std::string line(const std::string& name, Kind kind, const Tally& t, const void* place) {
  std::string text = name + "\t" + kKindNames[kind];
  for (const uint64_t value : {t.requests, t.bytes, t.sectors, t.ideal, t.turns, t.degrees, t.worst}) {
    text += "\t" + std::to_string(value);
  }
  return text + "\t" + std::to_string(reinterpret_cast<uintptr_t>(place)) + "\n";
}

}  // namespace

bool is_on() { return on; }

void begin_launch(const char* name, unsigned blocks, unsigned threads) {
  kernel = &kernels[name];
  ++kernel->launches;
  kernel->blocks += blocks;
  kernel->threads += uint64_t(blocks) * threads;
  for (Warp& warp : warps) warp = Warp{};
  for (auto* sets : {of_block, of_launch}) sets[kReads].clear(), sets[kWrites].clear();
}

void end_launch() {
  for (const Kind kind : {kReads, kWrites}) kernel->by_launch[kind] += of_launch[kind].size();
}

void end_block() {
  for (Warp& warp : warps) finish(warp);
  for (const Kind kind : {kReads, kWrites}) {
    kernel->by_block[kind] += of_block[kind].size();
    of_launch[kind].insert(of_block[kind].begin(), of_block[kind].end());
    of_block[kind].clear();
  }
}

void begin_thread(unsigned index) { thread = index; }

void meet_block() {
  ++kernel->barriers;
  for (Warp& warp : warps) finish(warp);
}

void meet_warp(unsigned warp, unsigned lanes) {
  if (lanes == ~0u) finish(warps[warp]);
}

void access(const void* at, size_t bytes, bool writes, bool shared, const void* code) {
  Warp& warp = warps[thread / kWarp];
  Request& request = warp.requests[{code, warp.times[thread % kWarp][code]++}];
  request.kind = Kind((shared ? kSharedReads : kReads) + writes);
  request.lanes.push_back({reinterpret_cast<uintptr_t>(at), bytes, thread % kWarp});
}

}  // namespace emulator::count

// What Python calls, through ctypes.
#define SPANBERT_CALLED extern "C" __attribute__((visibility("default")))

// Begins to count from nothing, or stops.
SPANBERT_CALLED void spanbert_emulator_count(int on) {
  emulator::count::on = on != 0;
  if (on) emulator::count::kernels.clear();
}

// Lines of fields between tabs, valid until the next call. Of each kernel: the name, "kernel", launches, blocks,
// threads, barriers, sectors a block reads and writes, sectors a launch reads and writes. Then, by what is done, for
// each kind or with `places` for each place in the code: the name, the kind, what Tally holds, and the place.
SPANBERT_CALLED const char* spanbert_emulator_counts(int places) {
  using namespace emulator::count;
  static std::string text;
  text.clear();
  for (const auto& [name, k] : kernels) {
    text += name + "\tkernel";
    for (const uint64_t value : {k.launches, k.blocks, k.threads, k.barriers, k.by_block[kReads], k.by_block[kWrites],
                                 k.by_launch[kReads], k.by_launch[kWrites]}) {
      text += "\t" + std::to_string(value);
    }
    text += "\n";
    Tally sums[kKinds];
    for (const auto& [place, tally] : k.places) {
      sums[place.first].add(tally);
      if (places) text += line(name, place.first, tally, place.second);
    }
    for (int kind = 0; kind < kKinds && !places; ++kind) text += line(name, Kind(kind), sums[kind], nullptr);
  }
  return text.c_str();
}

// Where a place stands in the sources, the innermost function first; valid until the next call.
SPANBERT_CALLED const char* spanbert_emulator_line(uintptr_t place) {
  static std::string text;
  text = emulator::record::line_of(reinterpret_cast<const void*>(place));
  return text.c_str();
}
