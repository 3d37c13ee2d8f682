// Arguments of every operation and the functions that run them: plain pointers, sizes and settings, no torch.
// Dimensions: T tokens, N sequences, K targets, S spans, P span positions, R rows, H hidden, V vocabulary.
#pragma once

#include <cstdint>

namespace spanbert {

enum class Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

constexpr int kMaxLengths = 256;  // span lengths max_words - min_words + 1; bounds the kernel's argument size
constexpr int64_t kIgnore = -100;
constexpr uint8_t kWordStart = 1, kSpecial = 2;
constexpr uint8_t kCandidateBegins = 1, kCandidateContinues = 2;  // marks of a piece in an annotation, 0 outside
// Parameter gradients are summed in chunks of this many rows or spans, then chunk by chunk in order: the result does
// not depend on the number of threads or blocks. The same tensors give the same bits. A copy may not: on a GPU, rows
// that begin between multiples of 16 bytes are read column by column and summed in another order than rows that do not.
// What torch allocates begins at such a multiple; a view need not.
constexpr int64_t kRowsPerChunk = 16;
constexpr int64_t kSpansPerChunk = 8;
constexpr int64_t kColumnRowsPerChunk = 512;
constexpr int64_t kRowsPerSum = 64;
// Faults that span_mask returns instead of a place.
constexpr int64_t kCapacityExceeded = -2;  // the budgets add up to more than target_capacity
constexpr int64_t kOutOfOrder = -3;        // starts and ends do not ascend inside the stream

struct SamplerSettings {
  uint64_t seed;
  int64_t mask_id;
  int64_t ratio_numerator, ratio_denominator;
  int64_t min_words;
  int64_t max_span_targets;                   // 0: spans have no boundaries
  uint64_t mask_threshold, random_threshold;  // in units of 2^-32, up to 2^32 inclusive
  uint64_t length_thresholds[kMaxLengths];
  int num_lengths;
  bool per_piece;
  uint64_t candidate_threshold;  // in units of 2^-32: a draw takes a candidate span, while there is one
  bool internal_endpoints;       // the boundaries of a span are its own first and last token
};

struct SpanMaskArgs {
  SamplerSettings settings;
  const void* tokens;  // [T] int64 or int32
  bool wide_tokens;
  const int64_t *starts, *ends, *sample_ids;  // [N]
  const int64_t* epoch;                       // [1]
  const uint8_t* vocabulary;                  // [V]
  const int64_t* random_tokens;               // [random_count]
  const uint8_t* candidates;                  // [T] marks of candidate spans, or null
  int64_t total, sequences, vocab_size, random_count, target_capacity, span_capacity;
  void* input_ids;                                                                   // [T]
  int64_t* labels;                                                                   // [T]
  int64_t *target_positions, *target_ids, *target_spans, *target_offsets, *sbo_ids;  // [K]
  int64_t *span_left, *span_right;                                                   // [S]
  int64_t* dropped_spans;                                                            // [1]
  uint64_t* bitmaps;    // [3, T / 64 + N + 1], with candidates [5, ...]
  int64_t* row_counts;  // [2, N + 1]: targets and spans of each sequence, then their running sums
};

// Forward: pairs of hidden rows. Backward: the same fields carry the gradients.
struct BoundaryArgs {
  Dtype dtype;
  const void* hidden;                     // [T, H]; in the backward pass grad_pairs [S, 2H]
  const int64_t *span_left, *span_right;  // [S]
  void* out;                              // [S, 2H]; in the backward pass grad_hidden [T, H]
  int64_t tokens, spans, hidden_size;
};

struct GeluLayerNormArgs {
  Dtype dtype;
  const void* x;              // [R, H]
  const int64_t* row_ids;     // [R], or null: rows of id -100 become zero and pass no gradient
  const void *weight, *bias;  // [H] working type
  double eps;
  void* out;          // [R, H]
  void *mean, *rstd;  // [R] working type
  int64_t rows, hidden_size;
};

struct GeluLayerNormBackwardArgs {
  Dtype dtype;
  const void *grad_out, *x;       // [R, H]
  const int64_t* row_ids;         // [R], or null
  const void* weight;             // [H] working type
  const void *mean, *rstd;        // [R]
  void* grad_x;                   // [R, H]
  void *grad_weight, *grad_bias;  // [H] working type
  void* grad_x_sum;               // [H] working type, sum of grad_x over the rows: the gradient of a bias added to x
  void* partials;                 // [chunks, 3, H] working type
  int64_t rows, hidden_size;
};

// LN(dropout(x) + residual), or dropout(LN(x + residual)) with drop_output. The stream is what residual, out and their
// gradients have in common; x may be narrower. mask_threshold 0: nothing is dropped and `seed` is not read.
struct DropoutNormArgs {
  Dtype x_dtype, stream_dtype;
  const void* x;                  // [R, H] x_dtype
  const void* residual;           // [R, H] stream_dtype
  const void *weight, *bias;      // [H] working type
  const int64_t* seed;            // [1]
  uint32_t site, mask_threshold;  // a column is dropped when its 16-bit draw is below the threshold, 65536 drops all
  bool drop_output;
  double keep_scale, eps;  // keep_scale: 1 / probability of keeping
  void* out;               // [R, H] stream_dtype
  void *mean, *rstd;       // [R] working type
  int64_t rows, hidden_size;

