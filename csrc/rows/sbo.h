// One row of LN(GELU(x)), forward and backward: what surrounds both matrix products of the span boundary objective
// (paper section 3.2) and the MLM transform. With g = GELU(x) and n = (g - mean) * rstd:
//   y = n * weight + bias
//   grad_x = GELU'(x) * rstd * (d - avg(d) - n * avg(d * n)),  d = grad_y * weight
// x is recomputed in the backward pass; only mean and rstd of a row are kept. How a group's threads share the columns
// of a row is said in columns.h.
#pragma once

#include <cassert>

#include "common/portable.h"
#include "ops.h"
#include "rows/columns.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

// Spans without boundary tokens and unused slots hold (0, 0), and no span has its right one at token 0.
SPANBERT_HD bool has_boundaries(const BoundaryArgs& args, int64_t s) { return args.span_right[s] > 0; }

template <class W>
struct Moments {
  W mean, rstd;
};

// x(slot) gives a slot's values of the row, y(slot, values) takes the results. `values` is an array of the thread's.
template <class Columns, class W, class X, class Y>
SPANBERT_HD Moments<W> gelu_layer_norm_row(const Columns& c, W eps, const W* weight, const W* bias, W* values,
                                           const X& x, const Y& y) {
  constexpr int kPack = Columns::kPack;
  const W count = W(c.size);
  W sum = 0;
  SPANBERT_SLOTS_SUM(sum)
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (!c.owns(i)) continue;
    const Pack<W, kPack> in = x(i);
    SPANBERT_EACH
    for (int j = 0; j < kPack; ++j) {
      const W value = gelu(in.at[j]).value;
      values[c.place(i, j)] = value;
      sum += value;
    }
  }
  const W mean = c.g.sum(sum) / count;
  W square = 0;
  SPANBERT_SLOTS_SUM(square)
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (!c.owns(i)) continue;
    SPANBERT_EACH
    for (int j = 0; j < kPack; ++j) {
      const W centred = values[c.place(i, j)] - mean;
      square += centred * centred;
    }
  }
  const W rstd = W(1) / sqrt(c.g.sum(square) / count + eps);
  SPANBERT_SLOTS
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (!c.owns(i)) continue;
    const Pack<W, kPack> gain = load_pack<kPack>(weight + c.column(i)), shift = load_pack<kPack>(bias + c.column(i));
    Pack<W, kPack> out;
    SPANBERT_EACH
    for (int j = 0; j < kPack; ++j) out.at[j] = (values[c.place(i, j)] - mean) * rstd * gain.at[j] + shift.at[j];
    y(i, out);
  }
  return {mean, rstd};
}

// Adds the row's share to grad_weight and grad_bias and hands grad_x to dx(slot, values). normed, slope and scaled are
// arrays of the thread's, as are the sums. Calls of one group take turns 0 and 1, for the reduction's sake.
template <class Columns, class W, class X, class DY, class DX>
SPANBERT_HD void gelu_layer_norm_row_backward(const Columns& c, int turn, Moments<W> m, const W* weight, W* grad_weight,
                                              W* grad_bias, W* normed, W* slope, W* scaled, const X& x, const DY& dy,
                                              const DX& dx) {
  constexpr int kPack = Columns::kPack;
  W sum = 0, product = 0;
  SPANBERT_SLOTS_SUM(sum, product)
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (!c.owns(i)) continue;
    const Pack<W, kPack> in = x(i), grad = dy(i), gain = load_pack<kPack>(weight + c.column(i));
    SPANBERT_EACH
    for (int j = 0; j < kPack; ++j) {
      const int64_t at = c.place(i, j);
      const Gelu<W> value = gelu(in.at[j]);
      const W n = (value.value - m.mean) * m.rstd, d = grad.at[j] * gain.at[j];
      normed[at] = n;
      slope[at] = value.slope;
      scaled[at] = d;
      grad_weight[at] += grad.at[j] * n;
      grad_bias[at] += grad.at[j];
      sum += d;
      product += d * n;
    }
  }
  c.g.sum_pair(sum, product, turn);
  const W average = sum / W(c.size), projection = product / W(c.size);
  SPANBERT_SLOTS
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (!c.owns(i)) continue;
    Pack<W, kPack> out;
    SPANBERT_EACH
    for (int j = 0; j < kPack; ++j) {
      const int64_t at = c.place(i, j);
      out.at[j] = slope[at] * m.rstd * (scaled[at] - average - normed[at] * projection);
    }
    dx(i, out);
  }
}

