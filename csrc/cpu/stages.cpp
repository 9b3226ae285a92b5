#include "cpu/stages.h"

#include <algorithm>
#include <vector>

namespace distilfast {

namespace {

// More tasks than threads, so that a thread whose core is taken away leaves its share to the others.
constexpr Index tasks_per_thread = 4;

// So many panels share a part's x while it is in L2.
constexpr Index most_panels = 8;

Index divide_up(Index n, Index by) { return (n + by - 1) / by; }

Range slice(Index count, Index parts, Index part) { return {count * part / parts, count * (part + 1) / parts}; }

// Rows one after the other, each independent: a few slices a thread, none smaller than worth the handing over.
template <class Part>
void in_row_slices(Index rows, Team& team, Part part) {
  const Index slices = std::clamp<Index>(rows / 4, 1, tasks_per_thread * team.threads());
  team.run(slices, [&](Index i, int) { part(slice(rows, slices, i)); });
}

}  // namespace

void embed_stage(const Kernels& kernels, const Embed& op, Index rows, Team& team) {
  in_row_slices(rows, team, [&](Range part) { kernels.embed(op, part); });
}

void linear_stage(const Dense& dense, Range panels, const float* x, Index rows, Activation activation, float* out,
                  Index out_stride, float* operands, Team& team) {
  const LinearKernels& kernels = dense.kernels();
  const Linear op{x, dense.packed().k, rows, operands, dense.packed(), activation, out, out_stride};
  if (kernels.operands_size(rows, op.packed.k) > 0)
    in_row_slices(rows, team, [&](Range part) { kernels.make_operands(op, part); });
  const Index all = panels.end - panels.begin, row_parts = divide_up(rows, kernels.part_rows);
  const Index steps = divide_up(rows, kernels.part_step);
  const Index wanted = divide_up(tasks_per_thread * team.threads(), std::max<Index>(row_parts, 1));
  const Index panel_parts = std::min(all, std::max(divide_up(all, most_panels), team.threads() > 1 ? wanted : 1));
  // Consecutive tasks share rows, not panels: what they share is then in the caches of all threads.
  team.run(row_parts * panel_parts, [&](Index i, int) {
    const Range part = slice(all, panel_parts, i % panel_parts), in_steps = slice(steps, row_parts, i / panel_parts);
    const Range in_rows{in_steps.begin * kernels.part_step, std::min(rows, in_steps.end * kernels.part_step)};
    kernels.run(op, in_rows, {panels.begin + part.begin, panels.begin + part.end});
  });
}

void linear_stage(const Dense& dense, const float* x, Index rows, Activation activation, float* out, float* operands,
                  Team& team) {
  linear_stage(dense, {0, dense.panels()}, x, rows, activation, out, dense.columns(), operands, team);
}

void attention_stage(const Kernels& kernels, const Attention& op, Index heads, const Sequences& sequences,
                     Scratch scratch, float* probabilities, Team& team) {
  // A part packs the keys and values of its head anew, so queries are only split where heads do not go round.
  const Index units = heads * sequences.count;
  const Index splits = team.threads() == 1 ? 1 : std::max<Index>(1, divide_up(2 * team.threads(), units));
  auto keys_of = [&](Index b) { return Range{sequences.key_ends[b], sequences.key_ends[b + 1]}; };
  auto queries_of = [&](Index b) { return Range{sequences.query_ends[b], sequences.query_ends[b + 1]}; };
  std::vector<Index> begins;  // of each sequence's probabilities
  if (probabilities) {
    Index begin = 0;
    for (Index b = 0; b < sequences.count; ++b) {
      begins.push_back(begin);
      begin += heads * (queries_of(b).end - queries_of(b).begin) * (keys_of(b).end - keys_of(b).begin);
    }
  }
  team.run(units * splits, [&](Index i, int worker) {
    const Index b = i / (heads * splits), head = i / splits % heads;
    const Range keys = keys_of(b), all = queries_of(b);
    const Index rows = all.end - all.begin;
    const Range part = slice(rows, splits, i % splits);
    if (part.begin == part.end) return;
    float* to =
        probabilities ? probabilities + begins[b] + (head * rows + part.begin) * (keys.end - keys.begin) : nullptr;
    kernels.attention(op, {head, {all.begin + part.begin, all.begin + part.end}, keys, to},
                      scratch.data + worker * scratch.stride);
  });
}

void add_layer_norm_stage(const Kernels& kernels, const Norm& norm, const float* x, const float* residual, Index rows,
                          float* out, Team& team) {
  const AddLayerNorm op{x, residual, norm.view(), out};
  in_row_slices(rows, team, [&](Range part) { kernels.add_layer_norm(op, part); });
}

}  // namespace distilfast
