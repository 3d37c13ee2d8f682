// Softmax and dropout of attention scores on the CPU: a row of scores a turn.
#include "rows/attention.h"

#include "cpu/loops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

template <class T>
void attention_weights_as(const AttentionWeightsArgs& args) {
#pragma omp parallel num_threads(threads_for(args.rows* args.width, kSerialElements))
  {
    const Scratch<working_t<T>> values(args.width);
    const Scratch<uint16_t> drawn(draw_columns(args.width));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.rows; ++row) {
      attention_weights_row<T>(kAlone, args, row, values.data(), drawn.data());
    }
  }
}

template <class T>
void attention_weights_backward_as(const AttentionWeightsArgs& args) {
#pragma omp parallel for schedule(static) num_threads(threads_for(args.rows* args.width, kSerialElements))
  for (int64_t row = 0; row < args.rows; ++row) attention_weights_backward_row<T>(kAlone, args, row);
}

}  // namespace

SPANBERT_BY_DTYPE(attention_weights, AttentionWeightsArgs)
SPANBERT_BY_DTYPE(attention_weights_backward, AttentionWeightsArgs)

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
