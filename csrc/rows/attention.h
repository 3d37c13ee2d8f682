// One row of attention: softmax of a query's scores over the keys of its sequence, and dropout of the probabilities.
// With s the scores, p = softmax(scale * s) rounded to their dtype and k a column's dropout factor (0, or 1 /
// probability of keeping):
//   weights = k * p
//   grad_s = scale / P(keep) * p * (d - sum(d * p)),  d = grad_weights, 0 where dropped
// A probability has no sign, so the mask is kept there: dropped ones are saved negated, and the backward pass draws
// nothing. Columns behind the last key, and rows behind the last query, become 0 and pass no gradient.
#pragma once

#include "common/dropout_draws.h"
#include "ops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

// Loops go on to a multiple of so many columns where the row has them: behind the last key stand zeros all the same,
// and the rest of a vector would be computed number by number.
constexpr int64_t kColumnGrain = 32;

// Where a row of scores [N, heads, Lq, Lk] stands.
struct AttentionPlace {
  int64_t keys;    // columns that count; 0 behind the last query
  int64_t end;     // columns to compute
  int64_t number;  // of the row among all dropout draws: (query's place in the stream) * heads + head

  SPANBERT_HD AttentionPlace(const AttentionWeightsArgs& args, int64_t row) {
    const int64_t group = row / args.height, query = row % args.height;
    const int64_t sequence = group / args.heads, head = group % args.heads;
    keys = query < args.queries[sequence] ? args.keys[sequence] : 0;
    number = args.first_queries ? (args.first_queries[sequence] + query) * args.heads + head : 0;
    const int64_t whole = (keys + kColumnGrain - 1) / kColumnGrain * kColumnGrain;
    end = whole < args.width ? whole : args.width;
  }
};

// x, which has no sign, or -x.
SPANBERT_HD float with_sign(float x, bool sign) { return sign ? -x : x; }
SPANBERT_HD double with_sign(double x, bool sign) { return sign ? -x : x; }
SPANBERT_HD bf16 with_sign(bf16 x, bool sign) { return bf16{uint16_t(sign ? x.bits | 0x8000u : x.bits)}; }
SPANBERT_HD fp16 with_sign(fp16 x, bool sign) { return fp16{uint16_t(sign ? x.bits | 0x8000u : x.bits)}; }

// The loops over all own columns in [first, end).
#define SPANBERT_COLUMNS(first, end) for (int64_t h = (first) + g.rank(); h < (end); h += g.size())

template <class T, class Group>
SPANBERT_HD void zero_columns(const Group& g, T* row, int64_t first, int64_t end) {
  SPANBERT_SIMD
  SPANBERT_COLUMNS(first, end) row[h] = store<T>(0);
}

// `values` holds a row of working values, `drawn` draw_columns(width) draws (null when nothing is dropped).
template <class T, class Group>
SPANBERT_HD void attention_weights_row(const Group& g, const AttentionWeightsArgs& args, int64_t row,
                                       working_t<T>* values, uint16_t* drawn) {
  using W = working_t<T>;
  const AttentionPlace place(args, row);
  const int64_t keys = place.keys, end = place.end;
  const T* scores = static_cast<const T*>(args.scores) + row * args.width;
  T* weights = static_cast<T*>(args.weights) + row * args.width;
  // Null: nobody wants them.
  T* signed_probs = args.signed_probs ? static_cast<T*>(args.signed_probs) + row * args.width : nullptr;
  const W scale = W(args.scale), keep_scale = W(args.keep_scale);
  const uint32_t threshold = args.mask_threshold;
  W maximum = -W(INFINITY);
  SPANBERT_SIMD_MAX(maximum)
  SPANBERT_COLUMNS(0, end) {
    // h < keys, written so that GCC does not cut the loop in two there.
    const bool there = int32_t(uint32_t(h) - uint32_t(keys)) < 0;
    const W value = values[h] = there ? load(scores[h]) * scale : -W(INFINITY);
    maximum = value > maximum ? value : maximum;
  }
  maximum = g.max(maximum);
  W total = 0;
  SPANBERT_SIMD_SUM(total)
  SPANBERT_COLUMNS(0, end) total += values[h] = decay(values[h] - maximum);
  const W factor = W(1) / g.sum(total);
  if (threshold > 0) {
    draw_row(g, DropoutDraws{uint64_t(args.seed[0]), args.site}, place.number, end, drawn);
    SPANBERT_SIMD
    SPANBERT_COLUMNS(0, end) {
      const bool drop = drawn[h] < threshold;
      const T prob = store<T>(values[h] * factor);
      signed_probs[h] = with_sign(prob, drop);
      weights[h] = store<T>(drop ? W(0) : load(prob) * keep_scale);
    }
  } else {
    SPANBERT_SIMD
    SPANBERT_COLUMNS(0, end) weights[h] = store<T>(values[h] * factor);
    if (signed_probs && signed_probs != weights) {
      SPANBERT_SIMD
      SPANBERT_COLUMNS(0, end) signed_probs[h] = weights[h];
    }
  }
  zero_columns(g, weights, end, args.width);
  if (signed_probs) zero_columns(g, signed_probs, end, args.width);
}

// Writes grad_scores, and the weights of the forward pass again. grad_scores may be grad_weights.
template <class T, class Group>
SPANBERT_HD void attention_weights_backward_row(const Group& g, const AttentionWeightsArgs& args, int64_t row) {
  using W = working_t<T>;
  const int64_t end = AttentionPlace(args, row).end;
  const T* signed_probs = static_cast<const T*>(args.signed_probs) + row * args.width;
  const T* grad_weights = static_cast<const T*>(args.grad_weights) + row * args.width;
  T* grad_scores = static_cast<T*>(args.grad_scores) + row * args.width;
  T* weights = static_cast<T*>(args.weights) + row * args.width;
  const W keep_scale = W(args.keep_scale), scale = W(args.scale * args.keep_scale);
  // What is dropped, or 0 as behind the keys, has no part in the weights, whatever its gradient. The comparison is
  // false for a probability that is no number, which makes all that follows from it none.
  W total = 0;
  SPANBERT_SIMD_SUM(total)
  SPANBERT_COLUMNS(0, end) {
    const W prob = load(signed_probs[h]), grad = load(grad_weights[h]);
    total += prob <= 0 ? W(0) : prob * grad;
  }
  total = g.sum(total);
  SPANBERT_SIMD
  SPANBERT_COLUMNS(0, end) {
    const W prob = load(signed_probs[h]), grad = load(grad_weights[h]);
    const bool out = prob <= 0;
    const W size = out ? -prob : prob;
    grad_scores[h] = store<T>(scale * size * ((out ? W(0) : grad) - total));
    weights[h] = store<T>(out ? W(0) : prob * keep_scale);
  }
  zero_columns(g, grad_scores, end, args.width);
  zero_columns(g, weights, end, args.width);
}

#undef SPANBERT_COLUMNS

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
