// Bias gradients: sums over the columns of the logits' gradient, head by head. A group of kRowLanes rows of
// kColumnLanes threads adds one chunk of rows; what the chunks gave is added in order afterwards.
#pragma once

#include "common/portable.h"
#include "ops.h"
#include "rows/softmax_pieces.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

// A thread's columns: as many as 16 bytes hold, or one where rows do not begin at multiples of 16 bytes.
template <class T, bool kWide>
struct Columns {
  static constexpr int kCount = 16 / int(sizeof(T));
  Piece piece;
  SPANBERT_HD void read(const T* from) { piece = read_vector<Cache::kOnce>(from); }
  SPANBERT_HD void add_to(working_t<T> (&sums)[kCount]) const {
    working_t<T> values[kCount];
    unpack(piece, values, T());
    SPANBERT_UNROLL
    for (int i = 0; i < kCount; ++i) sums[i] += values[i];
  }
};
template <class T>
struct Columns<T, false> {
  static constexpr int kCount = 1;
  T value;
  SPANBERT_HD void read(const T* from) { value = *from; }
  SPANBERT_HD void add_to(working_t<T> (&sums)[1]) const { sums[0] += load(value); }
};

template <class T, bool kWide, int kColumnLanes, int kRowLanes>
struct ColumnSums {
  using W = working_t<T>;
  static constexpr int kCount = Columns<T, kWide>::kCount, kColumns = kColumnLanes * kCount;
  static constexpr int kRows = kRowLanes * int(kRowsPerSum);
  static constexpr int kInFlight = 8;  // rows a thread loads before it adds them
  static_assert(kRowsPerSum % kInFlight == 0, "a lane adds whole batches of rows");

  int heads[kRows];                            // of the chunk's rows; -1: nothing to add
  W sums[kRowLanes][2][kCount][kColumnLanes];  // neighbouring threads write neighbouring words
};

// `shared` is the group's own. A lane adds every kRowLanes-th row of the chunk, kRowsPerSum of them, since one long
// running sum in fp32 would lose the digits of its late terms; then the lanes are added in order. Two heads are summed
// in one pass; a row is read in the pass of its head and an ignored row not at all.
template <class T, bool kWide, int kColumnLanes, int kRowLanes, class Group>
SPANBERT_HD void bias_gradient_block(const Group& g, const CrossEntropyArgs& args, int64_t chunk, int64_t column_block,
                                     ColumnSums<T, kWide, kColumnLanes, kRowLanes>& shared) {
  using W = working_t<T>;
  using Shared = ColumnSums<T, kWide, kColumnLanes, kRowLanes>;
  constexpr int kCount = Shared::kCount, kColumns = Shared::kColumns, kInFlight = Shared::kInFlight;
  const int64_t first_row = chunk * Shared::kRows, first_column = column_block * kColumns;
  for (int i = g.rank(); i < Shared::kRows; i += g.size()) {
    const int64_t row = first_row + i;
    const bool used = row < args.rows && args.targets[row] != kIgnore;
    shared.heads[i] = used ? (args.head ? int(args.head[row]) : 0) : -1;
  }
  g.sync();
  const int lane = g.rank() % kColumnLanes, row_lane = g.rank() / kColumnLanes;
  const int64_t column = first_column + lane * kCount;
  W* out = static_cast<W*>(args.partials) + chunk * args.heads * args.vocab_size;
  for (int head = 0; head < int(args.heads); head += 2) {
    // One sum in registers, of the head whose row came last; it moves to `shared` when the other head's turn comes.
    W sums[kCount] = {};
    int current = 0;
    const auto put = [&] {
      SPANBERT_UNROLL
      for (int i = 0; i < kCount; ++i) {
        shared.sums[row_lane][current][i][lane] += sums[i];
        sums[i] = 0;
      }
    };
    SPANBERT_UNROLL
    for (int i = 0; i < kCount; ++i) shared.sums[row_lane][0][i][lane] = shared.sums[row_lane][1][i][lane] = 0;
    const T* grad = static_cast<const T*>(args.logits) + (first_row + row_lane) * args.stride + column;
    for (int base = row_lane; base < Shared::kRows && column < args.vocab_size; base += kRowLanes * kInFlight) {
      Columns<T, kWide> rows[kInFlight];
      SPANBERT_UNROLL
      for (int j = 0; j < kInFlight; ++j) {
        const int own = shared.heads[base + j * kRowLanes] - head;
        if (own == 0 || own == 1) rows[j].read(grad);
        grad = in_registers(grad + kRowLanes * args.stride);
      }
      SPANBERT_UNROLL
      for (int j = 0; j < kInFlight; ++j) {
        const int own = shared.heads[base + j * kRowLanes] - head;
        if (own != 0 && own != 1) continue;
        if (own != current) {
          put();
          current = own;
        }
        rows[j].add_to(sums);
      }
    }
    put();
    g.sync();
    for (int i = g.rank(); i < 2 * kColumns; i += g.size()) {
      const int own = i / kColumns, place = i % kColumns;
      if (head + own >= int(args.heads) || first_column + place >= args.vocab_size) continue;
      const int column_lane = place / kCount, value = place % kCount;
      W total = shared.sums[0][own][value][column_lane];
      for (int other = 1; other < kRowLanes; ++other) total += shared.sums[other][own][value][column_lane];
      out[(head + own) * args.vocab_size + first_column + place] = total;
    }
    g.sync();
  }
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