// The rest applies these to the arguments of an operation; each back end adds only how rows or chunks are spread.

// Values of both memory rows, slot by slot.
template <class T, class Columns>
SPANBERT_HD Pack<working_t<T>, Columns::kPack> sum_of_rows(const Columns& c, int64_t slot, const T* a, const T* b) {
  constexpr int kPack = Columns::kPack;
  Pack<working_t<T>, kPack> left = load_pack<kPack>(a + c.column(slot));
  const Pack<working_t<T>, kPack> right = load_pack<kPack>(b + c.column(slot));
  SPANBERT_EACH
  for (int j = 0; j < kPack; ++j) left.at[j] += right.at[j];
  return left;
}

template <class T, class Columns>
SPANBERT_HD void zero_row(const Columns& c, T* row) {
  SPANBERT_SLOTS
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (c.owns(i)) store_pack(row + c.column(i), Pack<working_t<T>, Columns::kPack>{});
  }
}

template <class Columns, class W>
SPANBERT_HD void copy_row(const Columns& c, const W* from, W* to) {
  SPANBERT_SLOTS
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (c.owns(i)) store_pack(to + c.column(i), load_pack<Columns::kPack>(from + c.column(i)));
  }
}

template <class Columns, class W>
SPANBERT_HD void zero_values(const Columns& c, W* array) {
  SPANBERT_SLOTS
  for (int64_t i = 0; i < c.slots(); ++i) {
    SPANBERT_EACH
    for (int j = 0; j < Columns::kPack; ++j) {
      if (c.owns(i)) array[c.place(i, j)] = 0;
    }
  }
}

template <class T, class Columns>
SPANBERT_HD void store_values(const Columns& c, const working_t<T>* array, T* row) {
  SPANBERT_SLOTS
  for (int64_t i = 0; i < c.slots(); ++i) {
    if (!c.owns(i)) continue;
    Pack<working_t<T>, Columns::kPack> pack;
    SPANBERT_EACH
    for (int j = 0; j < Columns::kPack; ++j) pack.at[j] = array[c.place(i, j)];
    store_pack(row + c.column(i), pack);
  }
}

template <class Columns, class W>
SPANBERT_HD void keep_moments(const Columns& c, Moments<W> m, void* mean, void* rstd, int64_t row) {
  if (c.g.rank() != 0) return;
  static_cast<W*>(mean)[row] = m.mean;
  static_cast<W*>(rstd)[row] = m.rstd;
}

// `scratch` holds kForwardArrays * hidden_size values where columns are Strided, and is unused where they are Packed.
constexpr int kForwardArrays = 1;

template <class T, class Columns>
SPANBERT_HD void gelu_layer_norm_at(const Columns& c, const GeluLayerNormArgs& args, int64_t row,
                                    working_t<T>* scratch) {
  using W = working_t<T>;
  constexpr int kPack = Columns::kPack;
  const T* x = static_cast<const T*>(args.x) + row * c.size;
  T* out = static_cast<T*>(args.out) + row * c.size;
  Moments<W> m{0, 0};
  if (args.row_ids && args.row_ids[row] == kIgnore) {
    zero_row(c, out);
  } else {
    typename Columns::template Values<W, kForwardArrays> values(c, scratch);
    m = gelu_layer_norm_row(
        c, W(args.eps), static_cast<const W*>(args.weight), static_cast<const W*>(args.bias), values.array(0),
        [&](int64_t i) { return load_pack<kPack>(x + c.column(i)); },
        [&](int64_t i, const Pack<W, kPack>& y) { store_pack(out + c.column(i), y); });
  }
  keep_moments(c, m, args.mean, args.rstd, row);
}

