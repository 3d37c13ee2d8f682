// How a group holds the columns of a row. A row formula is written once, over "parts" of a row that behave like a
// number; what a part is depends on the group:
//   StridedColumns  a part is one column, rows of working values stand in scratch memory: the CPU, whose compiler
//                   vectorises the loop, and any size or alignment on a GPU
//   PacketColumns   a part is eight neighbouring columns, read and written 16 bytes at a time and kept in registers:
//                   sizes that are multiples of 8, at most kPackets * 8 * threads
#pragma once

#include "common/dropout_draws.h"
#include "common/vectors.h"
#include "ops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

template <class W>
struct Pair {
  W first, second;
};

// Two sums at once. A block overloads this to meet once for both.
template <class Group, class W>
SPANBERT_HD Pair<W> sum_pair(const Group& g, W first, W second) {
  return {g.sum(first), g.sum(second)};
}

// Where a part stands: its first column, and its number among those of this thread.
struct Spot {
  int64_t h;
  int part;
};

template <class Group, class W>
struct StridedColumns {
  using Part = W;
  const Group& g;
  int64_t size;
  W* values;        // [size], scratch of this group alone
  uint16_t* drawn;  // [draw_columns(size)], or null when nothing is dropped

  template <class Visit>
  SPANBERT_HD void each(const Visit& visit) const {
    SPANBERT_SIMD
    for (int64_t h = g.rank(); h < size; h += g.size()) visit(Spot{h, 0});
  }
  template <class Term>
  SPANBERT_HD W sum(const Term& term) const {
    W total = 0;
    SPANBERT_SIMD_SUM(total)
    for (int64_t h = g.rank(); h < size; h += g.size()) total += term(Spot{h, 0});
    return g.sum(total);
  }
  template <class Terms>
  SPANBERT_HD Pair<W> sums(const Terms& terms) const {
    W first = 0, second = 0;
    SPANBERT_SIMD_SUM(first, second)
    for (int64_t h = g.rank(); h < size; h += g.size()) {
      const Pair<W> term = terms(Spot{h, 0});
      first += term.first;
      second += term.second;
    }
    return sum_pair(g, first, second);
  }

  template <class T>
  SPANBERT_HD W read(const T* row, Spot at) const {
    return load(row[at.h]);
  }
  template <class T>
  SPANBERT_HD void write(T* row, Spot at, W value) const {
    row[at.h] = store<T>(value);
  }
  SPANBERT_HD W& value(Spot at) const { return values[at.h]; }

  SPANBERT_HD void draw(const DropoutDraws& draws, int64_t row, uint32_t) const {
    draw_row(g, draws, row, size, drawn);
  }
  // The column's dropout factor: 0 or `scale`, or 1 everywhere unless `on`.
  SPANBERT_HD W kept(Spot at, uint32_t threshold, W scale, bool on) const {
    return on ? (uint32_t(drawn[at.h]) < threshold ? W(0) : scale) : W(1);
  }

  // Column sums over the rows of a chunk, [2, size], each thread its own columns.
  SPANBERT_HD void start_sums(W* out) const {
    each([&](Spot at) { out[at.h] = out[size + at.h] = 0; });
  }
  SPANBERT_HD void add(W* out, Spot at, W first, W second) const {
    out[at.h] += first;
    out[size + at.h] += second;
  }
};

// Eight numbers that behave like one.
template <class W>
struct Eight {
  W v[8];
};

#define SPANBERT_EIGHT(op)                                          \
  template <class W>                                                \
  SPANBERT_HD Eight<W> operator op(Eight<W> a, const Eight<W>& b) { \
    for (int j = 0; j < 8; ++j) a.v[j] = a.v[j] op b.v[j];          \
    return a;                                                       \
  }                                                                 \
  template <class W>                                                \
  SPANBERT_HD Eight<W> operator op(Eight<W> a, W b) {               \
    for (int j = 0; j < 8; ++j) a.v[j] = a.v[j] op b;               \
    return a;                                                       \
  }
SPANBERT_EIGHT(+)
SPANBERT_EIGHT(-)
SPANBERT_EIGHT(*)
#undef SPANBERT_EIGHT

template <class W>
SPANBERT_HD W total(const Eight<W>& a) {
  return ((a.v[0] + a.v[1]) + (a.v[2] + a.v[3])) + ((a.v[4] + a.v[5]) + (a.v[6] + a.v[7]));
}

