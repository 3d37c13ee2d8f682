// Residual connections on the CPU: rows forward, chunks of rows backward.
#include "rows/dropout_norm.h"

#include "cpu/loops.h"

namespace spanbert {
namespace SPANBERT_VARIANT {
namespace {

// What a thread needs for a row.
template <class W>
struct RowScratch {
  const Scratch<W> values;
  const Scratch<uint16_t> drawn;

  explicit RowScratch(int64_t size) : values(size), drawn(draw_columns(size)) {}
  StridedColumns<OneThread, W> columns(int64_t size) const { return {kAlone, size, values.data(), drawn.data()}; }
};

template <Drop kDrop, class X, class S>
void forward_as(const DropoutNormArgs& args) {
#pragma omp parallel num_threads(threads_for(args.rows* args.hidden_size, kSerialElements))
  {
    const RowScratch<working_t<S>> scratch(args.hidden_size);
    auto columns = scratch.columns(args.hidden_size);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.rows; ++row) dropout_norm_row<kDrop, X, S>(columns, args, row);
  }
}

template <Drop kDrop, class X, class S>
void backward_as(const DropoutNormArgs& args) {
  using W = working_t<S>;
  const int64_t size = args.hidden_size, height = norm_rows_per_chunk(args.rows);
  const int64_t chunks = (args.rows + height - 1) / height;
  W* partials = static_cast<W*>(args.partials);
#pragma omp parallel num_threads(threads_for(args.rows* size, kSerialElements))
  {
    const RowScratch<W> scratch(size);
    auto columns = scratch.columns(size);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      W* parameters = partials + chunk * 2 * size;
      dropout_norm_backward_chunk<kDrop, X, S>(columns, args, chunk, 0, 1, parameters);
    }
  }
  sum_chunks(partials, chunks, 2 * size, 2 * size, static_cast<W*>(args.grad_parameters));
}

template <class X, class S>
void forward_rows(const DropoutNormArgs& args) {
  if (args.mask_threshold == 0) return forward_as<Drop::kNowhere, X, S>(args);
  return args.drop_output ? forward_as<Drop::kOutput, X, S>(args) : forward_as<Drop::kInput, X, S>(args);
}

template <class X, class S>
void backward_rows(const DropoutNormArgs& args) {
  if (args.mask_threshold == 0) return backward_as<Drop::kNowhere, X, S>(args);
  return args.drop_output ? backward_as<Drop::kOutput, X, S>(args) : backward_as<Drop::kInput, X, S>(args);
}

}  // namespace

// x has the stream's dtype or is a 16-bit branch of an fp32 stream.
#define SPANBERT_BY_STREAM(name, run)                                                          \
  void name(const DropoutNormArgs& args, const Place&) {                                       \
    switch (args.stream_dtype) {                                                               \
      case Dtype::kFloat64: return run<double, double>(args);                                  \
      case Dtype::kBFloat16: return run<bf16, bf16>(args);                                     \
      case Dtype::kFloat16: return run<fp16, fp16>(args);                                      \
      case Dtype::kFloat32: break;                                                             \
    }                                                                                          \
    if (args.x_dtype == Dtype::kBFloat16) return run<bf16, float>(args);                       \
    return args.x_dtype == Dtype::kFloat16 ? run<fp16, float>(args) : run<float, float>(args); \
  }
SPANBERT_BY_STREAM(dropout_norm, forward_rows)
SPANBERT_BY_STREAM(dropout_norm_backward, backward_rows)

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
