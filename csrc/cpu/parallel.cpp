#include "cpu/parallel.h"

#include <algorithm>
#include <vector>

namespace distilfast {

namespace {

// More tasks than threads, so that the others take over the tasks of a thread that loses its core.
constexpr Index tasks_per_thread = 4;

// Panels of a task at most: they share its rows of x while these are in L2.
constexpr Index max_panels = 8;

// Queries of a piece at least: each piece of a sequence packs the keys and values again.
constexpr Index min_queries = 64;

Index divide_up(Index n, Index by) { return (n + by - 1) / by; }

Range slice(Index count, Index slices, Index i) { return {count * i / slices, count * (i + 1) / slices}; }

// Calls body(rows) for slices of independent rows: a few slices for each thread, of four rows at least.
template <class Body>
void in_row_slices(Index rows, Team& team, Body body) {
  const Index slices = std::clamp<Index>(rows / 4, 1, tasks_per_thread * team.threads());
  team.run(slices, [&](Index i, int) { body(slice(rows, slices, i)); });
}

Linear linear_op(const Dense& dense, ConstRows x, Index rows, Activation activation, Rows out, std::byte* packed_a) {
  return {x.data, x.stride, rows, packed_a, dense.packed(), activation, out.data, out.stride};
}

void pack_a(const Next& next, const float* x, Index all_rows, Range rows) {
  if (!next.dense || next.dense->kernels().packed_a_size(all_rows, next.dense->packed().k) == 0) return;
  const Linear op = linear_op(*next.dense, {x, next.dense->packed().k}, all_rows, Activation::none, {}, next.packed_a);
  next.dense->kernels().pack_a(op, rows);
}

}  // namespace

void parallel_embed(const Kernels& kernels, const Embed& op, Index rows, Team& team, Next next) {
  in_row_slices(rows, team, [&](Range slice) {
    kernels.embed(op, slice);
    pack_a(next, op.out, rows, slice);
  });
}

void parallel_linear(const Dense& dense, Range panels, ConstRows x, Index rows, Activation activation, Rows out,
                     std::byte* packed_a, bool is_packed, Team& team) {
  const LinearKernels& kernels = dense.kernels();
  const Linear op = linear_op(dense, x, rows, activation, out, packed_a);
  if (!is_packed && kernels.packed_a_size(rows, op.packed.k) > 0)
    in_row_slices(rows, team, [&](Range slice) { kernels.pack_a(op, slice); });
  const Index num_panels = panels.end - panels.begin, row_slices = divide_up(rows, kernels.mc);
  const Index row_units = divide_up(rows, kernels.mc_multiple);
  const Index wanted = divide_up(tasks_per_thread * team.threads(), std::max<Index>(row_slices, 1));
  const Index panel_slices =
      std::min(num_panels, std::max(divide_up(num_panels, max_panels), team.threads() > 1 ? wanted : 1));
  // Consecutive tasks, which are mostly one thread's, have the same rows and go along W: a kernel's prefetch past the
  // end of its task fetches what the same thread needs next.
  team.run(row_slices * panel_slices, [&](Index i, int) {
    const Range columns = slice(num_panels, panel_slices, i % panel_slices),
                units = slice(row_units, row_slices, i / panel_slices);
    const Range in_rows{units.begin * kernels.mc_multiple, std::min(rows, units.end * kernels.mc_multiple)};
    kernels.run(op, in_rows, {panels.begin + columns.begin, panels.begin + columns.end});
  });
}

void parallel_linear(const Dense& dense, ConstRows x, Index rows, Activation activation, Rows out, std::byte* packed_a,
                     bool is_packed, Team& team) {
  parallel_linear(dense, {0, dense.panels()}, x, rows, activation, out, packed_a, is_packed, team);
}

void AttentionPlan::cut(const Sequences& sequences, Index heads, int threads) {
  pieces_.clear();
  heads_ = heads;
  Index begin = 0, total = 0;
  for (Index b = 0; b < sequences.count; ++b) {
    const Range queries{sequences.query_ends[b], sequences.query_ends[b + 1]};
    const Range keys{sequences.key_ends[b], sequences.key_ends[b + 1]};
    const Piece all{queries, keys, begin, (queries.end - queries.begin) * (keys.end - keys.begin)};
    begin += heads * all.work(), total += heads * all.work();
    if (all.work() > 0) pieces_.push_back(all);
  }
  const Index share = threads == 1 ? total : divide_up(total, tasks_per_thread * threads);
  for (std::size_t i = 0, sequences_left = pieces_.size(); i < sequences_left; ++i) {
    const Piece all = pieces_[i];
    const Index rows = all.queries.end - all.queries.begin, keys = all.keys.end - all.keys.begin;
    const Index slices = std::clamp<Index>(divide_up(all.work(), share), 1, std::max<Index>(rows / min_queries, 1));
    for (Index slice_number = 0; slice_number < slices; ++slice_number) {
      const Range own = slice(rows, slices, slice_number);
      Piece& piece = slice_number == 0 ? pieces_[i] : pieces_.emplace_back(all);
      piece.queries = {all.queries.begin + own.begin, all.queries.begin + own.end};
      piece.probabilities = all.probabilities + own.begin * keys;
    }
  }
  std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.work() > b.work(); });
}

void parallel_attention(const AttentionKernels& kernels, const Attention& op, const AttentionPlan& plan,
                        Scratch scratch, float* probabilities, Team& team) {
  const Index heads = plan.heads();
  team.run(heads * static_cast<Index>(plan.pieces().size()), [&](Index i, int worker) {
    const AttentionPlan::Piece& piece = plan.pieces()[static_cast<std::size_t>(i / heads)];
    const Index head = i % heads;
    float* to = probabilities ? probabilities + piece.probabilities + head * piece.head_probabilities : nullptr;
    kernels.run(op, {head, piece.queries, piece.keys, to}, scratch.data + worker * scratch.stride);
  });
}

void parallel_add_layer_norm(const Kernels& kernels, const Norm& norm, ConstRows x, const float* residual, Index rows,
                             float* out, Team& team, Next next) {
  const AddLayerNorm op{x.data, x.stride, residual, norm.view(), out};
  in_row_slices(rows, team, [&](Range slice) {
    kernels.add_layer_norm(op, slice);
    pack_a(next, out, rows, slice);
  });
}

}  // namespace distilfast
