// One row of softmax cross entropy with the head's own output bias: loss = logsumexp(z) - z[target], z = logits + bias,
// and its gradient scale * (softmax(z) - onehot(target)) written over the logits.
#pragma once

#include "ops.h"
#include "portable.h"
#include "sbo_rows.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

template <class W>
struct SoftmaxRow {
  W maximum, total;  // total = sum of exp(z - maximum)
};

// z(v) gives logit + bias.
template <class Group, class W, class Z>
SPANBERT_HD SoftmaxRow<W> softmax_row(const Group& g, int64_t vocab_size, const Z& z) {
  const int64_t step = g.size();
  W maximum = -W(INFINITY);
  SPANBERT_SIMD_MAX(maximum)
  for (int64_t v = g.rank(); v < vocab_size; v += step) {
    const W value = z(v);
    maximum = value > maximum ? value : maximum;
  }
  maximum = g.max(maximum);
  W total = 0;
  SPANBERT_SIMD_SUM(total)
  for (int64_t v = g.rank(); v < vocab_size; v += step) total += exponential(z(v) - maximum);
  return {maximum, g.sum(total)};
}

template <class Group, class W, class T, class Z>
SPANBERT_HD void softmax_row_gradient(const Group& g, int64_t vocab_size, int64_t stride, int64_t target,
                                      SoftmaxRow<W> row, W scale, T* logits, const Z& z) {
  const int64_t step = g.size();
  const W factor = scale / row.total;
  // The target's logit is read before anybody overwrites it, by the thread that owns the column.
  W at_target = 0;
  if (target % step == g.rank()) at_target = exponential(z(target) - row.maximum) * factor - scale;
  SPANBERT_SIMD
  for (int64_t v = g.rank(); v < vocab_size; v += step) {
    logits[v] = store<T>(exponential(z(v) - row.maximum) * factor);
  }
  if (target % step == g.rank()) logits[target] = store<T>(at_target);
  for (int64_t v = vocab_size + g.rank(); v < stride; v += step) logits[v] = store<T>(W(0));
}

// A whole row: returns the loss; with `scale` the logits become the gradient.
template <class Group, class W, class T>
SPANBERT_HD W cross_entropy_row(const Group& g, const CrossEntropyArgs& args, int64_t row) {
  T* logits = static_cast<T*>(args.logits) + row * args.stride;
  const int64_t target = args.targets[row];
  const W scale = args.scale ? static_cast<const W*>(args.scale)[row] : W(0);
  if (target == kIgnore) {
    if (args.scale) {
      for (int64_t v = g.rank(); v < args.stride; v += g.size()) logits[v] = store<T>(W(0));
    }
    return 0;
  }
  // Everybody reads the target's logit before its owner overwrites it: softmax_row's reductions stand between.
  const auto finish = [&](const auto& z) {
    const W at_target = z(target);
    const SoftmaxRow<W> softmax = softmax_row<Group, W>(g, args.vocab_size, z);
    if (args.scale) softmax_row_gradient(g, args.vocab_size, args.stride, target, softmax, scale, logits, z);
    return softmax.maximum + log(softmax.total) - at_target;
  };
  if (!args.bias) return finish([&](int64_t v) -> W { return load(logits[v]); });
  const W* bias = static_cast<const W*>(args.bias) + (args.head ? args.head[row] : 0) * args.bias_stride;
  return finish([&](int64_t v) -> W { return load(logits[v]) + bias[v]; });
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
