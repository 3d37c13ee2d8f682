// Greedy choice of spans that do not cross: the best span first, unless it overlaps a kept one without either holding
// the other. Runs on the host: which span is next depends on all that were kept before.
//
// A candidate [s, e] crosses a kept span that starts in (s, e] and ends behind e, or ends in [s, e) and starts before
// s. So two arrays decide it in e - s steps each: the largest end of the kept spans that start at a piece, and the
// smallest start of those that end there. The candidates form a heap, from which no more are taken than it needs to
// keep `keep`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace spanbert {

struct SpanPruningArgs {
  const int64_t *starts, *ends;  // [candidates], both inclusive
  const double* scores;          // [candidates]
  int64_t candidates, length;    // 0 <= start <= end < length
  int64_t keep;
  int64_t* kept;  // [keep] places of the kept candidates, ascending by (start, end, place)
};

// How many were kept, or -1 - the place of the first candidate outside the document.
inline int64_t prune_spans(const SpanPruningArgs& args) {
  for (int64_t i = 0; i < args.candidates; ++i) {
    if (args.starts[i] < 0 || args.ends[i] < args.starts[i] || args.ends[i] >= args.length) return -1 - i;
  }
  // Of two equal scores the earlier candidate is better. A score that is not a number is the worst: it must not break
  // the order.
  const auto is_worse = [&args](int64_t a, int64_t b) {
    const double x = args.scores[a], y = args.scores[b];
    if (x < y || y < x) return x < y;
    const bool x_is_nan = x != x, y_is_nan = y != y;
    return x_is_nan != y_is_nan ? x_is_nan : a > b;
  };
  std::vector<int64_t> heap(size_t(args.candidates));
  for (int64_t i = 0; i < args.candidates; ++i) heap[size_t(i)] = i;
  std::make_heap(heap.begin(), heap.end(), is_worse);
  std::vector<int64_t> last_end(size_t(args.length), -1), first_start(size_t(args.length), args.length);
  int64_t count = 0;
  while (count < args.keep && !heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), is_worse);
    const int64_t place = heap.back(), start = args.starts[place], end = args.ends[place];
    heap.pop_back();
    bool crosses = false;
    for (int64_t t = start + 1; t <= end && !crosses; ++t) crosses = last_end[size_t(t)] > end;
    for (int64_t t = start; t < end && !crosses; ++t) crosses = first_start[size_t(t)] < start;
    if (crosses) continue;
    args.kept[count++] = place;
    last_end[size_t(start)] = std::max(last_end[size_t(start)], end);
    first_start[size_t(end)] = std::min(first_start[size_t(end)], start);
  }
  std::sort(args.kept, args.kept + count, [&args](int64_t a, int64_t b) {
    if (args.starts[a] != args.starts[b]) return args.starts[a] < args.starts[b];
    return args.ends[a] != args.ends[b] ? args.ends[a] < args.ends[b] : a < b;
  });
  return count;
}

}  // namespace spanbert
