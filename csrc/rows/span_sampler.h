// Masking of one sequence (paper sections 3.1 and 6.1). Positions are bits: `eligible` pieces, word `starts`, and
// `free` pieces, which are eligible and not yet masked. Drawing an anchor and drawing again while it is masked equals
// one uniform draw among the free pieces, so every draw takes bounded time at any mask ratio. So does a draw among the
// candidate spans that still have a free piece: each is a bit of `open` at its first piece.
#pragma once

#include "common/philox.h"
#include "common/portable.h"
#include "ops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

struct RowCounts {
  int64_t targets, spans, bad_place;  // bad_place: first id outside the vocabulary, or -1
};

// The bitmaps of one sequence, ceil(n / 64) words each; `masked` shares storage with `free`. The last two exist where
// there are candidates only: a candidate span reaches from its bit of `open` to the next of `borders`, which holds the
// first piece of every candidate and all pieces outside; position 0 is always one.
struct RowBits {
  uint64_t *eligible, *starts, *free, *open, *borders;
  int64_t words;
};

// Rows start at words of their own: starts ascend by at least the lengths, so (start >> 6) + row never overlaps.
SPANBERT_HD RowBits row_bits(const SpanMaskArgs& args, int64_t row, int64_t n) {
  const int64_t words = (args.total >> 6) + args.sequences + 1;
  uint64_t* first = args.bitmaps + (args.starts[row] >> 6) + row;
  return {first, first + words, first + 2 * words, first + 3 * words, first + 4 * words, (n + 63) >> 6};
}

SPANBERT_HD bool test_bit(const uint64_t* bits, int64_t i) { return (bits[i >> 6] >> (i & 63)) & 1; }

// Position of the count-th (1-based) set bit at or behind `from`, or `limit` if there is none before it.
SPANBERT_HD int64_t nth_bit_from(const uint64_t* bits, int64_t from, int64_t count, int64_t limit) {
  if (from >= limit) return limit;
  int64_t word = from >> 6;
  uint64_t w = bits[word] & ~bits_below(int(from & 63));
  for (;;) {
    const int here = popcount(w);
    if (count <= here) {
      const int64_t found = word * 64 + select_bit(w, int(count) - 1);
      return found < limit ? found : limit;
    }
    count -= here;
    if (++word * 64 >= limit) return limit;
    w = bits[word];
  }
}

// Position of the first clear bit at or behind `from`, or `limit`.
SPANBERT_HD int64_t first_clear_from(const uint64_t* bits, int64_t from, int64_t limit) {
  if (from >= limit) return limit;
  int64_t word = from >> 6;
  uint64_t w = ~bits[word] & ~bits_below(int(from & 63));
  while (w == 0) {
    if (++word * 64 >= limit) return limit;
    w = ~bits[word];
  }
  const int64_t found = word * 64 + lowest_bit(w);
  return found < limit ? found : limit;
}

// Position of the last set bit at or before `from`; there must be one.
SPANBERT_HD int64_t last_bit_to(const uint64_t* bits, int64_t from) {
  int64_t word = from >> 6;
  uint64_t w = bits[word] & (~uint64_t(0) >> (63 - (from & 63)));
  while (w == 0) w = bits[--word];
  return word * 64 + highest_bit(w);
}

// Number of set bits of [first, end).
SPANBERT_HD int64_t count_bits(const uint64_t* bits, int64_t first, int64_t end) {
  int64_t count = 0;
  for (int64_t word = first >> 6; word * 64 < end; ++word) {
    uint64_t w = bits[word];
    if (word == first >> 6) w &= ~bits_below(int(first & 63));
    if (end - word * 64 < 64) w &= bits_below(int(end - word * 64));
    count += popcount(w);
  }
  return count;
}

// Bits that begin a run of set bits, for one word; `before` is the word to the left (0 for the first).
SPANBERT_HD uint64_t run_starts(uint64_t w, uint64_t before) { return w & ~((w << 1) | (before >> 63)); }

// Position of the bit of rank r over a whole bitmap of so many words, found by the group together; -1 if the bitmap has
// no such bit, which takes arguments that no caller should make: a count that is not the bitmap's must not read on.
template <class Group>
SPANBERT_HD int64_t select_in(const Group& g, const uint64_t* bits, int64_t words, int64_t r) {
  if constexpr (Group::kSize == 1) {
    for (int64_t word = 0; word < words; ++word) {
      const int here = popcount(bits[word]);
      if (r < here) return word * 64 + select_bit(bits[word], int(r));
      r -= here;
    }
    return -1;
  } else {
    for (int64_t base = 0; base < words; base += g.size()) {
      const int64_t word = base + g.rank();
      const uint64_t w = word < words ? bits[word] : 0;
      int total = 0;
      const int here = popcount(w), before = g.exclusive_sum(here, total);
      if (r < total) {
        const bool mine = r >= before && r < before + here;
        return g.max(mine ? word * 64 + select_bit(w, int(r) - before) : int64_t(-1));
      }
      r -= total;
    }
    return -1;
  }
}

