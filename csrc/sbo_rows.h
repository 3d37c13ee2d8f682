// One row of LN(GELU(x)), forward and backward: what surrounds both matrix products of the span boundary objective
// (paper section 3.2) and the MLM transform. With g = GELU(x) and n = (g - mean) * rstd:
//   y = n * weight + bias
//   grad_x = GELU'(x) * rstd * (d - avg(d) - n * avg(d * n)),  d = grad_y * weight
// x is recomputed in the backward pass; only mean and rstd of a row are kept.
#pragma once

#include <cassert>

#include "ops.h"
#include "portable.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

template <class W>
struct Moments {
  W mean, rstd;
};

// x(h) gives the row, y(h, value) takes the result; `scratch` holds hidden_size values that only this group uses.
template <class Group, class W, class X, class Y>
SPANBERT_HD Moments<W> gelu_layer_norm_row(const Group& g, int64_t hidden_size, W eps, const W* weight, const W* bias,
                                           W* scratch, const X& x, const Y& y) {
  const int64_t step = g.size();
  W sum = 0;
  SPANBERT_SIMD_SUM(sum)
  for (int64_t h = g.rank(); h < hidden_size; h += step) {
    scratch[h] = gelu(x(h)).value;
    sum += scratch[h];
  }
  const W mean = g.sum(sum) / W(hidden_size);
  W square = 0;
  SPANBERT_SIMD_SUM(square)
  for (int64_t h = g.rank(); h < hidden_size; h += step) {
    const W centred = scratch[h] - mean;
    square += centred * centred;
  }
  const W rstd = W(1) / sqrt(g.sum(square) / W(hidden_size) + eps);
  SPANBERT_SIMD
  for (int64_t h = g.rank(); h < hidden_size; h += step) {
    y(h, (scratch[h] - mean) * rstd * weight[h] + bias[h]);
  }
  return {mean, rstd};
}

// Adds the row's share to grad_weight and grad_bias (each thread its own columns) and hands grad_x to dx(h, value).
// `scratch` holds 2 * hidden_size values.
template <class Group, class W, class X, class DY, class DX>
SPANBERT_HD void gelu_layer_norm_row_backward(const Group& g, int64_t hidden_size, Moments<W> m, const W* weight,
                                              W* grad_weight, W* grad_bias, W* scratch, const X& x, const DY& dy,
                                              const DX& dx) {
  const int64_t step = g.size();
  W* normed = scratch;
  W* slope = scratch + hidden_size;
  W sum = 0, product = 0;
  SPANBERT_SIMD_SUM(sum, product)
  for (int64_t h = g.rank(); h < hidden_size; h += step) {
    const Gelu<W> value = gelu(x(h));
    const W n = (value.value - m.mean) * m.rstd;
    const W grad = dy(h);
    normed[h] = n;
    slope[h] = value.slope;
    grad_weight[h] += grad * n;
    grad_bias[h] += grad;
    const W d = grad * weight[h];
    sum += d;
    product += d * n;
  }
  const W average = g.sum(sum) / W(hidden_size);
  const W projection = g.sum(product) / W(hidden_size);
  SPANBERT_SIMD
  for (int64_t h = g.rank(); h < hidden_size; h += step) {
    dx(h, slope[h] * m.rstd * (dy(h) * weight[h] - average - normed[h] * projection));
  }
}

// The rest applies these to the arguments of an operation; each back end adds only how rows or chunks are spread.

template <class Group, class T>
SPANBERT_HD void gelu_layer_norm_at(const Group& g, const GeluLayerNormArgs& args, int64_t row, working_t<T>* scratch) {
  using W = working_t<T>;
  const int64_t size = args.hidden_size;
  const T* x = static_cast<const T*>(args.x) + row * size;
  T* out = static_cast<T*>(args.out) + row * size;
  Moments<W> m{0, 0};
  if (args.row_ids && args.row_ids[row] == kIgnore) {
    for (int64_t h = g.rank(); h < size; h += g.size()) out[h] = store<T>(W(0));
  } else {
    m = gelu_layer_norm_row(
        g, size, W(args.eps), static_cast<const W*>(args.weight), static_cast<const W*>(args.bias), scratch,
        [&](int64_t h) -> W { return load(x[h]); }, [&](int64_t h, W y) { out[h] = store<T>(y); });
  }
  if (g.rank() == 0) {
    static_cast<W*>(args.mean)[row] = m.mean;
    static_cast<W*>(args.rstd)[row] = m.rstd;
  }
}

// Target k of the first SBO layer: x = span row + position row; rows without an SBO target become zero.
template <class Group, class T>
SPANBERT_HD void sbo_first_layer_at(const Group& g, const SboFirstLayerArgs& args, int64_t k, working_t<T>* scratch) {
  using W = working_t<T>;
  const int64_t size = args.hidden_size;
  T* out = static_cast<T*>(args.out) + k * size;
  Moments<W> m{0, 0};
  if (args.sbo_ids[k] == kIgnore) {
    for (int64_t h = g.rank(); h < size; h += g.size()) out[h] = store<T>(W(0));
  } else {
    const int64_t s = args.target_spans[k], offset = args.target_offsets[k];
    assert(s >= 0 && s < args.spans && offset >= 0 && offset < args.positions && "SBO target outside its table");
    const T* span = static_cast<const T*>(args.span_rows) + s * size;
    const T* position = static_cast<const T*>(args.position_rows) + offset * size;
    m = gelu_layer_norm_row(
        g, size, W(args.eps), static_cast<const W*>(args.weight), static_cast<const W*>(args.bias), scratch,
        [&](int64_t h) -> W { return load(span[h]) + load(position[h]); },
        [&](int64_t h, W y) { out[h] = store<T>(y); });
  }
  if (g.rank() == 0) {
    static_cast<W*>(args.mean)[k] = m.mean;
    static_cast<W*>(args.rstd)[k] = m.rstd;
  }
}

