// One row of a residual connection, forward and backward: y = LN(dropout(x) + residual), as behind both halves of a
// BERT layer, or y = dropout(LN(x + residual)), as behind its embeddings. With s the sum that is normalised,
// n = (s - mean) * rstd and k a column's dropout factor (0, or 1 / probability of keeping):
//   y = n * weight + bias
//   grad_s = rstd * (d - avg(d) - n * avg(d * n)),  d = grad_y * weight;  grad_residual = grad_s, grad_x = k * grad_s
// (with dropout behind, y and grad_y are multiplied by k instead). The backward pass recomputes s and k; only mean and
// rstd of a row are kept.
#pragma once

#include "rows/dropout_norm_columns.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

// Where dropout stands. The CPU chooses before its loops, which then vectorise; a GPU takes kEither, where the answer
// costs a few selects a row.
enum class Drop { kNowhere, kInput, kOutput, kEither };

template <Drop kDrop, class X, class S, class Columns>
struct NormRow {
  using W = working_t<S>;
  using Part = typename Columns::Part;
  Columns& c;
  const X* x;
  const S* residual;
  uint32_t threshold;
  W scale;
  bool input, output;

  SPANBERT_HD NormRow(Columns& columns, const DropoutNormArgs& args, int64_t row)
      : c(columns),
        x(static_cast<const X*>(args.x) + row * args.hidden_size),
        residual(static_cast<const S*>(args.residual) + row * args.hidden_size),
        threshold(args.mask_threshold),
        scale(W(args.keep_scale)),
        input(kDrop == Drop::kInput || (kDrop == Drop::kEither && threshold > 0 && !args.drop_output)),
        output(kDrop == Drop::kOutput || (kDrop == Drop::kEither && threshold > 0 && args.drop_output)) {
    if (input || output) c.draw(DropoutDraws{uint64_t(args.seed[0]), args.site}, row, threshold);
  }

  SPANBERT_HD Part drop_input(Spot at, const Part& value) const {
    if constexpr (kDrop == Drop::kInput || kDrop == Drop::kEither) {
      return value * c.kept(at, threshold, scale, input);
    } else {
      return value;
    }
  }
  SPANBERT_HD Part drop_output(Spot at, const Part& value) const {
    if constexpr (kDrop == Drop::kOutput || kDrop == Drop::kEither) {
      return value * c.kept(at, threshold, scale, output);
    } else {
      return value;
    }
  }
  SPANBERT_HD Part sum(Spot at) const { return drop_input(at, c.read(x, at)) + c.read(residual, at); }
};

template <Drop kDrop, class X, class S, class Columns>
SPANBERT_HD void dropout_norm_row(Columns& c, const DropoutNormArgs& args, int64_t row) {
  using W = working_t<S>;
  using Part = typename Columns::Part;
  const NormRow<kDrop, X, S, Columns> r(c, args, row);
  const W* weight = static_cast<const W*>(args.weight);
  const W* bias = static_cast<const W*>(args.bias);
  S* out = static_cast<S*>(args.out) + row * c.size;
  const W mean = c.sum([&](Spot at) -> Part { return c.value(at) = r.sum(at); }) / W(c.size);
  const W square = c.sum([&](Spot at) -> Part {
    const Part centred = c.value(at) - mean;
    return centred * centred;
  });
  const W rstd = W(1) / sqrt(square / W(c.size) + W(args.eps));
  c.each([&](Spot at) {
    const Part y = (c.value(at) - mean) * rstd * c.read(weight, at) + c.read(bias, at);
    c.write(out, at, r.drop_output(at, y));
  });
  if (c.g.rank() == 0) {
    static_cast<W*>(args.mean)[row] = mean;
    static_cast<W*>(args.rstd)[row] = rstd;
  }
}

// Adds the row's share to the sums of grad_weight and grad_bias and writes grad_residual and, unless null, grad_x.
template <Drop kDrop, class X, class S, class Columns, class Sums>
SPANBERT_HD void dropout_norm_row_backward(Columns& c, const DropoutNormArgs& args, int64_t row, Sums& parameters) {
  using W = working_t<S>;
  using Part = typename Columns::Part;
  const NormRow<kDrop, X, S, Columns> r(c, args, row);
  const W* weight = static_cast<const W*>(args.weight);
  const S* grad_out = static_cast<const S*>(args.grad_out) + row * c.size;
  S* grad_residual = static_cast<S*>(args.grad_residual) + row * c.size;
  X* grad_x = args.grad_x ? static_cast<X*>(args.grad_x) + row * c.size : nullptr;
  const W mean = static_cast<const W*>(args.mean)[row], rstd = static_cast<const W*>(args.rstd)[row];
  const auto grad_y = [&](Spot at) -> Part { return r.drop_output(at, c.read(grad_out, at)); };
  const Pair<W> sums = c.sums([&](Spot at) -> Pair<Part> {
    const Part n = (r.sum(at) - mean) * rstd, g = grad_y(at);
    c.value(at) = n;
    c.add(parameters, at, g * n, g);
    const Part d = g * c.read(weight, at);
    return {d, d * n};
  });
  const W average = sums.first / W(c.size), projection = sums.second / W(c.size);
  const auto grad_s = [&](Spot at) -> Part {
    return (grad_y(at) * c.read(weight, at) - average - c.value(at) * projection) * rstd;
  };
  if (grad_x) {
    c.each([&](Spot at) {
      const Part d = grad_s(at);
      c.write(grad_residual, at, d);
      c.write(grad_x, at, r.drop_input(at, d));
    });
  } else {
    c.each([&](Spot at) { c.write(grad_residual, at, grad_s(at)); });
  }
}

// The rows of a chunk one after the other, from `first` on in steps of `step`.
template <Drop kDrop, class X, class S, class Columns, class Sums>
SPANBERT_HD void dropout_norm_backward_chunk(Columns& c, const DropoutNormArgs& args, int64_t chunk, int first,
                                             int step, Sums& parameters) {
  const int64_t height = norm_rows_per_chunk(args.rows), limit = (chunk + 1) * height;
  const int64_t end = limit < args.rows ? limit : args.rows;
  c.start_sums(parameters);
  for (int64_t row = chunk * height + first; row < end; row += step) {
    dropout_norm_row_backward<kDrop, X, S>(c, args, row, parameters);
  }
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