// Fills eligible, starts and free; returns the number of eligible pieces and the first bad place.
template <class Group, class Token>
SPANBERT_HD RowCounts mark_pieces(const Group& g, const Token* tokens, int64_t n, const SpanMaskArgs& args,
                                  const RowBits& bits) {
  int64_t bad = -1;
  g.pack_flags(
      n,
      [&](int64_t i) -> uint8_t {
        const int64_t id = int64_t(tokens[i]);
        if (uint64_t(id) < uint64_t(args.vocab_size)) return args.vocabulary[id];
        if (bad < 0) bad = i;
        return kSpecial;
      },
      bits.starts, bits.free);  // free holds the special bits until eligible is known
  g.sync();
  int64_t eligible = 0;
  for (int64_t word = g.rank(); word < bits.words; word += g.size()) {
    const int64_t used = n - word * 64;
    bits.eligible[word] = ~bits.free[word] & (used < 64 ? bits_below(int(used)) : ~uint64_t(0));
    eligible += popcount(bits.eligible[word]);
  }
  g.sync();
  for (int64_t word = g.rank(); word < bits.words; word += g.size()) {
    const uint64_t here = bits.eligible[word];
    bits.starts[word] = (bits.starts[word] & here) | run_starts(here, word > 0 ? bits.eligible[word - 1] : 0);
    bits.free[word] = here;
  }
  g.sync();
  return {g.sum(eligible), 0, bad};
}

// Fills open and borders from the marks of a sequence's pieces; returns the number of candidate spans. Special tokens
// belong to none; a piece that continues a span whose beginning is not there begins one.
template <class Group>
SPANBERT_HD int64_t mark_candidates(const Group& g, const uint8_t* marks, int64_t n, const RowBits& bits) {
  static_assert(kCandidateBegins == 1 && kCandidateContinues == 2, "the bits that pack_flags takes apart");
  g.pack_flags(n, [&](int64_t i) { return marks[i]; }, bits.open, bits.borders);
  g.sync();
  uint64_t* inside = bits.borders;  // until the starts are known
  for (int64_t word = g.rank(); word < bits.words; word += g.size()) {
    inside[word] = (bits.open[word] | inside[word]) & bits.eligible[word];
  }
  g.sync();
  int64_t candidates = 0;
  for (int64_t word = g.rank(); word < bits.words; word += g.size()) {
    const uint64_t here = inside[word];
    bits.open[word] = (bits.open[word] & here) | run_starts(here, word > 0 ? inside[word - 1] : 0);
    candidates += popcount(bits.open[word]);
  }
  g.sync();
  for (int64_t word = g.rank(); word < bits.words; word += g.size()) {
    bits.borders[word] = bits.open[word] | ~inside[word];
  }
  g.sync();
  return g.sum(candidates);
}

// Closes the candidate spans that lost their last free piece when [first, end) was masked; returns how many.
template <class Group>
SPANBERT_HD int64_t close_candidates(const Group& g, const RowBits& bits, int64_t first, int64_t end, int64_t n) {
  int64_t closed = 0;
  for (int64_t begin = last_bit_to(bits.borders, first); begin < end;) {
    const int64_t stop = nth_bit_from(bits.borders, begin + 1, 1, n);
    const bool spent = test_bit(bits.open, begin) && nth_bit_from(bits.free, begin, 1, stop) == stop;
    if (spent) {
      ++closed;
      g.sync();  // all have read the word
      if (g.rank() == 0) bits.open[begin >> 6] &= ~(uint64_t(1) << (begin & 63));
      g.sync();
    }
    begin = nth_bit_from(bits.open, begin + 1, 1, end);
  }
  return closed;
}

// Pieces [first, end).
struct Pieces {
  int64_t first, end;
};

// So many words from the start of the anchor's on, ended by a special token.
SPANBERT_HD Pieces word_span(const RowBits& bits, int64_t anchor, int64_t words, int64_t n) {
  const int64_t first = last_bit_to(bits.starts, anchor);
  const int64_t limit = first_clear_from(bits.eligible, first, n);
  return {first, nth_bit_from(bits.starts, first + 1, words, limit)};
}

