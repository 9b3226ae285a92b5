#include "cpu/head.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace distilfast {

namespace {

// Only the panels that hold the input's columns, into y [R, N], and from there the columns into output [R, C].
void run_selected(const HeadLayer& layer, const float* x, Index rows, const HeadOutput& output, float* y,
                  std::byte* packed_a, Team& team) {
  const ForwardInput& input = output.input;
  const Index n = layer.dense.columns(), panel = layer.dense.kernels().panel;
  for (Index begin = 0, end; begin < input.num_columns; begin = end) {
    const Index first = input.columns[begin] / panel;
    Index panels = 1;
    for (end = begin + 1; end < input.num_columns && input.columns[end] / panel <= first + panels; ++end)
      panels = input.columns[end] / panel - first + 1;
    parallel_linear(layer.dense, {first, first + panels}, {x, layer.dense.packed().k}, rows, layer.activation, {y, n},
                    packed_a, begin > 0, team);
  }
  select_columns(input, y, rows, n, output.out);
}

PackedWeights pack(const std::vector<LinearShape>& linears, const FindTensor& find, const Kernels& kernels,
                   int threads) {
  Team team(threads);
  return PackedWeights(kernels, linears, find, team);
}

}  // namespace

Index widest_intermediate(const std::vector<HeadLayer>& head, bool columns_are_selected) {
  Index widest = 0;
  for (std::size_t i = 0; i < head.size(); ++i)
    if (i + 1 < head.size() || columns_are_selected) widest = std::max(widest, head[i].dense.columns());
  return widest;
}

void run_head(const Kernels& kernels, const std::vector<HeadLayer>& head, const float* x, Index rows,
              const HeadOutput& output, const HeadScratch& scratch, Team& team, const Trace& trace) {
  for (std::size_t i = 0; i < head.size(); ++i) {
    const HeadLayer& layer = head[i];
    const bool last = i + 1 == head.size();
    float* const between = scratch.between + static_cast<Index>(i % 2) * rows * scratch.widest;
    if (last && output.input.columns) return run_selected(layer, x, rows, output, between, scratch.packed_a, team);
    float* y = last ? output.out : between;
    const Index columns = layer.dense.columns();
    parallel_linear(layer.dense, {x, layer.dense.packed().k}, rows, layer.activation, {y, columns}, scratch.packed_a,
                    false, team);
    if (layer.norm) parallel_add_layer_norm(kernels, *layer.norm, {y, columns}, nullptr, rows, y, team);
    if (trace) trace(head_name(i), y, rows, columns);
    x = y;
  }
}

Head::Head(int width, float eps, const std::vector<HeadLinear>& linears, const FindTensor& find, const Kernels& kernels,
           Precision precision, int threads)
    : kernels_(kernels),
      threads_(threads),
      packed_weights_(pack(head_linears(width, linears, precision), find, kernels, threads)),
      layers_(head_layers(packed_weights_, linears, find, eps)),
      arenas_(process_mutex()) {}

void Head::forward(const float* x, Index rows, const HeadOutput& output) const {
  Team team(threads_);
  const Index widest = widest_intermediate(layers_, output.input.columns);
  const Index between = 2 * rows * widest * Index{sizeof(float)};
  const Index packed_a = packed_a_size(layers_, rows);
  std::unique_ptr<Arena> arena = arenas_.borrow();
  arena->reset(Arena::padded(between) + Arena::padded(packed_a));
  float* const intermediates = view<float>(arena->take(between));
  run_head(kernels_, layers_, x, rows, output, {intermediates, widest, arena->take(packed_a)}, team, {});
  arenas_.give_back(std::move(arena));
}

}  // namespace distilfast
