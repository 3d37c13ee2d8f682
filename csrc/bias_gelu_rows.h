// y = GELU(x + bias) of a strip of columns and a chunk of rows, and its gradients
//   grad_x = GELU'(x + bias) * grad_y,  grad_bias = sum of grad_x over the rows.
// The bias of the strip stays in the columns' own storage (registers on a GPU).
#pragma once

#include "norm_columns.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

template <class W>
SPANBERT_HD Gelu<Eight<W>> gelu(const Eight<W>& x) {
  Gelu<Eight<W>> out;
  for (int j = 0; j < 8; ++j) {
    const Gelu<W> one = gelu(x.v[j]);
    out.value.v[j] = one.value;
    out.slope.v[j] = one.slope;
  }
  return out;
}

// Calls visit(offset of the strip's first column) for rows first, first + step, ... of a chunk.
template <class Visit>
SPANBERT_HD void chunk_rows(const BiasGeluArgs& args, int64_t strip, int64_t chunk, int first, int step,
                            const Visit& visit) {
  const int64_t height = norm_rows_per_chunk(args.rows), limit = (chunk + 1) * height;
  const int64_t end = limit < args.rows ? limit : args.rows;
  for (int64_t row = chunk * height + first; row < end; row += step) visit(row * args.size + strip);
}

template <class Columns, class W>
SPANBERT_HD void keep_bias(Columns& c, const W* bias) {
  c.each([&](Spot at) { c.value(at) = c.read(bias, at); });
}

template <class T, class Columns>
SPANBERT_HD void bias_gelu_chunk(Columns& c, const BiasGeluArgs& args, int64_t strip, int64_t chunk, int first,
                                 int step) {
  keep_bias(c, static_cast<const working_t<T>*>(args.bias) + strip);
  chunk_rows(args, strip, chunk, first, step, [&](int64_t offset) {
    const T* x = static_cast<const T*>(args.x) + offset;
    T* out = static_cast<T*>(args.out) + offset;
    c.each([&](Spot at) { c.write(out, at, gelu(c.read(x, at) + c.value(at)).value); });
  });
}

// `sum` takes the column sums of grad_x.
template <class T, class Columns, class Sum>
SPANBERT_HD void bias_gelu_backward_chunk(Columns& c, const BiasGeluArgs& args, int64_t strip, int64_t chunk, int first,
                                          int step, Sum* sum) {
  keep_bias(c, static_cast<const working_t<T>*>(args.bias) + strip);
  c.start_sum(sum);
  chunk_rows(args, strip, chunk, first, step, [&](int64_t offset) {
    const T* x = static_cast<const T*>(args.x) + offset;
    const T* grad_out = static_cast<const T*>(args.grad_out) + offset;
    T* grad_x = static_cast<T*>(args.grad_x) + offset;
    c.each([&](Spot at) {
      const typename Columns::Part d = gelu(c.read(x, at) + c.value(at)).slope * c.read(grad_out, at);
      c.add(sum, at, d);
      c.write(grad_x, at, d);
    });
  });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