// Rows of scratch a chunk needs: two of the row function, the sums of grad_weight and grad_bias, and those of grad_x or
// a span's gradient.
constexpr int64_t kNormBackwardRows = 5, kSboBackwardRows = 5;

template <class Group, class W>
SPANBERT_HD void fill_columns(const Group& g, W* values, int64_t count) {
  for (int64_t h = g.rank(); h < count; h += g.size()) values[h] = 0;
}

// The sums of grad_weight, grad_bias and grad_x over a chunk start as zeros behind the row function's scratch and end
// in args.partials.
template <class Group, class T>
SPANBERT_HD void gelu_layer_norm_backward_chunk(const Group& g, const GeluLayerNormBackwardArgs& args, int64_t chunk,
                                                working_t<T>* scratch) {
  using W = working_t<T>;
  const int64_t size = args.hidden_size;
  W* sums = scratch + 2 * size;
  W* grad_x_sum = sums + 2 * size;
  fill_columns(g, sums, 3 * size);
  g.sync();
  const int64_t limit = (chunk + 1) * kRowsPerChunk, end = limit < args.rows ? limit : args.rows;
  for (int64_t r = chunk * kRowsPerChunk; r < end; ++r) {
    const T* x = static_cast<const T*>(args.x) + r * size;
    const T* grad_out = static_cast<const T*>(args.grad_out) + r * size;
    T* grad_x = static_cast<T*>(args.grad_x) + r * size;
    if (args.row_ids && args.row_ids[r] == kIgnore) {
      for (int64_t h = g.rank(); h < size; h += g.size()) grad_x[h] = store<T>(W(0));
      continue;
    }
    const Moments<W> m{static_cast<const W*>(args.mean)[r], static_cast<const W*>(args.rstd)[r]};
    gelu_layer_norm_row_backward(
        g, size, m, static_cast<const W*>(args.weight), sums, sums + size, scratch,
        [&](int64_t h) -> W { return load(x[h]); }, [&](int64_t h) -> W { return load(grad_out[h]); },
        [&](int64_t h, W d) {
          grad_x[h] = store<T>(d);
          grad_x_sum[h] += d;
        });
  }
  g.sync();
  W* out = static_cast<W*>(args.partials) + chunk * 3 * size;
  for (int64_t h = g.rank(); h < 3 * size; h += g.size()) out[h] = sums[h];
}

// A chunk of spans, one by one: each thread owns its columns of every sum, so the group meets only in the row
// reductions. The position sums stay in args.partials, [2 + P, H] a chunk, behind grad_weight and grad_bias.
template <class Group, class T>
SPANBERT_HD void sbo_first_layer_backward_chunk(const Group& g, const SboFirstLayerBackwardArgs& args, int64_t chunk,
                                                working_t<T>* scratch) {
  using W = working_t<T>;
  const int64_t size = args.hidden_size;
  W* sums = scratch + 2 * size;
  W* grad_span = scratch + 4 * size;
  W* out = static_cast<W*>(args.partials) + chunk * (2 + args.positions) * size;
  fill_columns(g, sums, 2 * size);
  for (int64_t p = 0; p < args.positions; ++p) fill_columns(g, out + (2 + p) * size, size);
  g.sync();
  const int64_t limit = (chunk + 1) * kSpansPerChunk, end = limit < args.spans ? limit : args.spans;
  for (int64_t s = chunk * kSpansPerChunk; s < end; ++s) {
    fill_columns(g, grad_span, size);
    const T* span = static_cast<const T*>(args.span_rows) + s * size;
    const int64_t first = args.first_targets[s];
    for (int64_t k = first; k >= 0 && k < args.targets && args.target_spans[k] == s; ++k) {
      if (args.sbo_ids[k] == kIgnore) continue;
      const int64_t offset = args.target_offsets[k];
      const T* position = static_cast<const T*>(args.position_rows) + offset * size;
      const T* grad_out = static_cast<const T*>(args.grad_out) + k * size;
      W* grad_position = out + (2 + offset) * size;
      const Moments<W> m{static_cast<const W*>(args.mean)[k], static_cast<const W*>(args.rstd)[k]};
      gelu_layer_norm_row_backward(
          g, size, m, static_cast<const W*>(args.weight), sums, sums + size, scratch,
          [&](int64_t h) -> W { return load(span[h]) + load(position[h]); },
          [&](int64_t h) -> W { return load(grad_out[h]); },
          [&](int64_t h, W d) {
            grad_span[h] += d;
            grad_position[h] += d;
          });
    }
    T* grad_rows = static_cast<T*>(args.grad_span_rows) + s * size;
    for (int64_t h = g.rank(); h < size; h += g.size()) grad_rows[h] = store<T>(grad_span[h]);
  }
  g.sync();
  for (int64_t h = g.rank(); h < 2 * size; h += g.size()) out[h] = sums[h];
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