// Target k of the first SBO layer: x = span row + position row; rows without an SBO target become zero.
template <class T, class Columns>
SPANBERT_HD void sbo_first_layer_at(const Columns& c, const SboFirstLayerArgs& args, int64_t k, working_t<T>* scratch) {
  using W = working_t<T>;
  T* out = static_cast<T*>(args.out) + k * c.size;
  Moments<W> m{0, 0};
  if (args.sbo_ids[k] == kIgnore) {
    zero_row(c, out);
  } else {
    const int64_t s = args.target_spans[k], offset = args.target_offsets[k];
    assert(s >= 0 && s < args.spans && offset >= 0 && offset < args.positions && "SBO target outside its table");
    const T* span = static_cast<const T*>(args.span_rows) + s * c.size;
    const T* position = static_cast<const T*>(args.position_rows) + offset * c.size;
    typename Columns::template Values<W, kForwardArrays> values(c, scratch);
    m = gelu_layer_norm_row(
        c, W(args.eps), static_cast<const W*>(args.weight), static_cast<const W*>(args.bias), values.array(0),
        [&](int64_t i) { return sum_of_rows(c, i, span, position); },
        [&](int64_t i, const Pack<W, Columns::kPack>& y) { store_pack(out + c.column(i), y); });
  }
  keep_moments(c, m, args.mean, args.rstd, k);
}

// Arrays of a chunk: the row function's three, the sums of grad_weight and grad_bias, and those of grad_x or of a
// span's gradient. Strided columns need this many times hidden_size values of scratch.
constexpr int kBackwardArrays = 6;

// The sums of grad_weight, grad_bias and grad_x over a chunk of rows go to args.partials.
template <class T, class Columns>
SPANBERT_HD void gelu_layer_norm_backward_chunk(const Columns& c, const GeluLayerNormBackwardArgs& args, int64_t chunk,
                                                working_t<T>* scratch) {
  using W = working_t<T>;
  constexpr int kPack = Columns::kPack;
  typename Columns::template Values<W, kBackwardArrays> values(c, scratch);
  SPANBERT_EACH
  for (int a = 3; a < kBackwardArrays; ++a) zero_values(c, values.array(a));
  W* grad_x_sum = values.array(5);
  int turn = 0;
  const int64_t limit = (chunk + 1) * kRowsPerChunk, end = limit < args.rows ? limit : args.rows;
  for (int64_t r = chunk * kRowsPerChunk; r < end; ++r) {
    const T* x = static_cast<const T*>(args.x) + r * c.size;
    const T* grad_out = static_cast<const T*>(args.grad_out) + r * c.size;
    T* grad_x = static_cast<T*>(args.grad_x) + r * c.size;
    if (args.row_ids && args.row_ids[r] == kIgnore) {
      zero_row(c, grad_x);
      continue;
    }
    const Moments<W> m{static_cast<const W*>(args.mean)[r], static_cast<const W*>(args.rstd)[r]};
    gelu_layer_norm_row_backward(
        c, turn, m, static_cast<const W*>(args.weight), values.array(3), values.array(4), values.array(0),
        values.array(1), values.array(2), [&](int64_t i) { return load_pack<kPack>(x + c.column(i)); },
        [&](int64_t i) { return load_pack<kPack>(grad_out + c.column(i)); },
        [&](int64_t i, const Pack<W, kPack>& d) {
          store_pack(grad_x + c.column(i), d);
          SPANBERT_EACH
          for (int j = 0; j < kPack; ++j) grad_x_sum[c.place(i, j)] += d.at[j];
        });
    turn ^= 1;
  }
  W* out = static_cast<W*>(args.partials) + chunk * 3 * c.size;
  SPANBERT_EACH
  for (int a = 0; a < 3; ++a) store_values(c, values.array(3 + a), out + a * c.size);
}

