// The CPU back end: OpenMP loops over sequences, rows and chunks. Residual connections stand in dropout_norm.cpp,
// attention in attention.cpp.
#include <algorithm>

#include "cpu/loops.h"
#include "rows/sbo.h"
#include "rows/softmax.h"
#include "rows/span_sampler.h"

namespace spanbert {
namespace SPANBERT_VARIANT {

void dropout_norm(const DropoutNormArgs& args, const Place&);
void dropout_norm_backward(const DropoutNormArgs& args, const Place&);
void attention_weights(const AttentionWeightsArgs& args, const Place&);
void attention_weights_backward(const AttentionWeightsArgs& args, const Place&);

namespace {

using WholeRow = Strided<OneThread>;

SequenceDraws draws_of(const SpanMaskArgs& args, int64_t row) {
  return {args.settings.seed, uint64_t(args.sample_ids[row]), uint32_t(args.epoch[0])};
}

void fill_unused(const SpanMaskArgs& args, int64_t targets, int64_t spans) {
  for (int64_t k = targets; k < args.target_capacity; ++k) {
    args.target_positions[k] = args.target_spans[k] = args.target_offsets[k] = 0;
    args.target_ids[k] = args.sbo_ids[k] = kIgnore;
  }
  for (int64_t s = spans; s < args.span_capacity; ++s) args.span_left[s] = args.span_right[s] = 0;
  args.dropped_spans[0] = spans > args.span_capacity ? spans - args.span_capacity : 0;
}

// Whether the sequences ascend inside the stream; everything behind relies on it.
bool are_in_order(const SpanMaskArgs& args) {
  int64_t last = 0;
  for (int64_t row = 0; row < args.sequences; ++row) {
    if (args.starts[row] < last || args.ends[row] < args.starts[row]) return false;
    last = args.ends[row];
  }
  return last <= args.total;
}

// Tokens [first, end) as they come, without labels.
template <class Token>
void copy_tokens(const SpanMaskArgs& args, int64_t first, int64_t end) {
  // Not memcpy, which may not be given null, even for no bytes.
  std::copy_n(static_cast<const Token*>(args.tokens) + first, end - first, static_cast<Token*>(args.input_ids) + first);
  for (int64_t i = first; i < end; ++i) args.labels[i] = kIgnore;
}

template <class Token>
int64_t span_mask_as(const SpanMaskArgs& args) {
  if (!are_in_order(args)) return kOutOfOrder;
  int64_t* targets = args.row_counts;
  int64_t* spans = args.row_counts + args.sequences + 1;
  int64_t bad = args.total;
#pragma omp parallel num_threads(threads_for(args.total, kSerialTokens))
  {
#pragma omp for schedule(static) reduction(min : bad)
    for (int64_t row = 0; row < args.sequences; ++row) {
      const RowCounts counts = sample_row<OneThread, Token>(kAlone, args, row, draws_of(args, row));
      targets[row + 1] = counts.targets;
      spans[row + 1] = counts.spans;
      const int64_t bad_flat = args.starts[row] + counts.bad_place;
      if (counts.bad_place >= 0 && bad_flat < bad) bad = bad_flat;
    }
#pragma omp single
    {
      targets[0] = spans[0] = 0;
      for (int64_t row = 0; row < args.sequences; ++row) {
        targets[row + 1] += targets[row];
        spans[row + 1] += spans[row];
      }
    }
    if (bad == args.total && targets[args.sequences] <= args.target_capacity) {
      // A row is copied with the padding before it right before its targets are written: while it is in the cache.
#pragma omp for schedule(static)
      for (int64_t row = 0; row < args.sequences; ++row) {
        copy_tokens<Token>(args, row > 0 ? args.ends[row - 1] : 0, args.ends[row]);
        emit_row<OneThread, Token>(kAlone, args, row, draws_of(args, row));
      }
    }
  }
  if (bad < args.total) return bad;
  if (targets[args.sequences] > args.target_capacity) return kCapacityExceeded;
  copy_tokens<Token>(args, args.sequences > 0 ? args.ends[args.sequences - 1] : 0, args.total);
  fill_unused(args, targets[args.sequences], spans[args.sequences]);
  return -1;
}

int64_t span_mask(const SpanMaskArgs& args, const Place&) {
  return args.wide_tokens ? span_mask_as<int64_t>(args) : span_mask_as<int32_t>(args);
}

template <class T>
void gather_boundaries_as(const BoundaryArgs& args) {
  const T* hidden = static_cast<const T*>(args.hidden);
  T* out = static_cast<T*>(args.out);
  const int64_t size = args.hidden_size;
#pragma omp parallel for num_threads(threads_for(args.spans* size, kSerialElements))
  for (int64_t s = 0; s < args.spans; ++s) {
    T* pair = out + 2 * s * size;
    if (has_boundaries(args, s)) {
      memcpy(pair, hidden + args.span_left[s] * size, sizeof(T) * size_t(size));
      memcpy(pair + size, hidden + args.span_right[s] * size, sizeof(T) * size_t(size));
    } else {
      memset(pair, 0, 2 * sizeof(T) * size_t(size));
    }
  }
}

// A token is the left boundary of at most one span and the right boundary of at most one, so all left rows can be
// stored at once and then all right rows added at once: no two threads meet, and the order of the sum is fixed.
template <class T>
void gather_boundaries_backward_as(const BoundaryArgs& args) {
  const T* grad_pairs = static_cast<const T*>(args.hidden);
  T* grad_hidden = static_cast<T*>(args.out);
  const int64_t size = args.hidden_size;
#pragma omp parallel num_threads(threads_for(args.tokens* size, kSerialElements))
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < args.tokens; ++t) memset(grad_hidden + t * size, 0, sizeof(T) * size_t(size));
#pragma omp for schedule(static)
    for (int64_t s = 0; s < args.spans; ++s) {
      if (!has_boundaries(args, s)) continue;
      memcpy(grad_hidden + args.span_left[s] * size, grad_pairs + 2 * s * size, sizeof(T) * size_t(size));
    }
#pragma omp for schedule(static)
    for (int64_t s = 0; s < args.spans; ++s) {
      if (!has_boundaries(args, s)) continue;
      T* row = grad_hidden + args.span_right[s] * size;
      const T* add = grad_pairs + (2 * s + 1) * size;
      SPANBERT_SIMD
      for (int64_t h = 0; h < size; ++h) row[h] = store<T>(load(row[h]) + load(add[h]));
    }
  }
}

template <class T>
void gelu_layer_norm_as(const GeluLayerNormArgs& args) {
#pragma omp parallel num_threads(threads_for(args.rows* args.hidden_size, kSerialElements))
  {
    const Scratch<working_t<T>> scratch(kForwardArrays * args.hidden_size);
    const WholeRow columns{kAlone, args.hidden_size};
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.rows; ++row) gelu_layer_norm_at<T>(columns, args, row, scratch.data());
  }
}

