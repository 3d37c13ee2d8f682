// The GPU's paths of the vocabulary loss on the CPU: rows in pieces of 16 bytes (softmax_pieces.h) and column sums
// (column_sums.h), by a group of 32 threads, against double precision. Not part of the module;
// python_tests/native/test_groups.py compiles and runs it:  group_loss_test SEED  ->  exit 0 and a summary.
#include <cstdlib>
#include <random>

#include "rows/column_sums.h"
#include "rows/softmax_pieces.h"
#include "tests/group_lanes.h"

namespace {

constexpr double kTargetGap = 1e-6;  // of a row's scale: error of p - 1

// Allowed error of a gradient: relative (exponents of up to 126 in the working type), of the stored type's rounding,
// and its smallest step.
struct Allowed {
  double relative, rounding, smallest;
};
constexpr Allowed allowed_of(float) { return {1e-5, 6e-8, 1e-36}; }
constexpr Allowed allowed_of(bf16) { return {1e-5, 1.0 / 256, 1e-36}; }
constexpr Allowed allowed_of(fp16) { return {1e-5, 1.0 / 2048, 1.0 / (1 << 24)}; }
constexpr Allowed allowed_of(double) { return {1e-13, 1e-16, 1e-300}; }

enum Kind : int64_t { kNormal, kUnused, kSomeMinusInf, kHuge, kEqual, kSure, kLonely, kNan, kAllMinusInf, kKinds };

template <class T>
struct Problem {
  using W = working_t<T>;
  int64_t vocab, stride, bias_stride, heads = 3, rows = kKinds;
  std::vector<T> logits;
  std::vector<W> bias, scale;
  std::vector<int64_t> targets, head;

