// The Python module: addresses and sizes in, nothing else. Shapes, dtypes and devices are checked by the callers, which
// are the operations of spanbert_ext alone.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "build_facts.h"
#include "cpu/choice.h"
#include "ops.h"
#include "rows/heads.h"
#include "rows/pruning.h"

namespace py = pybind11;

namespace spanbert {
namespace {

const CpuBuild kCpu = choose_cpu();

const Operations& operations_at(const Place& place) {
  if (place.device < 0) return *kCpu.operations;
#if defined(SPANBERT_WITH_CUDA) || defined(SPANBERT_EMULATOR)
  return device::kOperations;
#else
  throw std::runtime_error("spanbert_ext was built without CUDA");
#endif
}

const CpuOperations& cpu_operations_at(const Place& place) {
  if (place.device >= 0) throw std::runtime_error("spanbert_ext: attention weights are computed on the CPU only");
  return *kCpu.operations;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

SamplerSettings settings_of(uint64_t seed, int64_t mask_id, std::pair<int64_t, int64_t> ratio, int64_t min_words,
                            const std::vector<uint64_t>& length_thresholds, uint64_t mask_threshold,
                            uint64_t random_threshold, bool per_piece, int64_t max_span_targets,
                            uint64_t candidate_threshold, bool internal_endpoints) {
  if (length_thresholds.empty() || length_thresholds.size() > size_t(kMaxLengths)) {
    throw std::invalid_argument("max_words - min_words + 1 must lie in [1, " + std::to_string(kMaxLengths) + "]; got " +
                                std::to_string(length_thresholds.size()));
  }
  SamplerSettings s{};
  s.seed = seed;
  s.mask_id = mask_id;
  s.ratio_numerator = ratio.first;
  s.ratio_denominator = ratio.second;
  s.min_words = min_words;
  s.max_span_targets = max_span_targets;
  s.mask_threshold = mask_threshold;
  s.random_threshold = random_threshold;
  for (size_t i = 0; i < length_thresholds.size(); ++i) s.length_thresholds[i] = length_thresholds[i];
  s.num_lengths = int(length_thresholds.size());
  s.per_piece = per_piece;
  s.candidate_threshold = candidate_threshold;
  s.internal_endpoints = internal_endpoints;
  return s;
}

// outputs: input_ids, labels, target_{positions,ids,spans,offsets}, sbo_ids, span_left, span_right, dropped_spans.
int64_t span_mask(const Place& place, const SamplerSettings& settings, bool wide_tokens, uintptr_t tokens,
                  uintptr_t starts, uintptr_t ends, uintptr_t sample_ids, uintptr_t epoch, uintptr_t vocabulary,
                  uintptr_t random_tokens, uintptr_t candidates, std::vector<uintptr_t> outputs, uintptr_t bitmaps,
                  uintptr_t row_counts, std::vector<int64_t> sizes) {
  SpanMaskArgs a{};
  a.settings = settings;
  a.tokens = at<void>(tokens);
  a.wide_tokens = wide_tokens;
  a.starts = at<int64_t>(starts);
  a.ends = at<int64_t>(ends);
  a.sample_ids = at<int64_t>(sample_ids);
  a.epoch = at<int64_t>(epoch);
  a.vocabulary = at<uint8_t>(vocabulary);
  a.random_tokens = at<int64_t>(random_tokens);
  a.candidates = at<uint8_t>(candidates);
  a.total = sizes.at(0);
  a.sequences = sizes.at(1);
  a.vocab_size = sizes.at(2);
  a.random_count = sizes.at(3);
  a.target_capacity = sizes.at(4);
  a.span_capacity = sizes.at(5);
  a.input_ids = at<void>(outputs.at(0));
  a.labels = at<int64_t>(outputs.at(1));
  a.target_positions = at<int64_t>(outputs.at(2));
  a.target_ids = at<int64_t>(outputs.at(3));
  a.target_spans = at<int64_t>(outputs.at(4));
  a.target_offsets = at<int64_t>(outputs.at(5));
  a.sbo_ids = at<int64_t>(outputs.at(6));
  a.span_left = at<int64_t>(outputs.at(7));
  a.span_right = at<int64_t>(outputs.at(8));
  a.dropped_spans = at<int64_t>(outputs.at(9));
  a.bitmaps = at<uint64_t>(bitmaps);
  a.row_counts = at<int64_t>(row_counts);
  const py::gil_scoped_release unlocked;
  return operations_at(place).span_mask(a, place);
}

BoundaryArgs boundary_args(int dtype, uintptr_t in, uintptr_t left, uintptr_t right, uintptr_t out, int64_t tokens,
                           int64_t spans, int64_t hidden_size) {
  return {Dtype(dtype), at<void>(in), at<int64_t>(left), at<int64_t>(right), at<void>(out), tokens, spans, hidden_size};
}

// The scale is that of the probability that 16-bit draws give, so that the expectation is exact; if all is dropped, 0.
double keep_scale_of(uint32_t mask_threshold) {
  return mask_threshold < 65536 ? 65536.0 / (65536.0 - mask_threshold) : 0.0;
}

DropoutNormArgs dropout_norm_args(std::pair<int, int> dtypes, uint32_t site, uint32_t mask_threshold, bool drop_output,
                                  int64_t rows, int64_t hidden_size) {
  DropoutNormArgs a{};
  a.x_dtype = Dtype(dtypes.first);
  a.stream_dtype = Dtype(dtypes.second);
  a.site = site;
  a.mask_threshold = mask_threshold;
  a.keep_scale = keep_scale_of(mask_threshold);
  a.drop_output = drop_output;
  a.rows = rows;
  a.hidden_size = hidden_size;
  return a;
}

// inputs: x, residual, weight, bias, seed; outputs: out, mean, rstd.
void dropout_norm(const Place& place, std::pair<int, int> dtypes, std::vector<uintptr_t> inputs, uint32_t site,
                  uint32_t mask_threshold, bool drop_output, double eps, std::vector<uintptr_t> outputs, int64_t rows,
                  int64_t hidden_size) {
  DropoutNormArgs a = dropout_norm_args(dtypes, site, mask_threshold, drop_output, rows, hidden_size);
  a.x = at<void>(inputs.at(0));
  a.residual = at<void>(inputs.at(1));
  a.weight = at<void>(inputs.at(2));
  a.bias = at<void>(inputs.at(3));
  a.seed = at<int64_t>(inputs.at(4));
  a.eps = eps;
  a.out = at<void>(outputs.at(0));
  a.mean = at<void>(outputs.at(1));
  a.rstd = at<void>(outputs.at(2));
  const py::gil_scoped_release unlocked;
  operations_at(place).dropout_norm(a, place);
}

// inputs: grad_out, x, residual, weight, mean, rstd, seed; outputs: grad_x, grad_residual, grad_parameters, partials.
void dropout_norm_backward(const Place& place, std::pair<int, int> dtypes, std::vector<uintptr_t> inputs, uint32_t site,
                           uint32_t mask_threshold, bool drop_output, std::vector<uintptr_t> outputs, int64_t rows,
                           int64_t hidden_size) {
  DropoutNormArgs a = dropout_norm_args(dtypes, site, mask_threshold, drop_output, rows, hidden_size);
  a.grad_out = at<void>(inputs.at(0));
  a.x = at<void>(inputs.at(1));
  a.residual = at<void>(inputs.at(2));
  a.weight = at<void>(inputs.at(3));
  a.mean = at<void>(inputs.at(4));
  a.rstd = at<void>(inputs.at(5));
  a.seed = at<int64_t>(inputs.at(6));
  a.grad_x = at<void>(outputs.at(0));
  a.grad_residual = at<void>(outputs.at(1));
  a.grad_parameters = at<void>(outputs.at(2));
  a.partials = at<void>(outputs.at(3));
  const py::gil_scoped_release unlocked;
  operations_at(place).dropout_norm_backward(a, place);
}

// sequences: queries, keys; sizes: N, heads, Lq, Lk.
AttentionWeightsArgs attention_weights_args(int dtype, const std::vector<uintptr_t>& sequences, uint32_t mask_threshold,
                                            double scale, const std::vector<int64_t>& sizes) {
  AttentionWeightsArgs a{};
  a.dtype = Dtype(dtype);
  a.queries = at<int64_t>(sequences.at(0));
  a.keys = at<int64_t>(sequences.at(1));
  a.mask_threshold = mask_threshold;
  a.scale = scale;
  a.keep_scale = keep_scale_of(mask_threshold);
  a.heads = sizes.at(1);
  a.height = sizes.at(2);
  a.width = sizes.at(3);
  a.rows = sizes.at(0) * a.heads * a.height;
  return a;
}

void attention_weights(const Place& place, int dtype, uintptr_t scores, std::vector<uintptr_t> sequences,
                       uintptr_t first_queries, uintptr_t seed, uint32_t site, uint32_t mask_threshold, double scale,
                       uintptr_t weights, uintptr_t signed_probs, std::vector<int64_t> sizes) {
  AttentionWeightsArgs a = attention_weights_args(dtype, sequences, mask_threshold, scale, sizes);
  a.scores = at<void>(scores);
  a.first_queries = at<int64_t>(first_queries);
  a.seed = at<int64_t>(seed);
  a.site = site;
  a.weights = at<void>(weights);
  a.signed_probs = at<void>(signed_probs);
  const py::gil_scoped_release unlocked;
  cpu_operations_at(place).attention_weights(a, place);
}

void attention_weights_backward(const Place& place, int dtype, uintptr_t grad_weights, uintptr_t signed_probs,
                                std::vector<uintptr_t> sequences, uint32_t mask_threshold, double scale,
                                uintptr_t grad_scores, uintptr_t weights, std::vector<int64_t> sizes) {
  AttentionWeightsArgs a = attention_weights_args(dtype, sequences, mask_threshold, scale, sizes);
  a.grad_weights = at<void>(grad_weights);
  a.signed_probs = at<void>(signed_probs);
  a.grad_scores = at<void>(grad_scores);
  a.weights = at<void>(weights);
  const py::gil_scoped_release unlocked;
  cpu_operations_at(place).attention_weights_backward(a, place);
}

}  // namespace

// Whether every index of an SBO batch on the CPU lies in its table, so that the head need not ask torch four times.
bool sbo_indices_fit(uintptr_t left, uintptr_t right, uintptr_t target_spans, uintptr_t target_offsets,
                     uintptr_t sbo_ids, int64_t tokens, int64_t spans, int64_t targets, int64_t positions) {
  bool fit = true;
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t first = at<int64_t>(left)[s], last = at<int64_t>(right)[s];
    if (last > 0) fit &= first >= 0 && first < tokens && last < tokens;
  }
  for (int64_t k = 0; k < targets; ++k) {
    if (at<int64_t>(sbo_ids)[k] == kIgnore) continue;
    const int64_t span = at<int64_t>(target_spans)[k], offset = at<int64_t>(target_offsets)[k];
    fit &= span >= 0 && span < spans && offset >= 0 && offset < positions;
  }
  return fit;
}

// strides: bytes from a token of the stream to the next, and from a head to the next; sizes: n, heads, length, bytes of
// a row.
void move_heads(bool pad, uintptr_t stream, std::pair<int64_t, int64_t> strides, uintptr_t starts, uintptr_t counts,
                uintptr_t padded, std::vector<int64_t> sizes) {
  const HeadRows rows{at<char>(stream), strides.first, strides.second, at<int64_t>(starts), at<int64_t>(counts),
                      at<char>(padded), sizes.at(0),   sizes.at(1),    sizes.at(2),         sizes.at(3)};
  const py::gil_scoped_release unlocked;
  rows.move(pad);
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operations of spanbert_ext over raw addresses; called by its operations only.";
#ifdef SPANBERT_WITH_CUDA
  m.attr("has_cuda") = true;
  m.attr("cuda_architectures") = SPANBERT_CUDA_ARCHITECTURES;
#else
  m.attr("has_cuda") = false;
  m.attr("cuda_architectures") = "";
#endif
#ifdef SPANBERT_EMULATOR
  m.attr("emulates_cuda") = true;  // a build for tests: operations at device 0 run the CUDA sources on CPU memory
#endif
  m.attr("no_cuda_reason") = SPANBERT_NO_CUDA_REASON;
  m.attr("no_openmp_reason") = SPANBERT_NO_OPENMP_REASON;
  m.attr("cpu_isa") = kCpu.name;
  m.attr("capacity_exceeded") = kCapacityExceeded;
  m.attr("out_of_order") = kOutOfOrder;
  m.attr("max_lengths") = kMaxLengths;
  m.attr("rows_per_chunk") = kRowsPerChunk;
  m.attr("spans_per_chunk") = kSpansPerChunk;
  m.attr("column_rows_per_chunk") = kColumnRowsPerChunk;
  m.def("norm_rows_per_chunk", &norm_rows_per_chunk);

  py::class_<Place>(m, "Place").def(py::init([](int device, uintptr_t stream) {
    return Place{device, at<void>(stream)};
  }));
  py::class_<SamplerSettings>(m, "SamplerSettings").def(py::init(&settings_of));

  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("span_mask", &span_mask);
  m.def("dropout_norm", &dropout_norm);
  m.def("dropout_norm_backward", &dropout_norm_backward);
  m.def("attention_weights", &attention_weights);
  m.def("attention_weights_backward", &attention_weights_backward);
  m.def("move_heads", &move_heads);
  m.def("sbo_indices_fit", &sbo_indices_fit);
  m.def(
      "prune_spans",
      [](uintptr_t starts, uintptr_t ends, uintptr_t scores, int64_t candidates, int64_t length, int64_t keep,
         uintptr_t kept) {
        return prune_spans(
            {at<int64_t>(starts), at<int64_t>(ends), at<double>(scores), candidates, length, keep, at<int64_t>(kept)});
      },
      unlocked);
  m.def(
      "gather_boundaries",
      [](const Place& place, int dtype, uintptr_t hidden, uintptr_t left, uintptr_t right, uintptr_t out,
         int64_t tokens, int64_t spans, int64_t hidden_size) {
        operations_at(place).gather_boundaries(
            boundary_args(dtype, hidden, left, right, out, tokens, spans, hidden_size), place);
      },
      unlocked);
  m.def(
      "gather_boundaries_backward",
      [](const Place& place, int dtype, uintptr_t grad_pairs, uintptr_t left, uintptr_t right, uintptr_t grad_hidden,
         int64_t tokens, int64_t spans, int64_t hidden_size) {
        operations_at(place).gather_boundaries_backward(
            boundary_args(dtype, grad_pairs, left, right, grad_hidden, tokens, spans, hidden_size), place);
      },
      unlocked);
  m.def(
      "gelu_layer_norm",
      [](const Place& place, int dtype, uintptr_t x, uintptr_t row_ids, uintptr_t weight, uintptr_t bias, double eps,
         uintptr_t out, uintptr_t mean, uintptr_t rstd, int64_t rows, int64_t hidden_size) {
        operations_at(place).gelu_layer_norm(
            {Dtype(dtype), at<void>(x), at<int64_t>(row_ids), at<void>(weight), at<void>(bias), eps, at<void>(out),
             at<void>(mean), at<void>(rstd), rows, hidden_size},
            place);
      },
      unlocked);
  m.def(
      "gelu_layer_norm_backward",
      [](const Place& place, int dtype, uintptr_t grad_out, uintptr_t x, uintptr_t row_ids, uintptr_t weight,
         uintptr_t mean, uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias,
         uintptr_t grad_x_sum, uintptr_t partials, int64_t rows, int64_t hidden_size) {
        operations_at(place).gelu_layer_norm_backward(
            {Dtype(dtype), at<void>(grad_out), at<void>(x), at<int64_t>(row_ids), at<void>(weight), at<void>(mean),
             at<void>(rstd), at<void>(grad_x), at<void>(grad_weight), at<void>(grad_bias), at<void>(grad_x_sum),
             at<void>(partials), rows, hidden_size},
            place);
      },
      unlocked);
  m.def(
      "sbo_first_layer",
      [](const Place& place, int dtype, uintptr_t span_rows, uintptr_t position_rows, uintptr_t target_spans,
         uintptr_t target_offsets, uintptr_t sbo_ids, uintptr_t weight, uintptr_t bias, double eps, uintptr_t out,
         uintptr_t mean, uintptr_t rstd, int64_t targets, int64_t spans, int64_t positions, int64_t hidden_size) {
        operations_at(place).sbo_first_layer(
            {Dtype(dtype), at<void>(span_rows), at<void>(position_rows), at<int64_t>(target_spans),
             at<int64_t>(target_offsets), at<int64_t>(sbo_ids), at<void>(weight), at<void>(bias), eps, at<void>(out),
             at<void>(mean), at<void>(rstd), targets, spans, positions, hidden_size},
            place);
      },
      unlocked);
  m.def(
      "sbo_first_layer_backward",
      [](const Place& place, int dtype, uintptr_t grad_out, uintptr_t span_rows, uintptr_t position_rows,
         uintptr_t target_spans, uintptr_t target_offsets, uintptr_t sbo_ids, uintptr_t weight, uintptr_t mean,
         uintptr_t rstd, uintptr_t grad_span_rows, uintptr_t grad_position_rows, uintptr_t grad_weight,
         uintptr_t grad_bias, uintptr_t partials, uintptr_t first_targets, int64_t targets, int64_t spans,
         int64_t positions, int64_t hidden_size) {
        operations_at(place).sbo_first_layer_backward({Dtype(dtype),
                                                       at<void>(grad_out),
                                                       at<void>(span_rows),
                                                       at<void>(position_rows),
                                                       at<int64_t>(target_spans),
                                                       at<int64_t>(target_offsets),
                                                       at<int64_t>(sbo_ids),
                                                       at<void>(weight),
                                                       at<void>(mean),
                                                       at<void>(rstd),
                                                       at<void>(grad_span_rows),
                                                       at<void>(grad_position_rows),
                                                       at<void>(grad_weight),
                                                       at<void>(grad_bias),
                                                       at<void>(partials),
                                                       at<int64_t>(first_targets),
                                                       targets,
                                                       spans,
                                                       positions,
                                                       hidden_size},
                                                      place);
      },
      unlocked);
  m.def(
      "cross_entropy_rows",
      [](const Place& place, int dtype, uintptr_t logits, uintptr_t targets, uintptr_t bias, uintptr_t head,
         uintptr_t scale, uintptr_t losses, uintptr_t grad_bias, uintptr_t partials, int64_t rows, int64_t vocab_size,
         int64_t stride, int64_t heads, int64_t bias_stride) {
        operations_at(place).cross_entropy_rows(
            {Dtype(dtype), at<void>(logits), at<int64_t>(targets), at<void>(bias), at<int64_t>(head), at<void>(scale),
             at<void>(losses), at<void>(grad_bias), at<void>(partials), rows, vocab_size, stride, heads, bias_stride},
            place);
      },
      unlocked);
}

}  // namespace spanbert
