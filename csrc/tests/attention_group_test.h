// The attention part of group_test.cpp: rows of scores by 32 threads and by one.
#pragma once

#include "rows/attention.h"

namespace {

// Two sequences of two heads, the second one padded, forward and backward.
void test_attention(std::mt19937_64& random, int64_t width, uint32_t threshold) {
  const int64_t seed = int64_t(random()), firsts[] = {0, int64_t(random() >> 8)}, queries[] = {3, 2};
  const int64_t keys[] = {width, width - int64_t(random() % uint64_t(width))};
  AttentionWeightsArgs args{};
  args.first_queries = firsts;
  args.queries = queries;
  args.keys = keys;
  args.seed = threshold > 0 ? &seed : nullptr;
  args.site = uint32_t(random());
  args.mask_threshold = threshold;
  args.scale = 0.5;
  args.keep_scale = 65536.0 / (65536.0 - threshold);
  args.heads = 2;
  args.height = 3;
  args.rows = 12;
  args.width = width;
  const auto scores = gaussians(random, args.rows * width), grad = gaussians(random, args.rows * width);
  args.scores = scores.data();
  args.grad_weights = grad.data();
  compare("attention_weights", width, [&](const auto& run) {
    std::vector<float> weights(scores.size()), signed_probs(weights), grad_scores(weights), again(weights);
    std::vector<float> values(static_cast<size_t>(width));
    std::vector<uint16_t> drawn(size_t(draw_columns(width)));
    run([&](const auto& g) {
      AttentionWeightsArgs own = args;
      own.weights = weights.data();
      own.signed_probs = signed_probs.data();
      for (int64_t r = 0; r < own.rows; ++r) attention_weights_row<float>(g, own, r, values.data(), drawn.data());
      g.sync();
      own.grad_scores = grad_scores.data();
      own.weights = again.data();
      for (int64_t r = 0; r < own.rows; ++r) attention_weights_backward_row<float>(g, own, r);
    });
    expect(weights == again, "the weights of the backward pass", width);
    for (const auto* more : {&signed_probs, &grad_scores}) weights.insert(weights.end(), more->begin(), more->end());
    return weights;
  });
}

}  // namespace