// Eight scalars from and to a 16-byte aligned place.
template <class T>
constexpr int kEightVectors = int(8 * sizeof(T)) / kVectorBytes;

template <class T>
SPANBERT_HD Eight<working_t<T>> read_eight(const T* from) {
  Vector vectors[kEightVectors<T>];
  for (int i = 0; i < kEightVectors<T>; ++i) vectors[i] = read_vector(from + i * kVectorWidth<T>);
  T scalars[8];
  memcpy(scalars, vectors, sizeof(scalars));
  Eight<working_t<T>> out;
  for (int j = 0; j < 8; ++j) out.v[j] = load(scalars[j]);
  return out;
}

template <class T>
SPANBERT_HD void write_eight(T* to, const Eight<working_t<T>>& values) {
  T scalars[8];
  for (int j = 0; j < 8; ++j) scalars[j] = store<T>(values.v[j]);
  Vector vectors[kEightVectors<T>];
  memcpy(vectors, scalars, sizeof(scalars));
  for (int i = 0; i < kEightVectors<T>; ++i) write_vector(to + i * kVectorWidth<T>, vectors[i]);
}

// Column sums of a chunk in registers.
template <class W, int kPackets>
struct PacketSums {
  Eight<W> first[kPackets], second[kPackets];
};

template <class Group, class W, int kPackets>
struct PacketColumns {
  using Part = Eight<W>;
  using Sums = PacketSums<W, kPackets>;
  static constexpr int64_t kMost = int64_t(kPackets) * 8 * Group::kSize;
  const Group& g;
  int64_t size;
  Part values[kPackets];
  uint32_t drops;  // one bit a column
  static_assert(kPackets <= 4, "a thread's dropped columns are the bits of one word");

  SPANBERT_HD PacketColumns(const Group& group, int64_t columns) : g(group), size(columns) {}

  template <class Visit>
  SPANBERT_HD void each(const Visit& visit) const {
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int part = 0; part < kPackets; ++part) {
      const int64_t h = (int64_t(part) * g.size() + g.rank()) * 8;
      if (h < size) visit(Spot{h, part});
    }
  }
  template <class Term>
  SPANBERT_HD W sum(const Term& term) const {
    W all = 0;
    each([&](Spot at) { all += total(term(at)); });
    return g.sum(all);
  }
  template <class Terms>
  SPANBERT_HD Pair<W> sums(const Terms& terms) const {
    W first = 0, second = 0;
    each([&](Spot at) {
      const Pair<Part> term = terms(at);
      first += total(term.first);
      second += total(term.second);
    });
    return sum_pair(g, first, second);
  }

  template <class T>
  SPANBERT_HD Part read(const T* row, Spot at) const {
    return read_eight(row + at.h);
  }
  template <class T>
  SPANBERT_HD void write(T* row, Spot at, const Part& value) const {
    write_eight(row + at.h, value);
  }
  SPANBERT_HD Part& value(Spot at) { return values[at.part]; }

  SPANBERT_HD void draw(const DropoutDraws& draws, int64_t row, uint32_t threshold) {
    drops = 0;
#ifdef __CUDACC__
#pragma unroll 1  // the generator is most of a kernel's code, and other warps hide its latency
#endif
    for (int part = 0; part < kPackets; ++part) {
      const FourWords words = draws.block(row, int64_t(part) * g.size() + g.rank());
      for (int j = 0; j < kDrawColumns; ++j) drops |= uint32_t(draw_of(words, j) < threshold) << (8 * part + j);
    }
  }
  SPANBERT_HD Part kept(Spot at, uint32_t, W scale, bool on) const {
    const uint32_t bits = on ? drops >> (8 * at.part) : 0;
    const W factor = on ? scale : W(1);
    Part out;
    for (int j = 0; j < 8; ++j) out.v[j] = (bits >> j) & 1u ? W(0) : factor;
    return out;
  }

  SPANBERT_HD void start_sums(Sums& sums) const {
    for (int part = 0; part < kPackets; ++part) sums.first[part] = sums.second[part] = Part{};
  }
  SPANBERT_HD void add(Sums& sums, Spot at, const Part& first, const Part& second) const {
    sums.first[at.part] = sums.first[at.part] + first;
    sums.second[at.part] = sums.second[at.part] + second;
  }
};

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
