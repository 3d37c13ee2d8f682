// The row of softmax.h for a GPU: read in pieces of 16 bytes, once, with a running maximum and a sum that is
// rescaled whenever the maximum rises. Everything is in powers of two: with c the largest z * log2(e) and t = z *
// log2(e) - c in one rounding,
//   loss = ln 2 * (log2(sum of 2^t) - t[target]),   gradient = scale * (2^t - onehot(target) * sum) / sum,
// so the rounding of c drops out of both, and a value costs one multiply-add and one ex2 in each of the two passes.
// |z| may not exceed 2.3e38, where z * log2(e) leaves fp32: such a row gives NaN.
#pragma once

#include "common/portable.h"
#include "common/vectors.h"
#include "ops.h"

#ifdef __CUDACC__
#define SPANBERT_UNROLL _Pragma("unroll")
#else
#define SPANBERT_UNROLL
#endif

namespace spanbert {
namespace SPANBERT_VARIANT {

using Piece = Vector;

// Values that do not begin at a multiple of 16 bytes come one by one and give the same bits.
template <class T>
SPANBERT_HD Piece gather_piece(const T* from) {
  struct {
    T values[16 / sizeof(T)];
  } piece;
  SPANBERT_UNROLL
  for (int i = 0; i < 16 / int(sizeof(T)); ++i) piece.values[i] = from[i];
  return bit_cast<Piece>(piece);
}

template <bool kAligned, Cache kCache, class T>
SPANBERT_HD Piece read_piece(const T* from) {
  if constexpr (kAligned) {
    return read_vector<kCache>(from);
  } else {
    return gather_piece(from);
  }
}

template <bool kAligned, class T>
SPANBERT_HD void write_piece(T* to, const Piece& piece) {
  if constexpr (kAligned) {
    write_vector(to, piece);
  } else {
    struct Values {
      T values[16 / sizeof(T)];
    };
    const Values all = bit_cast<Values>(piece);
    SPANBERT_UNROLL
    for (int i = 0; i < 16 / int(sizeof(T)); ++i) to[i] = all.values[i];
  }
}

SPANBERT_HD void unpack(const Piece& piece, float (&values)[4], float) {
  SPANBERT_UNROLL
  for (int i = 0; i < 4; ++i) values[i] = bit_cast<float>(piece.words[i]);
}
SPANBERT_HD void unpack(const Piece& piece, double (&values)[2], double) {
  SPANBERT_UNROLL
  for (int i = 0; i < 2; ++i) {
    values[i] = bit_cast<double>(uint64_t(piece.words[2 * i]) | uint64_t(piece.words[2 * i + 1]) << 32);
  }
}
template <class Half>
SPANBERT_HD void unpack(const Piece& piece, float (&values)[8], Half) {
  SPANBERT_UNROLL
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = load(Half{uint16_t(piece.words[i])});
    values[2 * i + 1] = load(Half{uint16_t(piece.words[i] >> 16)});
  }
}

SPANBERT_HD Piece pack(const float (&values)[4], float) {
  return {{bit_cast<uint32_t>(values[0]), bit_cast<uint32_t>(values[1]), bit_cast<uint32_t>(values[2]),
           bit_cast<uint32_t>(values[3])}};
}
SPANBERT_HD Piece pack(const double (&values)[2], double) {
  const uint64_t first = bit_cast<uint64_t>(values[0]), second = bit_cast<uint64_t>(values[1]);
  return {{uint32_t(first), uint32_t(first >> 32), uint32_t(second), uint32_t(second >> 32)}};
}
template <class Half>
SPANBERT_HD Piece pack(const float (&values)[8], Half half) {
  return {{pack_pair(values[0], values[1], half), pack_pair(values[2], values[3], half),
           pack_pair(values[4], values[5], half), pack_pair(values[6], values[7], half)}};
}

SPANBERT_HD float larger(float a, float b) { return fmaxf(a, b); }  // one instruction; NaN shows in the sum
SPANBERT_HD double larger(double a, double b) { return fmax(a, b); }
SPANBERT_HD float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
SPANBERT_HD double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <class W>
constexpr W kLog2E = W(1.44269504088896340736);

// Halves onto halves: chains of three instead of seven dependent operations for eight values.
template <class W, int kCount, class Combine>
SPANBERT_HD W folded(const W (&values)[kCount], const Combine& combine) {
  W left[kCount];
  SPANBERT_UNROLL
  for (int i = 0; i < kCount; ++i) left[i] = values[i];
  SPANBERT_UNROLL
  for (int step = kCount / 2; step > 0; step /= 2) {
    SPANBERT_UNROLL
    for (int i = 0; i < step; ++i) left[i] = combine(left[i], left[i + step]);
  }
  return left[0];
}

// The values of one thread's row part so far: `shift` is the largest z * log2(e), `total` the sum of 2^(z * log2(e) -
// shift). It starts at a finite shift, so that rows and threads of -inf alone sum to 0 without inf - inf.
template <class W>
struct RunningSum {
  W shift = -W(1e38), total = 0;

