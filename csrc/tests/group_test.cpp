// Runs the group algorithms of a GPU on the CPU: a group of 32 threads that meet at barriers, as a warp or block would,
// must give what the group of one thread gives. So the lane-parallel branches are tested where there is no GPU.
// Not part of the module; python_tests/native/test_groups.py compiles and runs it:  group_test SEED  ->  exit 0 and a
// summary.
#include <cstdlib>
#include <random>

#include "rows/dropout_norm.h"
#include "rows/softmax.h"
#include "rows/span_sampler.h"
#include "tests/group_lanes.h"

namespace {

struct Masked {
  std::vector<int64_t> ids, labels, columns[5], left, right;
  std::vector<uint64_t> bitmaps;
  int64_t targets, spans;
};

SamplerSettings some_settings(std::mt19937_64& random) {
  SamplerSettings s{};
  const int64_t ratios[4][2] = {{3, 20}, {1, 2}, {1, 1}, {1, 100}};
  const auto& ratio = ratios[random() % 4];
  s.seed = random();
  s.mask_id = 3;
  s.ratio_numerator = ratio[0];
  s.ratio_denominator = ratio[1];
  s.min_words = 1 + int64_t(random() % 2);
  s.max_span_targets = 1 + int64_t(random() % 15);
  s.mask_threshold = uint64_t(0.8 * 4294967296.0);
  s.random_threshold = uint64_t(0.9 * 4294967296.0);
  s.num_lengths = 1 + int(random() % 10);
  for (int i = 0; i < s.num_lengths; ++i) s.length_thresholds[i] = (uint64_t(i + 1) << 32) / uint64_t(s.num_lengths);
  s.per_piece = random() % 2;
  s.candidate_threshold = (random() % 5) << 30;
  s.internal_endpoints = random() % 2;
  return s;
}

// One sequence in the middle of a batch, sampled and written out by the given group. No marks: no candidates.
template <class Run>
Masked mask_sequence(const SamplerSettings& settings, const std::vector<int64_t>& tokens,
                     const std::vector<uint8_t>& marks, const std::vector<uint8_t>& vocabulary,
                     const std::vector<int64_t>& pool, const Run& run) {
  const int64_t total = int64_t(tokens.size()), start = 3, end = total - 2, capacity = total, epoch = 7, sample = 11;
  Masked m;
  m.ids = tokens;
  m.labels.assign(tokens.size(), kIgnore);
  for (auto& column : m.columns) column.assign(size_t(capacity), -1);
  m.left.assign(size_t(capacity), -1);
  m.right = m.left;
  m.bitmaps.assign(size_t(5 * ((total >> 6) + 2)), ~uint64_t(0));
  std::vector<int64_t> row_counts(4, 0);
  SpanMaskArgs args{};
  args.settings = settings;
  args.tokens = tokens.data();
  args.wide_tokens = true;
  args.starts = &start;
  args.ends = &end;
  args.sample_ids = &sample;
  args.epoch = &epoch;
  args.vocabulary = vocabulary.data();
  args.random_tokens = pool.data();
  args.candidates = marks.empty() ? nullptr : marks.data();
  args.total = total;
  args.sequences = 1;
  args.vocab_size = int64_t(vocabulary.size());
  args.random_count = int64_t(pool.size());
  args.target_capacity = args.span_capacity = capacity;
  args.input_ids = m.ids.data();
  args.labels = m.labels.data();
  args.target_positions = m.columns[0].data();
  args.target_ids = m.columns[1].data();
  args.target_spans = m.columns[2].data();
  args.target_offsets = m.columns[3].data();
  args.sbo_ids = m.columns[4].data();
  args.span_left = m.left.data();
  args.span_right = m.right.data();
  args.bitmaps = m.bitmaps.data();
  args.row_counts = row_counts.data();
  const SequenceDraws draws{settings.seed, uint64_t(sample), uint32_t(epoch)};
  run([&](const auto& g) {
    using Group = std::decay_t<decltype(g)>;
    const RowCounts counts = sample_row<Group, int64_t>(g, args, 0, draws);
    if (g.rank() == 0) {
      row_counts[1] = m.targets = counts.targets;
      row_counts[3] = m.spans = counts.spans;
    }
    g.sync();
    emit_row<Group, int64_t>(g, args, 0, draws);
  });
  return m;
}

void test_masking(std::mt19937_64& random, int64_t n, bool with_candidates) {
  std::vector<uint8_t> vocabulary(50);
  for (size_t i = 0; i < vocabulary.size(); ++i) vocabulary[i] = i < 4 ? kSpecial : (random() % 4 ? kWordStart : 0);
  std::vector<int64_t> tokens(size_t(n + 5)), pool;
  std::vector<uint8_t> marks(with_candidates ? tokens.size() : 0);
  for (auto& token : tokens) token = random() % 12 ? int64_t(4 + random() % 46) : int64_t(random() % 4);
  // Candidates of a piece, of many, and across words of the bitmaps.
  const uint64_t going_on = 1 + random() % 40;
  for (auto& mark : marks) mark = random() % going_on ? kCandidateContinues : uint8_t(random() % 2);
  for (int64_t i = 4; i < 50; ++i) pool.push_back(i);
  const SamplerSettings settings = some_settings(random);
  const auto masked = [&](const auto& run) { return mask_sequence(settings, tokens, marks, vocabulary, pool, run); };
  const Masked one = masked([](const auto& work) { work(OneThread()); });
  const Masked many = masked([](const auto& work) { run_lanes(work); });
  expect(one.targets == many.targets && one.spans == many.spans, "target and span counts", n);
  expect(one.ids == many.ids && one.labels == many.labels, "ids and labels", n);
  for (int i = 0; i < 5; ++i) expect(one.columns[i] == many.columns[i], "target columns", i);
  expect(one.left == many.left && one.right == many.right, "span boundaries", n);
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 1e-6f;
  for (float x : a) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= 2e-6f * largest)) return false;
  }
  return a.size() == b.size();
}

