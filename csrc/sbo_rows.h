// One row of LN(GELU(x)), forward and backward: what surrounds both matrix products of the span boundary objective
// (paper section 3.2) and the MLM transform. With g = GELU(x) and n = (g - mean) * rstd:
//   y = n * weight + bias
//   grad_x = GELU'(x) * rstd * (d - avg(d) - n * avg(d * n)),  d = grad_y * weight
// x is recomputed in the backward pass; only mean and rstd of a row are kept.
#pragma once

#include "portable.h"

#ifdef __CUDACC__
#define SPANBERT_SIMD
#define SPANBERT_SIMD_SUM(...)
#define SPANBERT_SIMD_MAX(...)
#else
#define SPANBERT_PRAGMA(text) _Pragma(#text)
#define SPANBERT_SIMD SPANBERT_PRAGMA(omp simd)
#define SPANBERT_SIMD_SUM(...) SPANBERT_PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#define SPANBERT_SIMD_MAX(...) SPANBERT_PRAGMA(omp simd reduction(max : __VA_ARGS__))
#endif

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

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
