// Runs the group algorithms of a GPU on the CPU: a group of 32 threads that meet at barriers, as a warp or block would,
// must give what the group of one thread gives. So the lane-parallel branches are tested where there is no GPU.
// Not part of the module; python_tests/test_groups.py compiles and runs it:  group_test SEED  ->  exit 0 and a summary.
#include <cstdlib>
#include <random>

#include "group_lanes.h"
#include "sbo_rows.h"
#include "softmax_rows.h"
#include "span_sampler.h"

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
  return s;
}

// One sequence in the middle of a batch, sampled and written out by the given group.
template <class Run>
Masked mask_sequence(const SamplerSettings& settings, std::vector<int64_t>& tokens, std::vector<uint8_t>& vocabulary,
                     std::vector<int64_t>& pool, const Run& run) {
  const int64_t total = int64_t(tokens.size()), start = 3, end = total - 2, capacity = total, epoch = 7, sample = 11;
  Masked m;
  m.ids = tokens;
  m.labels.assign(tokens.size(), kIgnore);
  for (auto& column : m.columns) column.assign(size_t(capacity), -1);
  m.left.assign(size_t(capacity), -1);
  m.right = m.left;
  m.bitmaps.assign(size_t(3 * ((total >> 6) + 2)), ~uint64_t(0));
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
    const RowCounts counts =
        sample_row(g, tokens.data() + start, end - start, args, draws, row_bits(args, 0, end - start));
    if (g.rank() == 0) {
      row_counts[1] = m.targets = counts.targets;
      row_counts[3] = m.spans = counts.spans;
    }
    g.sync();
    emit_row<Group, int64_t>(g, args, 0, draws);
  });
  return m;
}

void test_masking(std::mt19937_64& random, int64_t n) {
  std::vector<uint8_t> vocabulary(50);
  for (size_t i = 0; i < vocabulary.size(); ++i) vocabulary[i] = i < 4 ? kSpecial : (random() % 4 ? kWordStart : 0);
  std::vector<int64_t> tokens(size_t(n + 5)), pool;
  for (auto& token : tokens) token = random() % 12 ? int64_t(4 + random() % 46) : int64_t(random() % 4);
  for (int64_t i = 4; i < 50; ++i) pool.push_back(i);
  const SamplerSettings settings = some_settings(random);
  const Masked one = mask_sequence(settings, tokens, vocabulary, pool, [](const auto& work) { work(OneThread()); });
  const Masked many = mask_sequence(settings, tokens, vocabulary, pool, [](const auto& work) { run_lanes(work); });
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

void test_norm(std::mt19937_64& random, int64_t size) {
  const int64_t rows = 3;
  const auto x = gaussians(random, rows * size), grad = gaussians(random, rows * size);
  const auto weight = gaussians(random, size), bias = gaussians(random, size);
  compare("gelu_layer_norm", size, [&](const auto& run) {
    std::vector<float> out(size_t(rows * size)), mean(3), rstd(3), grad_x(out), partials(size_t(2 * size));
    run([&](const auto& g) {
      using Group = std::decay_t<decltype(g)>;
      static std::vector<float> scratch;
      if (g.rank() == 0) scratch.assign(size_t(kNormBackwardRows * size), 99.0f);
      g.sync();
      const GeluLayerNormArgs forward{Dtype::kFloat32, x.data(),    weight.data(), bias.data(), 1e-12,
                                      out.data(),      mean.data(), rstd.data(),   rows,        size};
      for (int64_t r = 0; r < rows; ++r) gelu_layer_norm_at<Group, float>(g, forward, r, scratch.data());
      g.sync();
      const GeluLayerNormBackwardArgs backward{Dtype::kFloat32, grad.data(),     x.data(),      weight.data(),
                                               mean.data(),     rstd.data(),     grad_x.data(), nullptr,
                                               nullptr,         partials.data(), rows,          size};
      gelu_layer_norm_backward_chunk<Group, float>(g, backward, 0, scratch.data());
    });
    out.insert(out.end(), grad_x.begin(), grad_x.end());
    out.insert(out.end(), partials.begin(), partials.end());
    return out;
  });
}

void test_sbo(std::mt19937_64& random, int64_t size) {
  const int64_t spans = 3, positions = 4, targets = 8;
  const int64_t target_spans[] = {0, 0, 0, 1, 2, 2, 2, 0}, offsets[] = {0, 1, 2, 0, 0, 1, 2, 0};
  const int64_t sbo_ids[] = {5, 6, 7, kIgnore, 8, 9, kIgnore, kIgnore};
  const int64_t firsts[] = {0, -1, 4};
  const auto span_rows = gaussians(random, spans * size), position_rows = gaussians(random, positions * size);
  const auto weight = gaussians(random, size), bias = gaussians(random, size);
  const auto grad = gaussians(random, targets * size);
  compare("sbo_first_layer", size, [&](const auto& run) {
    std::vector<float> out(size_t(targets * size)), mean(8), rstd(8), grad_spans(size_t(spans * size));
    std::vector<float> partials(size_t((2 + positions) * size));
    run([&](const auto& g) {
      using Group = std::decay_t<decltype(g)>;
      static std::vector<float> scratch;
      if (g.rank() == 0) scratch.assign(size_t(kSboBackwardRows * size), 99.0f);
      g.sync();
      const SboFirstLayerArgs forward{Dtype::kFloat32,
                                      span_rows.data(),
                                      position_rows.data(),
                                      target_spans,
                                      offsets,
                                      sbo_ids,
                                      weight.data(),
                                      bias.data(),
                                      1e-12,
                                      out.data(),
                                      mean.data(),
                                      rstd.data(),
                                      targets,
                                      spans,
                                      positions,
                                      size};
      for (int64_t k = 0; k < targets; ++k) sbo_first_layer_at<Group, float>(g, forward, k, scratch.data());
      g.sync();
      SboFirstLayerBackwardArgs backward{};
      backward.grad_out = grad.data();
      backward.span_rows = span_rows.data();
      backward.position_rows = position_rows.data();
      backward.target_spans = target_spans;
      backward.target_offsets = offsets;
      backward.sbo_ids = sbo_ids;
      backward.weight = weight.data();
      backward.mean = mean.data();
      backward.rstd = rstd.data();
      backward.grad_span_rows = grad_spans.data();
      backward.partials = partials.data();
      backward.first_targets = const_cast<int64_t*>(firsts);
      backward.targets = targets;
      backward.spans = spans;
      backward.positions = positions;
      backward.hidden_size = size;
      sbo_first_layer_backward_chunk<Group, float>(g, backward, 0, scratch.data());
    });
    out.insert(out.end(), grad_spans.begin(), grad_spans.end());
    out.insert(out.end(), partials.begin(), partials.end());
    return out;
  });
}

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

}  // namespace

int main(int argc, char** argv) {
  std::mt19937_64 random(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  const int64_t lengths[] = {0, 1, 2, 31, 32, 63, 64, 65, 127, 128, 200, 510, 2100};
  int sequences = 0;
  for (int64_t n : lengths) {
    for (int repeat = 0; repeat < 3; ++repeat, ++sequences) test_masking(random, n);
  }
  const int64_t sizes[] = {1, 31, 32, 33, 96, 769};
  for (int64_t size : sizes) {
    test_norm(random, size);
    test_sbo(random, size);
    test_cross_entropy(random, size);
  }
  std::printf("%d sequences and 18 row cases with groups of %d, %d failures\n", sequences, kLanes, failures);
  return failures ? 1 : 0;
}
