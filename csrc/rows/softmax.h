// One row of softmax cross entropy with the head's own output bias: loss = logsumexp(z) - z[target], z = logits + bias,
// and its gradient scale * (softmax(z) - onehot(target)) written over the logits. The CPU's form: three passes over a
// row that fits in the second-level cache, one exponential a value, kept from the sum for the gradient.
// (softmax_pieces.h has the GPU's.)
#pragma once

#include "common/portable.h"
#include "ops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

// Values of one running sum: small terms behind a large one would lose their digits in a sum over the whole row.
constexpr int64_t kValuesPerSum = 1024;

// Sum of term(v) over the row.
template <class W, class Group, class Term>
SPANBERT_HD W summed(const Group& g, int64_t count, const Term& term) {
  const int64_t step = g.size();
  W total = 0;
  for (int64_t base = 0; base < count; base += kValuesPerSum * step) {
    const int64_t limit = base + kValuesPerSum * step, end = limit < count ? limit : count;
    W part = 0;
    SPANBERT_SIMD_SUM(part)
    for (int64_t v = base + g.rank(); v < end; v += step) part += term(v);
    total += part;
  }
  return g.sum(total);
}

template <class T>
constexpr bool kKeepsInPlace = sizeof(T) == sizeof(working_t<T>);

// Where the exponentials of a row stay: in the logits themselves if they are of the working type, else in `scratch`.
SPANBERT_HD float* exponentials_of(float* logits, float*) { return logits; }
SPANBERT_HD double* exponentials_of(double* logits, double*) { return logits; }
template <class Half>
SPANBERT_HD float* exponentials_of(Half*, float* scratch) {
  return scratch;
}

// z(v) gives logit + bias of the row; with `scale` its logits become the gradient.
template <class T, class Group, class Z>
SPANBERT_HD working_t<T> cross_entropy_of(const Group& g, const CrossEntropyArgs& args, int64_t row, T* logits,
                                          working_t<T>* scratch, const Z& z) {
  using W = working_t<T>;
  const int64_t step = g.size(), vocab_size = args.vocab_size, target = args.targets[row];
  // Everybody reads the target's logit before its owner overwrites it: the reductions stand between.
  const W z_target = z(target);
  W maximum = -W(INFINITY);
  SPANBERT_SIMD_MAX(maximum)
  for (int64_t v = g.rank(); v < vocab_size; v += step) {
    const W value = z(v);
    maximum = value > maximum ? value : maximum;
  }
  maximum = g.max(maximum);
  W total;
  if (args.scale) {
    W* kept = exponentials_of(logits, scratch);
    total = summed<W>(g, vocab_size, [&](int64_t v) { return kept[v] = exponential(z(v) - maximum); });
    const W scale = static_cast<const W*>(args.scale)[row], factor = scale / total;
    const bool own_target = target % step == g.rank();
    const W at_target = own_target ? kept[target] * factor - scale : W(0);
    SPANBERT_SIMD
    for (int64_t v = g.rank(); v < vocab_size; v += step) logits[v] = store<T>(kept[v] * factor);
    if (own_target) logits[target] = store<T>(at_target);
    for (int64_t v = vocab_size + g.rank(); v < args.stride; v += step) logits[v] = store<T>(W(0));
  } else {
    total = summed<W>(g, vocab_size, [&](int64_t v) { return exponential(z(v) - maximum); });
  }
  return (maximum - z_target) + log(total);  // the difference is exact where the loss is small
}

// A whole row: returns the loss; with `scale` the logits become the gradient. `scratch` holds vocab_size values, null
// where the exponentials stay in place.
template <class T, class Group>
SPANBERT_HD working_t<T> cross_entropy_row(const Group& g, const CrossEntropyArgs& args, int64_t row,
                                           working_t<T>* scratch) {
  using W = working_t<T>;
  T* logits = static_cast<T*>(args.logits) + row * args.stride;
  if (args.targets[row] == kIgnore) {
    if (args.scale) {
      for (int64_t v = g.rank(); v < args.stride; v += g.size()) logits[v] = store<T>(W(0));
    }
    return 0;
  }
  if (!args.bias) {
    return cross_entropy_of<T>(g, args, row, logits, scratch, [&](int64_t v) -> W { return load(logits[v]); });
  }
  const W* bias = static_cast<const W*>(args.bias) + (args.head ? args.head[row] : 0) * args.bias_stride;
  return cross_entropy_of<T>(g, args, row, logits, scratch, [&](int64_t v) -> W { return load(logits[v]) + bias[v]; });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
