// attention: out = softmax(q kt / sqrt(d)) v for one head of one sequence, in plain C++, accumulated in double.
#pragma once

#include <cmath>

#include "cpu/kernels.h"
#include "cpu/linear/ref.h"

namespace distilfast {
namespace {

Index attention_scratch(Index, Index keys) { return keys * Index{sizeof(float)}; }

// The operands, rounded to their type, are q, k, v and the probabilities before these are divided by their sum.
template <class Operands>
void attention(const Attention& op, const AttentionTask& task, std::byte* scratch) {
  float* scores = view<float>(scratch);
  const auto operand = [](float x) { return static_cast<double>(Operands::round(x)); };
  const Index keys = task.keys.end - task.keys.begin, d = op.head_size;
  for (Index row = task.queries.begin; row < task.queries.end; ++row) {
    const float* q = op.q + row * op.q_stride + task.head * d;
    const float* k = op.k + task.keys.begin * op.kv_stride + task.head * d;
    const float* v = op.v + task.keys.begin * op.kv_stride + task.head * d;
    double high = -INFINITY, total = 0.0;
    for (Index j = 0; j < keys; ++j) {
      double score = 0.0;
      for (Index c = 0; c < d; ++c) score += operand(q[c]) * operand(k[j * op.kv_stride + c]);
      scores[j] = static_cast<float>(score * op.scale);
      high = scores[j] > high ? scores[j] : high;
    }
    for (Index j = 0; j < keys; ++j) {
      scores[j] = static_cast<float>(std::exp(scores[j] - high));
      total += scores[j];
    }
    for (Index c = 0; c < d; ++c) {
      double sum = 0.0;
      for (Index j = 0; j < keys; ++j) sum += operand(scores[j]) * operand(v[j * op.kv_stride + c]);
      op.out[row * op.out_stride + task.head * d + c] = static_cast<float>(sum / total);
    }
    if (task.probabilities)
      for (Index j = 0; j < keys; ++j)
        task.probabilities[(row - task.queries.begin) * keys + j] = static_cast<float>(scores[j] / total);
  }
}

template <class Operands>
constexpr AttentionKernels attention_kernels(const char* arithmetic) {
  return {arithmetic, attention_scratch, attention<Operands>};
}

}  // namespace
}  // namespace distilfast