// Rank of a 32-bit word among `count` places.
SPANBERT_HD int64_t rank_among(uint32_t word, int64_t count) {
  return int64_t((uint64_t(word) * uint64_t(count)) >> 32);
}

// Samples the mask of one sequence; afterwards its bits.free holds the masked pieces. Returns targets and merged spans.
template <class Group, class Token>
SPANBERT_HD RowCounts sample_row(const Group& g, const SpanMaskArgs& args, int64_t row, const SequenceDraws& draws) {
  const SamplerSettings& s = args.settings;
  const int64_t start = args.starts[row], n = args.ends[row] - start;
  const RowBits bits = row_bits(args, row, n);
  const RowCounts counts = mark_pieces(g, static_cast<const Token*>(args.tokens) + start, n, args, bits);
  int64_t free = counts.targets, open = args.candidates ? mark_candidates(g, args.candidates + start, n, bits) : 0;
  const int64_t budget = (free * s.ratio_numerator + s.ratio_denominator - 1) / s.ratio_denominator;
  int64_t left = budget;
  Words block{};
  for (uint32_t number = 0; left > 0; ++number) {
    Words draw;
    if constexpr (Group::kSize == 1) {
      draw = draws.span(number);
    } else {
      // Draws do not depend on what was masked, so every thread makes one and the group takes them in turn.
      const int turn = int(number % Group::kSize);
      if (turn == 0) block = draws.span(number + uint32_t(g.rank()));
      draw = {g.broadcast(block.first, turn), g.broadcast(block.second, turn)};
    }
    Pieces span;
    const bool takes_candidate = open > 0 && draw.first < s.candidate_threshold;
    const int64_t anchor = takes_candidate ? select_in(g, bits.open, bits.words, rank_among(draw.second, open))
                                           : select_in(g, bits.free, bits.words, rank_among(draw.second, free));
    if (anchor < 0) break;
    if (takes_candidate) {
      span = {anchor, nth_bit_from(bits.borders, anchor + 1, 1, n)};
    } else {
      int64_t words = s.min_words;
      for (int i = 0; i + 1 < s.num_lengths; ++i) words += draw.first >= s.length_thresholds[i];
      span = word_span(bits, anchor, words, n);
    }
    const int64_t taken = nth_bit_from(bits.free, span.first, left, span.end);  // the piece that ends the budget
    if (taken < span.end) span.end = taken + 1;
    const int64_t fresh = count_bits(bits.free, span.first, span.end);
    g.sync();
    for (int64_t word = (span.first >> 6) + g.rank(); word * 64 < span.end; word += g.size()) {
      uint64_t covered = ~uint64_t(0);
      if (word == span.first >> 6) covered &= ~bits_below(int(span.first & 63));
      if (span.end - word * 64 < 64) covered &= bits_below(int(span.end - word * 64));
      bits.free[word] &= ~covered;
    }
    g.sync();
    left -= fresh;
    free -= fresh;
    if (open > 0 && left > 0) open -= close_candidates(g, bits, span.first, span.end, n);
  }
  for (int64_t word = g.rank(); word < bits.words; word += g.size())
    bits.free[word] = bits.eligible[word] & ~bits.free[word];
  g.sync();
  int64_t spans = 0;
  for (int64_t word = g.rank(); word < bits.words; word += g.size()) {
    spans += popcount(run_starts(bits.free[word], word > 0 ? bits.free[word - 1] : 0));
  }
  return {budget - left, g.sum(spans), counts.bad_place};
}

// One merged span of a sequence: pieces [first, end), its number in the batch, and its replacement draw.
struct Span {
  int64_t first, end, number;
  bool has_sbo;
  Words draw;
};

// External boundaries are the neighbours, if both are eligible. Internal ones are the span's own ends, but for a span
// of one token that begins its sequence: the boundaries of the batch's first one, (0, 0), would read as none.
SPANBERT_HD Span describe_span(const SpanMaskArgs& args, const RowBits& bits, Words draw, int64_t n, int64_t first,
                               int64_t end, int64_t number) {
  const SamplerSettings& s = args.settings;
  const bool has_ends =
      s.internal_endpoints ? end > 1
                           : first > 0 && test_bit(bits.eligible, first - 1) && end < n && test_bit(bits.eligible, end);
  return {first, end, number, has_ends && s.max_span_targets > 0 && number < args.span_capacity, draw};
}