template <class T>
void gelu_layer_norm_backward_as(const GeluLayerNormBackwardArgs& args) {
  using W = working_t<T>;
  const int64_t size = args.hidden_size, chunks = (args.rows + kRowsPerChunk - 1) / kRowsPerChunk;
#pragma omp parallel num_threads(threads_for(args.rows* size, kSerialElements))
  {
    const Scratch<W> scratch(kBackwardArrays * size);
    const WholeRow columns{kAlone, size};
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      gelu_layer_norm_backward_chunk<T>(columns, args, chunk, scratch.data());
    }
  }
  const W* partials = static_cast<const W*>(args.partials);
  sum_chunks(partials, chunks, 3 * size, size, static_cast<W*>(args.grad_weight));
  sum_chunks(partials + size, chunks, 3 * size, size, static_cast<W*>(args.grad_bias));
  sum_chunks(partials + 2 * size, chunks, 3 * size, size, static_cast<W*>(args.grad_x_sum));
}

template <class T>
void sbo_first_layer_as(const SboFirstLayerArgs& args) {
#pragma omp parallel num_threads(threads_for(args.targets* args.hidden_size, kSerialElements))
  {
    const Scratch<working_t<T>> scratch(kForwardArrays * args.hidden_size);
    const WholeRow columns{kAlone, args.hidden_size};
#pragma omp for schedule(static)
    for (int64_t k = 0; k < args.targets; ++k) sbo_first_layer_at<T>(columns, args, k, scratch.data());
  }
}

