// The row functions of the SBO head, run by one thread, by 32 with one column a slot, and by 32 with 16-byte packs.
// Part of group_test.cpp, which includes this behind its helpers.
#pragma once

#include <algorithm>
#include <vector>

#include "rows/sbo.h"

namespace {

// Gaussians as rows of T whose first element is aligned to an access, as torch's are.
template <class T>
struct Rows {
  std::vector<T> memory;
  T* data;

  explicit Rows(int64_t count) : memory(size_t(count) + kVectorBytes) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    data = memory.data() + (kVectorBytes - address % kVectorBytes) % kVectorBytes / sizeof(T);
  }
  Rows(std::mt19937_64& random, int64_t count) : Rows(count) {
    const auto values = gaussians(random, count);
    for (int64_t i = 0; i < count; ++i) data[i] = store<T>(values[size_t(i)]);
  }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
};

// Appends `count` values to what is compared.
template <class T>
void append(std::vector<float>& all, const T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) all.push_back(load(values[i]));
}

// One result of T may be rounded to its neighbour, since sums over a row are added in another order.
template <class T>
bool near(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 1e-6f;
  for (float x : a) largest = std::max(largest, std::fabs(x));
  const float unit = sizeof(T) == 2 ? 1.0f / 128 : 2e-6f;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= unit * std::fabs(a[i]) + 2e-6f * largest)) return false;
  }
  return a.size() == b.size();
}

// make(run) returns the results of run(work), where work(columns) is what each thread of a group does.
template <class T, class Make>
void compare_columns(const char* what, int64_t size, const Make& make) {
  const auto one = make([&](const auto& work) { work(Strided<OneThread>{OneThread(), size}); });
  const auto strided =
      make([&](const auto& work) { run_lanes([&](const Lanes& g) { work(Strided<Lanes>{g, size}); }); });
  expect(near<T>(one, strided), what, size);
  if (size % kVectorWidth<T>) return;
  using Columns = Packed<Lanes, kVectorWidth<T>, 2>;
  if (size > Columns::kColumns) return;
  const auto packed = make([&](const auto& work) { run_lanes([&](const Lanes& g) { work(Columns{g, size}); }); });
  expect(near<T>(one, packed), what, -size);
  ++packed_cases;
}

template <class T>
void test_norm(std::mt19937_64& random, int64_t size) {
  const int64_t rows = 4, with_ids[] = {5, kIgnore, 7, 8};
  const int64_t* ids = random() % 2 ? with_ids : nullptr;
  const Rows<T> x(random, rows * size), grad(random, rows * size);
  const Rows<float> weight(random, size), bias(random, size);
  compare_columns<T>("gelu_layer_norm", size, [&](const auto& run) {
    const Rows<T> out(rows * size), grad_x(rows * size);
    const Rows<float> partials(3 * size);
    float mean[rows], rstd[rows];
    std::vector<float> scratch(size_t(kBackwardArrays * size), 99.0f);
    run([&](const auto& columns) {
      GeluLayerNormArgs forward{};
      forward.x = x.data;
      forward.row_ids = ids;
      forward.weight = weight.data;
      forward.bias = bias.data;
      forward.eps = 1e-12;
      forward.out = out.data;
      forward.mean = mean;
      forward.rstd = rstd;
      for (int64_t r = 0; r < rows; ++r) gelu_layer_norm_at<T>(columns, forward, r, scratch.data());
      columns.g.sync();
      GeluLayerNormBackwardArgs backward{};
      backward.grad_out = grad.data;
      backward.x = x.data;
      backward.row_ids = ids;
      backward.weight = weight.data;
      backward.mean = mean;
      backward.rstd = rstd;
      backward.grad_x = grad_x.data;
      backward.partials = partials.data;
      backward.rows = rows;
      gelu_layer_norm_backward_chunk<T>(columns, backward, 0, scratch.data());
    });
    std::vector<float> all(mean, mean + rows);
    append(all, out.data, rows * size);
    append(all, grad_x.data, rows * size);
    append(all, partials.data, 3 * size);
    return all;
  });
}

template <class T>
void test_sbo(std::mt19937_64& random, int64_t size) {
  const int64_t spans = 3, positions = 4, targets = 8;
  const int64_t target_spans[] = {0, 0, 0, 1, 2, 2, 2, 0}, offsets[] = {0, 1, 2, 0, 0, 1, 2, 0};
  const int64_t sbo_ids[] = {5, 6, 7, kIgnore, 8, 9, kIgnore, kIgnore};
  int64_t firsts[] = {0, -1, 4};
  const Rows<T> span_rows(random, spans * size), position_rows(random, positions * size), grad(random, targets * size);
  const Rows<float> weight(random, size), bias(random, size);
  const bool apart = random() % 2;  // the group's position sums lie in memory of their own, those of one thread do not
  compare_columns<T>("sbo_first_layer", size, [&](const auto& run) {
    const Rows<T> out(targets * size), grad_spans(spans * size);
    const Rows<float> partials((2 + positions) * size), position_sums(positions * size);
    float mean[targets], rstd[targets];
    std::vector<float> scratch(size_t(kBackwardArrays * size), 99.0f);
    run([&](const auto& columns) {
      SboFirstLayerArgs forward{};
      forward.span_rows = span_rows.data;
      forward.position_rows = position_rows.data;
      forward.target_spans = target_spans;
      forward.target_offsets = offsets;
      forward.sbo_ids = sbo_ids;
      forward.weight = weight.data;
      forward.bias = bias.data;
      forward.eps = 1e-12;
      forward.out = out.data;
      forward.mean = mean;
      forward.rstd = rstd;
      forward.targets = targets;
      forward.spans = spans;
      forward.positions = positions;
      for (int64_t k = 0; k < targets; ++k) sbo_first_layer_at<T>(columns, forward, k, scratch.data());
      columns.g.sync();
      SboFirstLayerBackwardArgs backward{};
      backward.grad_out = grad.data;
      backward.span_rows = span_rows.data;
      backward.position_rows = position_rows.data;
      backward.target_spans = target_spans;
      backward.target_offsets = offsets;
      backward.sbo_ids = sbo_ids;
      backward.weight = weight.data;
      backward.mean = mean;
      backward.rstd = rstd;
      backward.grad_span_rows = grad_spans.data;
      backward.partials = partials.data;
      backward.first_targets = firsts;
      backward.targets = targets;
      backward.spans = spans;
      backward.positions = positions;
      float* sums = apart && columns.g.size() > 1 ? position_sums.data : nullptr;
      sbo_first_layer_backward_chunk<T>(columns, backward, 0, scratch.data(), sums);
    });
    std::vector<float> all(mean, mean + targets);
    append(all, out.data, targets * size);
    append(all, grad_spans.data, spans * size);
    append(all, partials.data, (2 + positions) * size);
    return all;
  });
}

}  // namespace