  template <int kCount>
  SPANBERT_HD void add(const W (&z)[kCount]) {
    const W top = folded(z, [](W a, W b) { return larger(a, b); });
    const W raised = larger(shift, top * kLog2E<W>);
    W powers[kCount];
    SPANBERT_UNROLL
    for (int i = 0; i < kCount; ++i) powers[i] = power_of_two(multiply_add(z[i], kLog2E<W>, -raised));
    const W sum = folded(powers, [](W a, W b) { return a + b; });
    total = multiply_add(total, power_of_two(shift - raised), sum);
    shift = raised;
  }
};

// What the group agrees on: lanes first, then warps, in the order of its reductions.
template <class Group, class W>
SPANBERT_HD RunningSum<W> merged(const Group& g, const RunningSum<W>& own) {
  const W shift = g.max(own.shift);
  return {shift, g.sum(product(own.total, power_of_two(own.shift - shift)))};
}

// A row that is not ignored. Thread r has the pieces r, r + size, ...; with kHeld the group's threads hold all whole
// pieces of the row, kBatch each, from the first pass to the second, otherwise the row is read twice. Values behind the
// last whole piece are read one by one.
template <class T, int kBatch, bool kHeld, bool kAligned, bool kBias, class Group>
SPANBERT_HD working_t<T> cross_entropy_of_pieces(const Group& g, const CrossEntropyArgs& args, int64_t row) {
  using W = working_t<T>;
  constexpr int kWidth = 16 / int(sizeof(T)), kBiasWidth = 16 / int(sizeof(W));
  T* logits = in_registers(static_cast<T*>(args.logits) + row * args.stride);
  const W* bias = nullptr;
  if constexpr (kBias) {
    bias = in_registers(static_cast<const W*>(args.bias) + (args.head ? args.head[row] : 0) * args.bias_stride);
  }
  const int rank = g.rank(), size = g.size(), vocab_size = int(args.vocab_size), stride = int(args.stride);
  const int whole = vocab_size / kWidth, target = int(args.targets[row]);
  const auto z_at = [&](int v) -> W { return load(logits[v]) + (kBias ? bias[v] : W(0)); };
  const auto unpack_at = [&](const Piece& piece, int p, W(&z)[kWidth]) {
    unpack(piece, z, T());
    if constexpr (kBias) {
      SPANBERT_UNROLL
      for (int i = 0; i < kWidth; i += kBiasWidth) {
        W values[kBiasWidth];
        unpack(read_piece<kAligned, Cache::kForAll>(bias + p * kWidth + i), values, W());
        SPANBERT_UNROLL
        for (int j = 0; j < kBiasWidth; ++j) z[i + j] += values[j];
      }
    }
  };
  Piece pieces[kBatch];
  const auto read = [&](int first) {
    SPANBERT_UNROLL
    for (int k = 0; k < kBatch; ++k) {
      const int p = first + k * size;
      if (p < whole) pieces[k] = read_piece<kAligned, Cache::kOnce>(logits + p * kWidth);
    }
  };

  RunningSum<W> sum;
  const auto add = [&](int first) {
    SPANBERT_UNROLL
    for (int k = 0; k < kBatch; ++k) {
      const int p = first + k * size;
      if (p >= whole) continue;
      W z[kWidth];
      unpack_at(pieces[k], p, z);
      sum.add(z);
    }
  };
  if constexpr (kHeld) {
    read(rank);
    add(rank);
  } else {
    for (int first = rank; first < whole; first += kBatch * size) {
      read(first);
      add(first);
    }
  }
  for (int v = whole * kWidth + rank; v < vocab_size; v += size) {
    const W z[1] = {z_at(v)};
    sum.add(z);
  }
  // Everybody reads the target's logit before its owner overwrites it: the reductions stand between.
  const W z_target = z_at(target);
  sum = merged(g, sum);
  // What the others leave of the target: the digits of a likely one would get lost in a difference of logarithms, or of
  // its share and 1.
  const W t_target = multiply_add(z_target, kLog2E<W>, -sum.shift), share_target = power_of_two(t_target);
  const W rest = sum.total - share_target;
  const W loss =
      share_target > rest ? log1p(rest / share_target) : W(0.69314718055994530942) * (log2(sum.total) - t_target);
  if (!args.scale) return loss;

  const W scale = static_cast<const W*>(args.scale)[row], factor = scale / sum.total;
  const auto share_of = [&](W z) { return power_of_two(multiply_add(z, kLog2E<W>, -sum.shift)); };
  const auto write = [&](int first) {
    SPANBERT_UNROLL
    for (int k = 0; k < kBatch; ++k) {
      const int p = first + k * size;
      if (p >= whole) continue;
      W z[kWidth];
      unpack_at(pieces[k], p, z);
      SPANBERT_UNROLL
      for (int i = 0; i < kWidth; ++i) z[i] = product(share_of(z[i]), factor);
      if (p == target / kWidth) {
        SPANBERT_UNROLL
        for (int i = 0; i < kWidth; ++i) z[i] = i == target % kWidth ? -product(rest, factor) : z[i];
      }
      write_piece<kAligned>(logits + p * kWidth, pack(z, T()));
    }
  };
  if constexpr (kHeld) {
    write(rank);
  } else {
    for (int first = rank; first < whole; first += kBatch * size) {
      read(first);
      write(first);
    }
  }
  for (int v = whole * kWidth + rank; v < stride; v += size) {
    // The factor of a row without a number is none, and padding is 0 all the same.
    logits[v] = store<T>(v < vocab_size ? product(v == target ? -rest : share_of(z_at(v)), factor) : W(0));
  }
  return loss;
}

// cross_entropy_row of softmax.h by pieces.
template <class T, int kBatch, bool kHeld, bool kAligned, class Group>
SPANBERT_HD working_t<T> cross_entropy_piece_row(const Group& g, const CrossEntropyArgs& args, int64_t row) {
  constexpr int kWidth = 16 / int(sizeof(T));
  if (args.targets[row] == kIgnore) {
    if (args.scale) {
      T* logits = static_cast<T*>(args.logits) + row * args.stride;
      const int stride = int(args.stride), whole = stride / kWidth;
      for (int p = g.rank(); p < whole; p += g.size()) write_piece<kAligned>(logits + p * kWidth, Piece{});
      for (int v = whole * kWidth + g.rank(); v < stride; v += g.size()) logits[v] = store<T>(working_t<T>(0));
    }
    return 0;
  }
  if (args.bias) return cross_entropy_of_pieces<T, kBatch, kHeld, kAligned, true>(g, args, row);
  return cross_entropy_of_pieces<T, kBatch, kHeld, kAligned, false>(g, args, row);
}

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