std::vector<float> gaussians(std::mt19937_64& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

template <class Make>
void compare(const char* what, int64_t detail, const Make& make) {
  const auto one = make([](const auto& work) { work(OneThread()); });
  const auto many = make([](const auto& work) { run_lanes(work); });
  expect(close(one, many), what, detail);
}

int packed_cases = 0;

}  // namespace

#include "tests/attention_group_test.h"
#include "tests/sbo_group_test.h"

namespace {

void test_cross_entropy(std::mt19937_64& random, int64_t vocab) {
  const int64_t rows = 3, stride = vocab + 5;
  const auto logits = gaussians(random, rows * stride), bias = gaussians(random, 2 * vocab);
  const int64_t targets[] = {vocab - 1, kIgnore, int64_t(random() % uint64_t(vocab))}, head[] = {0, 1, 1};
  const float scale[] = {0.5f, 1.0f, 0.25f};
  compare("cross_entropy", vocab, [&](const auto& run) {
    std::vector<float> values = logits, losses(3);
    run([&](const auto& g) {
      CrossEntropyArgs args{};
      args.logits = values.data();
      args.targets = targets;
      args.bias = bias.data();
      args.head = head;
      args.scale = scale;
      args.rows = rows;
      args.vocab_size = vocab;
      args.stride = stride;
      args.heads = 2;
      args.bias_stride = vocab;
      for (int64_t r = 0; r < rows; ++r) {
        const float loss = cross_entropy_row<float>(g, args, r, nullptr);
        if (g.rank() == 0) losses[size_t(r)] = loss;
      }
    });
    values.insert(values.end(), losses.begin(), losses.end());
    return values;
  });
}

// Runs forward and backward of one chunk over columns that `make_columns(g)` gives.
template <class MakeColumns, class Sums>
void dropout_norm_rows(const Lanes& g, const DropoutNormArgs& args, const MakeColumns& make_columns, Sums& sums) {
  auto columns = make_columns(g);
  for (int64_t r = 0; r < args.rows; ++r) dropout_norm_row<Drop::kEither, float, float>(columns, args, r);
  g.sync();
  dropout_norm_backward_chunk<Drop::kEither, float, float>(columns, args, 0, 0, 1, sums);
}

// One thread as on the CPU, 32 with a column each, and 32 with packets of eight, if they fit the size.
void test_dropout_norm(std::mt19937_64& random, int64_t size, uint32_t threshold, bool drop_output) {
  const int64_t rows = 3, seed = int64_t(random());
  const auto x = gaussians(random, rows * size), residual = gaussians(random, rows * size);
  const auto weight = gaussians(random, size), bias = gaussians(random, size), grad = gaussians(random, rows * size);
  const auto run = [&](const auto& work) {
    std::vector<float> out(size_t(rows * size)), mean(3), rstd(3), grad_x(out), grad_residual(out);
    std::vector<float> partials(size_t(2 * size));
    DropoutNormArgs args{};
    args.x = x.data();
    args.residual = residual.data();
    args.weight = weight.data();
    args.bias = bias.data();
    args.seed = &seed;
    args.site = uint32_t(random());
    args.mask_threshold = threshold;
    args.drop_output = drop_output;
    args.keep_scale = 65536.0 / (65536.0 - threshold);
    args.eps = 1e-12;
    args.out = out.data();
    args.mean = mean.data();
    args.rstd = rstd.data();
    args.rows = rows;
    args.hidden_size = size;
    args.grad_out = grad.data();
    args.grad_x = drop_output ? nullptr : grad_x.data();
    args.grad_residual = grad_residual.data();
    args.partials = partials.data();
    work(args);
    for (const auto* more : {&grad_x, &grad_residual, &partials}) out.insert(out.end(), more->begin(), more->end());
    return out;
  };
  const auto random_before = random;  // every run has the same site
  std::vector<float> values(static_cast<size_t>(size));
  std::vector<uint16_t> drawn(size_t(draw_columns(size)));
  const auto one = run([&](const DropoutNormArgs& args) {
    const OneThread g;
    StridedColumns<OneThread, float> columns{g, size, values.data(), drawn.data()};
    float* sums = static_cast<float*>(args.partials);
    const auto rows_of = [&](auto drop) {
      constexpr Drop kDrop = decltype(drop)::value;
      for (int64_t r = 0; r < rows; ++r) dropout_norm_row<kDrop, float, float>(columns, args, r);
      dropout_norm_backward_chunk<kDrop, float, float>(columns, args, 0, 0, 1, sums);
    };
    if (threshold == 0) return rows_of(std::integral_constant<Drop, Drop::kNowhere>());
    if (drop_output) return rows_of(std::integral_constant<Drop, Drop::kOutput>());
    rows_of(std::integral_constant<Drop, Drop::kInput>());
  });
  random = random_before;
  const auto many = run([&](const DropoutNormArgs& args) {
    run_lanes([&](const Lanes& g) {
      float* sums = static_cast<float*>(args.partials);
      const auto columns = [&](const Lanes& group) {
        return StridedColumns<Lanes, float>{group, size, values.data(), drawn.data()};
      };
      dropout_norm_rows(g, args, columns, sums);
    });
  });
  expect(close(one, many), "dropout_norm by columns", size);
  if (size % 8 != 0) return;
  random = random_before;
  const auto packed = run([&](const DropoutNormArgs& args) {
    run_lanes([&](const Lanes& g) {
      using Columns = PacketColumns<Lanes, float, 4>;
      typename Columns::Sums sums;
      dropout_norm_rows(g, args, [&](const Lanes& group) { return Columns(group, size); }, sums);
      const Columns columns(g, size);
      columns.each([&](Spot at) {
        columns.write(static_cast<float*>(args.partials), at, sums.first[at.part]);
        columns.write(static_cast<float*>(args.partials) + size, at, sums.second[at.part]);
      });
    });
  });
  expect(close(one, packed), "dropout_norm by packets", size);
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937_64 random(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  const int64_t lengths[] = {0, 1, 2, 31, 32, 63, 64, 65, 127, 128, 200, 510, 2100};
  int sequences = 0;
  for (int64_t n : lengths) {
    for (int repeat = 0; repeat < 3; ++repeat, ++sequences) test_masking(random, n, repeat == 2);
  }
  const int64_t sizes[] = {1, 31, 32, 33, 96, 769};
  for (int64_t size : sizes) {
    test_cross_entropy(random, size);
  }
  const int64_t widths[] = {1, 33, 8, 104, 769, 768, 1024};
  for (int64_t size : widths) {
    test_dropout_norm(random, size, 0, false);
    test_dropout_norm(random, size, 6554, false);
    test_dropout_norm(random, size, 20000, true);
  }
  const int64_t sbo_widths[] = {1, 31, 33, 96, 256, 769};
  for (int64_t size : sbo_widths) {
    test_norm<float>(random, size);
    test_norm<bf16>(random, size);
    test_sbo<float>(random, size);
    test_sbo<bf16>(random, size);
  }
  const int64_t key_counts[] = {1, 16, 31, 33, 64, 200};
  for (int64_t width : key_counts) {
    test_attention(random, width, 0);
    test_attention(random, width, 20000);
  }
  std::printf("%d packed cases, %d sequences, ", packed_cases, sequences);
  std::printf("%d checks with groups of %d, %d failures\n", checks, kLanes, failures);
  return failures ? 1 : 0;
}