  CrossEntropyArgs args(std::vector<T>& values, std::vector<W>& losses, bool with_bias, bool with_scale) const {
    CrossEntropyArgs a{};
    a.logits = values.data();
    a.targets = targets.data();
    a.bias = with_bias ? bias.data() : nullptr;
    a.head = with_bias ? head.data() : nullptr;
    a.scale = with_scale ? scale.data() : nullptr;
    a.losses = losses.data();
    a.rows = rows;
    a.vocab_size = vocab;
    a.stride = stride;
    a.heads = with_bias ? heads : 1;
    a.bias_stride = bias_stride;
    return a;
  }
};

template <class T>
Problem<T> some_problem(std::mt19937_64& random, int64_t vocab, int64_t padding) {
  using W = working_t<T>;
  constexpr int64_t kWidth = 16 / int64_t(sizeof(T));
  const W minus_inf = -W(INFINITY), nan = W(NAN);
  std::normal_distribution<float> normal;
  const int64_t whole = (vocab + padding + kWidth - 1) / kWidth * kWidth;
  Problem<T> p{vocab, vocab % 2 ? vocab + padding : whole, (vocab + 3) / 4 * 4};
  p.logits.assign(size_t(p.rows * p.stride), store<T>(nan));  // the padding says nothing, whatever it holds
  p.bias.assign(size_t(p.heads * p.bias_stride), nan);
  for (int64_t i = 0; i < p.heads * vocab; ++i) {
    p.bias[size_t(i / vocab * p.bias_stride + i % vocab)] = W(normal(random));
  }
  for (int64_t kind = 0; kind < p.rows; ++kind) {
    const int64_t target = int64_t(random() % uint64_t(vocab)), one = int64_t(random() % uint64_t(vocab));
    T* row = p.logits.data() + kind * p.stride;
    for (int64_t v = 0; v < vocab; ++v) {
      W z = W(3 * normal(random));
      if (kind == kSomeMinusInf && random() % 2 && v != target) z = minus_inf;
      if (kind == kHuge) z = (random() % 2 ? W(1e4) : W(-1e4)) + z;
      if (kind == kEqual) z = W(-7.25);
      if (kind == kSure && v == target) z = W(60);
      if ((kind == kLonely && v != target) || kind == kAllMinusInf) z = minus_inf;
      if (kind == kNan && v == one) z = nan;
      row[v] = store<T>(z);
    }
    p.targets.push_back(kind == kUnused ? kIgnore : kind == kNormal ? vocab - 1 : target);
    p.head.push_back(int64_t(random() % uint64_t(p.heads)));
    p.scale.push_back(kind == kEqual ? W(0) : W(0.001) * W(1 + random() % 500));
  }
  return p;
}

template <class T>
void check(const Problem<T>& p, const std::vector<T>& values, const std::vector<working_t<T>>& losses, bool with_bias,
           bool with_scale, const char* what) {
  using W = working_t<T>;
  constexpr Allowed limit = allowed_of(T());
  for (int64_t row = 0; row < p.rows; ++row) {
    const T *before = p.logits.data() + row * p.stride, *after = values.data() + row * p.stride;
    const W* bias = p.bias.data() + p.head[size_t(row)] * p.bias_stride;
    const int64_t target = p.targets[size_t(row)], detail = p.vocab * 10 + row;
    const double loss = double(losses[size_t(row)]), scale = double(p.scale[size_t(row)]);
    if (!with_scale) expect(memcmp(before, after, size_t(p.stride) * sizeof(T)) == 0, "logits stay", detail);
    for (int64_t v = target == kIgnore ? 0 : p.vocab; with_scale && v < p.stride; ++v) {
      expect(load(after[v]) == W(0), "zeros in unused rows and padding", detail);
    }
    if (target == kIgnore) {
      expect(loss == 0, "loss of an unused row", detail);
      continue;
    }
    std::vector<double> z(static_cast<size_t>(p.vocab));
    double top = -INFINITY, total = 0;
    for (int64_t v = 0; v < p.vocab; ++v) {
      z[size_t(v)] = double(W(load(before[v]) + (with_bias ? bias[v] : W(0))));
      top = std::fmax(top, z[size_t(v)]);
    }
    for (double value : z) total += std::exp(value - top);
    const double exact = (top - z[size_t(target)]) + std::log(total);
    if (row == kNan || row == kAllMinusInf) {
      expect(std::isnan(loss), "NaN shows in the loss", detail);
      expect(!with_scale || std::isnan(double(load(after[target]))), "NaN shows in the gradient", detail);
      continue;
    }
    expect(std::fabs(loss - exact) <= limit.relative / 10 * std::fmax(1, exact), what, detail);
    for (int64_t v = 0; with_scale && v < p.vocab; ++v) {
      const double share = scale * std::exp(z[size_t(v)] - top) / total;
      const double gradient = v == target ? share - scale : share;
      double allowed = share * limit.relative + std::fabs(gradient) * limit.rounding + limit.smallest;
      if (v == target) allowed += scale * kTargetGap;
      expect(std::fabs(double(load(after[v])) - gradient) <= allowed, what, detail);
    }
  }
}

// Equal bits, or two NaNs: neither C++ nor IEEE 754 says which sign a computed one has, and GCC 11 gives both.
template <class T>
bool same_bits(T a, T b) {
  return memcmp(&a, &b, sizeof(T)) == 0 || (std::isnan(double(load(a))) && std::isnan(double(load(b))));
}

// What the group of 32 and the group of one make of a problem, with rows held and rows read twice.
template <class T>
void test_rows(std::mt19937_64& random, int64_t vocab, int64_t padding) {
  using W = working_t<T>;
  const Problem<T> p = some_problem<T>(random, vocab, padding);
  constexpr int kHeld = 3;
  const bool fits = vocab * int64_t(sizeof(T)) / 16 <= kHeld * kLanes;
  for (const bool with_bias : {false, true}) {
    for (const bool with_scale : {true, false}) {
      std::vector<T> one = p.logits, streamed = p.logits, held = p.logits;
      std::vector<W> one_losses(kKinds), streamed_losses(kKinds), held_losses(kKinds);
      const auto run = [&](std::vector<T>& values, std::vector<W>& losses, const auto& row_of, const auto& g) {
        const CrossEntropyArgs args = p.args(values, losses, with_bias, with_scale);
        for (int64_t row = 0; row < p.rows; ++row) {
          const W loss = row_of(g, args, row);
          if (g.rank() == 0) losses[size_t(row)] = loss;
        }
      };
      const auto twice = [](const auto& g, const auto& a, int64_t r) {
        return cross_entropy_piece_row<T, 2, false, false>(g, a, r);
      };
      const auto once = [](const auto& g, const auto& a, int64_t r) {
        return cross_entropy_piece_row<T, kHeld, true, true>(g, a, r);
      };
      run(one, one_losses, twice, OneThread());
      check(p, one, one_losses, with_bias, with_scale, "one thread");
      run_lanes([&](const auto& g) { run(streamed, streamed_losses, twice, g); });
      check(p, streamed, streamed_losses, with_bias, with_scale, "32 threads, row read twice");
      if (!fits) continue;
      run_lanes([&](const auto& g) { run(held, held_losses, once, g); });
      check(p, held, held_losses, with_bias, with_scale, "32 threads, row held");
      bool equal = true;
      for (size_t i = 0; i < held.size(); ++i) equal = equal && same_bits(held[i], streamed[i]);
      expect(equal, "held and streamed bits", vocab);
    }
  }
}

// Column sums of random gradients by 8 x 4 threads, chunk by chunk, and by one thread.
template <class T, bool kWide>
void test_columns(std::mt19937_64& random, int64_t rows, int64_t vocab, int64_t heads, int order) {
  using W = working_t<T>;
  constexpr int64_t kWidth = kWide ? 16 / int64_t(sizeof(T)) : 1;
  const int64_t stride = (vocab + kWidth - 1) / kWidth * kWidth;
  std::normal_distribution<float> normal;
  std::vector<T> values(size_t(rows * stride));
  for (T& value : values) value = store<T>(W(normal(random)));
  std::vector<int64_t> targets, head;
  std::vector<double> exact(size_t(heads * vocab)), size(exact.size());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t own = order == 0 ? row * heads / rows : order == 1 ? row % heads : int64_t(random()) % heads;
    const bool used = random() % 10 != 0;
    targets.push_back(used ? 0 : kIgnore);
    head.push_back(own < 0 ? own + heads : own);
    for (int64_t v = 0; v < stride; ++v) {
      if (!used) values[size_t(row * stride + v)] = store<T>(W(NAN));  // an unused row is not read
      if (!used || v >= vocab) continue;
      const double value = double(load(values[size_t(row * stride + v)]));
      exact[size_t(head.back() * vocab + v)] += value;
      size[size_t(head.back() * vocab + v)] += std::fabs(value);
    }
  }
  const auto sum = [&](auto& shared, const auto& run) {
    using Shared = std::decay_t<decltype(shared)>;
    const int64_t chunks = (rows + Shared::kRows - 1) / Shared::kRows;
    std::vector<W> partials(size_t(chunks * heads * vocab), W(NAN)), sums(size_t(heads * vocab));
    CrossEntropyArgs args{};
    args.logits = values.data();
    args.targets = targets.data();
    args.head = heads > 1 ? head.data() : nullptr;
    args.partials = partials.data();
    args.rows = rows;
    args.vocab_size = vocab;
    args.stride = stride;
    args.heads = heads;
    run([&](const auto& g) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t block = 0; block * Shared::kColumns < vocab; ++block) {
          bias_gradient_block(g, args, chunk, block, shared);
          g.sync();
        }
      }
    });
    for (size_t i = 0; i < partials.size(); ++i) sums[i % sums.size()] += partials[i];
    return sums;
  };
  ColumnSums<T, kWide, 8, 4> many;
  ColumnSums<T, kWide, 1, 1> one;
  const std::vector<W> by_many = sum(many, [](const auto& work) { run_lanes(work); });
  const std::vector<W> by_one = sum(one, [](const auto& work) { work(OneThread()); });
  for (size_t i = 0; i < exact.size(); ++i) {
    const double allowed = (sizeof(W) == 8 ? 1e-14 : 1e-6) * size[i];
    expect(std::fabs(double(by_many[i]) - exact[i]) <= allowed, "column sums of 32 threads", int64_t(i));
    expect(std::fabs(double(by_one[i]) - exact[i]) <= allowed, "column sums of one thread", int64_t(i));
  }
}

template <class T>
void test_type(std::mt19937_64& random, int& rows, int& columns) {
  const int64_t sizes[] = {1, 2, 7, 8, 31, 64, 129, 257, 384, 769, 1000};
  for (int64_t vocab : sizes) {
    test_rows<T>(random, vocab, vocab % 3 ? 0 : 40);
    ++rows;
  }
  const int64_t shapes[][3] = {{1, 1, 1}, {63, 7, 1}, {256, 64, 2}, {300, 131, 2}, {700, 20, 3}};
  for (const auto& shape : shapes) {
    for (int order = 0; order < 3; ++order) {
      test_columns<T, true>(random, shape[0], shape[1], shape[2], order);
      test_columns<T, false>(random, shape[0], shape[1], shape[2], order);
      columns += 2;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937_64 random(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  int rows = 0, columns = 0;
  test_type<float>(random, rows, columns);
  test_type<bf16>(random, rows, columns);
  test_type<fp16>(random, rows, columns);
  test_type<double>(random, rows, columns);
  std::printf("%d row and %d column cases with groups of %d, %d failures\n", rows, columns, kLanes, failures);
  return failures ? 1 : 0;
}