// Target k of the backward pass. One read ahead, so that no load waits for the branch on the one before.
template <class W>
struct SboTarget {
  int64_t span, id, offset;
  Moments<W> moments;
};

template <class W>
SPANBERT_HD SboTarget<W> sbo_target_at(const SboFirstLayerBackwardArgs& args, int64_t k) {
  if (k < 0 || k >= args.targets) return {-1, kIgnore, 0, {0, 0}};
  return {args.target_spans[k],
          args.sbo_ids[k],
          args.target_offsets[k],
          {static_cast<const W*>(args.mean)[k], static_cast<const W*>(args.rstd)[k]}};
}

// A chunk of spans, one by one: each thread owns its columns of every sum, so the group meets only in the row
// reductions. args.partials holds [2 + P, H] a chunk: grad_weight, grad_bias and the position sums. The latter are
// added up there, or in the group's `position_sums` [P, H] if given.
template <class T, class Columns>
SPANBERT_HD void sbo_first_layer_backward_chunk(const Columns& c, const SboFirstLayerBackwardArgs& args, int64_t chunk,
                                                working_t<T>* scratch, working_t<T>* position_sums = nullptr) {
  using W = working_t<T>;
  constexpr int kPack = Columns::kPack;
  typename Columns::template Values<W, kBackwardArrays> values(c, scratch);
  zero_values(c, values.array(3));
  zero_values(c, values.array(4));
  W* grad_span = values.array(5);
  W* out = static_cast<W*>(args.partials) + chunk * (2 + args.positions) * c.size;
  W* position_partials = out + 2 * c.size;
  W* positions = position_sums ? position_sums : position_partials;
  for (int64_t p = 0; p < args.positions; ++p) zero_row(c, positions + p * c.size);
  int turn = 0;
  const int64_t limit = (chunk + 1) * kSpansPerChunk, end = limit < args.spans ? limit : args.spans;
  for (int64_t s = chunk * kSpansPerChunk; s < end; ++s) {
    zero_values(c, grad_span);
    const T* span = static_cast<const T*>(args.span_rows) + s * c.size;
    int64_t next = args.first_targets[s];
    SboTarget<W> ahead = sbo_target_at<W>(args, next);
    while (ahead.span == s) {
      const SboTarget<W> target = ahead;
      const int64_t k = next++;
      ahead = sbo_target_at<W>(args, next);
      if (target.id == kIgnore) continue;
      const T* position = static_cast<const T*>(args.position_rows) + target.offset * c.size;
      const T* grad_out = static_cast<const T*>(args.grad_out) + k * c.size;
      W* grad_position = positions + target.offset * c.size;
      gelu_layer_norm_row_backward(
          c, turn, target.moments, static_cast<const W*>(args.weight), values.array(3), values.array(4),
          values.array(0), values.array(1), values.array(2),
          [&](int64_t i) { return sum_of_rows(c, i, span, position); },
          [&](int64_t i) { return load_pack<kPack>(grad_out + c.column(i)); },
          [&](int64_t i, const Pack<W, kPack>& d) {
            Pack<W, kPack> total = load_pack<kPack>(grad_position + c.column(i));
            SPANBERT_EACH
            for (int j = 0; j < kPack; ++j) {
              grad_span[c.place(i, j)] += d.at[j];
              total.at[j] += d.at[j];
            }
            store_pack(grad_position + c.column(i), total);
          });
      turn ^= 1;
    }
    store_values(c, grad_span, static_cast<T*>(args.grad_span_rows) + s * c.size);
  }
  SPANBERT_EACH
  for (int a = 0; a < 2; ++a) store_values(c, values.array(3 + a), out + a * c.size);
  if (!position_sums) return;
  for (int64_t p = 0; p < args.positions; ++p) copy_row(c, positions + p * c.size, position_partials + p * c.size);
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