template <class T>
void sbo_first_layer_backward_as(const SboFirstLayerBackwardArgs& args) {
  using W = working_t<T>;
  const int64_t size = args.hidden_size, chunks = (args.spans + kSpansPerChunk - 1) / kSpansPerChunk;
  for (int64_t s = 0; s < args.spans; ++s) args.first_targets[s] = -1;
  for (int64_t k = args.targets - 1; k >= 0; --k) {
    if (args.sbo_ids[k] != kIgnore) args.first_targets[args.target_spans[k]] = k;
  }
#pragma omp parallel num_threads(threads_for(args.targets* size, kSerialElements))
  {
    const Scratch<W> scratch(kBackwardArrays * size);
    const WholeRow columns{kAlone, size};
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      sbo_first_layer_backward_chunk<T>(columns, args, chunk, scratch.data());
    }
  }
  const W* partials = static_cast<const W*>(args.partials);
  const int64_t stride = (2 + args.positions) * size;
  sum_chunks(partials, chunks, stride, size, static_cast<W*>(args.grad_weight));
  sum_chunks(partials + size, chunks, stride, size, static_cast<W*>(args.grad_bias));
  const Scratch<W> positions(args.positions * size);
  sum_chunks(partials + 2 * size, chunks, stride, args.positions * size, positions.data());
  T* out = static_cast<T*>(args.grad_position_rows);
  for (int64_t h = 0; h < args.positions * size; ++h) out[h] = store<T>(positions.data()[h]);
}

// Column sums of the gradient by head: threads own columns, rows are added in order. Sums of 64 rows are added to the
// whole, since one long running sum in fp32 would lose the digits of its late terms.
template <class T>
void bias_gradient(const CrossEntropyArgs& args) {
  using W = working_t<T>;
  constexpr int64_t kColumns = 1024;
  const T* grad = static_cast<const T*>(args.logits);
  const int64_t blocks = (args.vocab_size + kColumns - 1) / kColumns;
#pragma omp parallel for schedule(static) num_threads(threads_for(args.rows* args.vocab_size, kSerialElements))
  for (int64_t task = 0; task < blocks * args.heads; ++task) {
    const int64_t first = task / args.heads * kColumns, head = task % args.heads;
    const int64_t count = first + kColumns < args.vocab_size ? kColumns : args.vocab_size - first;
    W* out = static_cast<W*>(args.grad_bias) + head * args.vocab_size + first;
    W sums[kColumns];
    for (int64_t v = 0; v < count; ++v) out[v] = 0;
    for (int64_t base = 0; base < args.rows; base += kRowsPerSum) {
      for (int64_t v = 0; v < count; ++v) sums[v] = 0;
      for (int64_t row = base; row < base + kRowsPerSum && row < args.rows; ++row) {
        if (args.targets[row] == kIgnore || (args.head ? args.head[row] : 0) != head) continue;
        const T* values = grad + row * args.stride + first;
        SPANBERT_SIMD
        for (int64_t v = 0; v < count; ++v) sums[v] += load(values[v]);
      }
      for (int64_t v = 0; v < count; ++v) out[v] += sums[v];
    }
  }
}

template <class T>
void cross_entropy_rows_as(const CrossEntropyArgs& args) {
  using W = working_t<T>;
#pragma omp parallel num_threads(threads_for(args.rows* args.vocab_size, kSerialElements))
  {
    const Scratch<W> scratch(kKeepsInPlace<T> ? 0 : args.vocab_size);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.rows; ++row) {
      static_cast<W*>(args.losses)[row] = cross_entropy_row<T>(kAlone, args, row, scratch.data());
    }
  }
  if (args.grad_bias) bias_gradient<T>(args);
}

SPANBERT_BY_DTYPE(gather_boundaries, BoundaryArgs)
SPANBERT_BY_DTYPE(gather_boundaries_backward, BoundaryArgs)
SPANBERT_BY_DTYPE(gelu_layer_norm, GeluLayerNormArgs)
SPANBERT_BY_DTYPE(gelu_layer_norm_backward, GeluLayerNormBackwardArgs)
SPANBERT_BY_DTYPE(sbo_first_layer, SboFirstLayerArgs)
SPANBERT_BY_DTYPE(sbo_first_layer_backward, SboFirstLayerBackwardArgs)
SPANBERT_BY_DTYPE(cross_entropy_rows, CrossEntropyArgs)

}  // namespace

const CpuOperations kOperations = {
    {
        span_mask,
        gather_boundaries,
        gather_boundaries_backward,
        gelu_layer_norm,
        gelu_layer_norm_backward,
        sbo_first_layer,
        sbo_first_layer_backward,
        cross_entropy_rows,
        dropout_norm,
        dropout_norm_backward,
    },
    attention_weights,
    attention_weights_backward,
};

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