SPANBERT_HD void emit_span(const SpanMaskArgs& args, int64_t start, const Span& span) {
  if (span.number >= args.span_capacity) return;
  const int64_t outside = args.settings.internal_endpoints ? 0 : 1;
  args.span_left[span.number] = span.has_sbo ? start + span.first - outside : 0;
  args.span_right[span.number] = span.has_sbo ? start + span.end - 1 + outside : 0;
}

// Writes target slot k, which selects `place` of `span`, and the piece that replaces it.
template <class Token>
SPANBERT_HD void emit_target(const SpanMaskArgs& args, const SequenceDraws& draws, int64_t start, const Span& span,
                             int64_t place, int64_t k) {
  const SamplerSettings& s = args.settings;
  const int64_t flat = start + place, offset = place - span.first;
  const int64_t original = int64_t(static_cast<const Token*>(args.tokens)[flat]);
  const Words draw = s.per_piece && offset > 0 ? draws.position(place) : span.draw;
  int64_t piece = original;
  if (draw.first < s.mask_threshold) {
    piece = s.mask_id;
  } else if (draw.first < s.random_threshold) {
    const uint32_t word = s.per_piece || offset == 0 ? draw.second : draws.position(place).second;
    piece = args.random_tokens[(uint64_t(word) * uint64_t(args.random_count)) >> 32];
  }
  static_cast<Token*>(args.input_ids)[flat] = Token(piece);
  args.labels[flat] = original;
  args.target_positions[k] = flat;
  args.target_ids[k] = original;
  args.target_spans[k] = span.number < args.span_capacity ? span.number : args.span_capacity - 1;
  args.target_offsets[k] = offset;
  args.sbo_ids[k] = span.has_sbo && offset < s.max_span_targets ? original : kIgnore;
}

// First piece of the run of set bits that holds `place`.
SPANBERT_HD int64_t run_first(const uint64_t* bits, int64_t place) {
  int64_t word = place >> 6;
  uint64_t clear = ~bits[word] & bits_below(int(place & 63));
  while (clear == 0) {
    if (word == 0) return 0;
    clear = ~bits[--word];
  }
  return word * 64 + highest_bit(clear) + 1;
}

// Writes the targets and spans of one sequence behind those of the sequences before it. One thread walks the spans; a
// larger group gives each thread every size-th target, whose span it finds in the bitmap.
template <class Group, class Token>
SPANBERT_HD void emit_row(const Group& g, const SpanMaskArgs& args, int64_t row, const SequenceDraws& draws) {
  const int64_t start = args.starts[row], n = args.ends[row] - start;
  const RowBits bits = row_bits(args, row, n);
  const int64_t* targets = args.row_counts;
  const int64_t* spans = args.row_counts + args.sequences + 1;
  if constexpr (Group::kSize == 1) {
    int64_t target = targets[row], number = spans[row];
    for (int64_t first = nth_bit_from(bits.free, 0, 1, n); first < n;) {
      const int64_t end = first_clear_from(bits.free, first, n);
      const Span span = describe_span(args, bits, draws.position(first), n, first, end, number++);
      emit_span(args, start, span);
      for (int64_t place = first; place < end; ++place) {
        emit_target<Token>(args, draws, start, span, place, target++);
      }
      first = nth_bit_from(bits.free, end, 1, n);
    }
  } else {
    // A thread's targets ascend, so it walks the words once and carries the counts of the words before.
    int64_t word = 0, bits_before = 0, runs_before = 0;
    for (int64_t rank = g.rank(); rank < targets[row + 1] - targets[row]; rank += g.size()) {
      uint64_t w = bits.free[word];
      while (rank >= bits_before + popcount(w)) {
        bits_before += popcount(w);
        runs_before += popcount(run_starts(w, word > 0 ? bits.free[word - 1] : 0));
        w = bits.free[++word];
      }
      const int bit = select_bit(w, int(rank - bits_before));
      const uint64_t up_to = ~uint64_t(0) >> (63 - bit);
      const int64_t runs = runs_before + popcount(run_starts(w, word > 0 ? bits.free[word - 1] : 0) & up_to);
      const int64_t place = word * 64 + bit;
      const int64_t first = run_first(bits.free, place), end = first_clear_from(bits.free, place, n);
      const Span span = describe_span(args, bits, draws.position(first), n, first, end, spans[row] + runs - 1);
      if (place == first) emit_span(args, start, span);
      emit_target<Token>(args, draws, start, span, place, targets[row] + rank);
    }
  }
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