  // The rest belongs to the backward pass, where mean and rstd are read and out and bias are not used.
  const void* grad_out;   // [R, H] stream_dtype
  void* grad_x;           // [R, H] x_dtype, or null: equal to grad_residual
  void* grad_residual;    // [R, H] stream_dtype
  void* grad_parameters;  // [2, H] working type: of weight and of bias
  void* partials;         // [chunks, 2, H] working type
};

// Rows of a chunk of dropout_norm: few rows still make enough chunks to fill a device.
constexpr int64_t norm_rows_per_chunk(int64_t rows) { return rows < 16384 ? 16 : 64; }

// Softmax of scale * scores over the keys of a sequence, then dropout. Lq and Lk are what sequences are padded to.
struct AttentionWeightsArgs {
  Dtype dtype;
  const void* scores;             // [N, heads, Lq, Lk]
  const int64_t* first_queries;   // [N] a sequence's first query among all, for the draws; null: no draws
  const int64_t *queries, *keys;  // [N]
  const int64_t* seed;            // [1], or null: nothing is dropped
  uint32_t site, mask_threshold;  // as in DropoutNormArgs
  double scale, keep_scale;       // keep_scale: 1 / probability of keeping
  void* weights;                  // [N, heads, Lq, Lk] what the values are multiplied with
  // [N, heads, Lq, Lk] probabilities before dropout, dropped ones negated; the forward pass of no dropout takes null.
  void* signed_probs;
  int64_t rows, heads, height, width;  // N * heads * Lq, heads, Lq, Lk

  // The rest belongs to the backward pass, which reads signed_probs and writes the weights again.
  const void* grad_weights;  // [N, heads, Lq, Lk]
  void* grad_scores;         // [N, heads, Lq, Lk], may be grad_weights
};

struct SboFirstLayerArgs {
  Dtype dtype;
  const void *span_rows, *position_rows;                   // [S, H], [P, H]
  const int64_t *target_spans, *target_offsets, *sbo_ids;  // [K]
  const void *weight, *bias;                               // [H] working type
  double eps;
  void* out;          // [K, H]
  void *mean, *rstd;  // [K] working type
  int64_t targets, spans, positions, hidden_size;
};

struct SboFirstLayerBackwardArgs {
  Dtype dtype;
  const void* grad_out;                                    // [K, H]
  const void *span_rows, *position_rows;                   // [S, H], [P, H]
  const int64_t *target_spans, *target_offsets, *sbo_ids;  // [K]
  const void* weight;                                      // [H] working type
  const void *mean, *rstd;                                 // [K]
  void *grad_span_rows, *grad_position_rows;               // [S, H], [P, H]
  void *grad_weight, *grad_bias;                           // [H] working type
  void* partials;                                          // [chunks, 2 + P, H] working type
  int64_t* first_targets;                                  // [S]
  int64_t targets, spans, positions, hidden_size;
};

struct CrossEntropyArgs {
  Dtype dtype;
  void* logits;            // [R, stride]; replaced by its gradient when `scale` is given
  const int64_t* targets;  // [R]
  const void* bias;        // [heads, bias_stride] working type, or null
  const int64_t* head;     // [R], or null: head 0
  const void* scale;       // [R] working type: weight of each row's loss in the scalar that is differentiated, or null
  void* losses;            // [R] working type
  void* grad_bias;         // [heads, V] working type, or null
  void* partials;          // [chunks, heads, V] working type, or null
  int64_t rows, vocab_size, stride, heads, bias_stride;
};

// Where an operation runs: a CUDA device and stream, or the CPU (device < 0).
struct Place {
  int device;
  void* stream;
};

// The operations of one back end. span_mask returns the smallest flat index of a token outside the vocabulary, -1 if
// all is well, or a negative fault (on CUDA always -1: the kernels assert, reading the answer back would stall the
// stream).
struct Operations {
  int64_t (*span_mask)(const SpanMaskArgs&, const Place&);
  void (*gather_boundaries)(const BoundaryArgs&, const Place&);
  void (*gather_boundaries_backward)(const BoundaryArgs&, const Place&);
  void (*gelu_layer_norm)(const GeluLayerNormArgs&, const Place&);
  void (*gelu_layer_norm_backward)(const GeluLayerNormBackwardArgs&, const Place&);
  void (*sbo_first_layer)(const SboFirstLayerArgs&, const Place&);
  void (*sbo_first_layer_backward)(const SboFirstLayerBackwardArgs&, const Place&);
  void (*cross_entropy_rows)(const CrossEntropyArgs&, const Place&);
  void (*dropout_norm)(const DropoutNormArgs&, const Place&);
  void (*dropout_norm_backward)(const DropoutNormArgs&, const Place&);
};

// On a GPU attention is torch's.
struct CpuOperations : Operations {
  void (*attention_weights)(const AttentionWeightsArgs&, const Place&);
  void (*attention_weights_backward)(const AttentionWeightsArgs&, const Place&);
};

// One table for every instruction set the CPU code was built for, and one for CUDA when it was built in.
namespace baseline {
extern const CpuOperations kOperations;
}
namespace avx2 {
extern const CpuOperations kOperations;
}
namespace avx512 {
extern const CpuOperations kOperations;
}
namespace device {
extern const Operations kOperations;
}

}  // namespace spanbert
