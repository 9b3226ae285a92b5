#include "cpu/stages.h"

#include <algorithm>
#include <vector>

namespace distilfast {

namespace {

// More tasks than threads, so that a thread whose core is taken away leaves its share to the others.
constexpr Index tasks_per_thread = 4;

// So many panels share a part's x while it is in L2.
constexpr Index most_panels = 8;

// Fewer queries are not worth the copying of their keys and values, which each piece of a sequence does anew.
constexpr Index least_queries = 64;

Index divide_up(Index n, Index by) { return (n + by - 1) / by; }

Range slice(Index count, Index parts, Index part) { return {count * part / parts, count * (part + 1) / parts}; }

// Which of `parts` the task `taken` does. Threads take tasks in turn, and so numbered each walks along W on its own: a
// kernel that fetches ahead, across the end of its task, fetches what the same thread will need.
Index in_walks(Index taken, Index parts, Index threads) {
  const Index walk = taken % threads, step = taken / threads;
  return walk * (parts / threads) + std::min(walk, parts % threads) + step;
}

// Rows one after the other, each independent: a few slices a thread, none smaller than worth the handing over.
template <class Part>
void in_row_slices(Index rows, Team& team, Part part) {
  const Index slices = std::clamp<Index>(rows / 4, 1, tasks_per_thread * team.threads());
  team.run(slices, [&](Index i, int) { part(slice(rows, slices, i)); });
}

Linear described(const Dense& dense, const float* x, Index rows, Activation activation, float* out, Index out_stride,
                 float* operands) {
  return {x, dense.packed().k, rows, operands, dense.packed(), activation, out, out_stride};
}

void make_operands(const Next& next, const float* x, Index rows, Range part) {
  if (!next.dense || next.dense->kernels().operands_size(rows, next.dense->packed().k) == 0) return;
  next.dense->kernels().make_operands(described(*next.dense, x, rows, Activation::none, nullptr, 0, next.operands),
                                      part);
}

}  // namespace

void embed_stage(const Kernels& kernels, const Embed& op, Index rows, Team& team, Next next) {
  in_row_slices(rows, team, [&](Range part) {
    kernels.embed(op, part);
    make_operands(next, op.out, rows, part);
  });
}

void linear_stage(const Dense& dense, Range panels, const float* x, Index rows, Activation activation, float* out,
                  Index out_stride, float* operands, bool made, Team& team) {
  const LinearKernels& kernels = dense.kernels();
  const Linear op = described(dense, x, rows, activation, out, out_stride, operands);
  if (!made && kernels.operands_size(rows, op.packed.k) > 0)
    in_row_slices(rows, team, [&](Range part) { kernels.make_operands(op, part); });
  const Index all = panels.end - panels.begin, row_parts = divide_up(rows, kernels.part_rows);
  const Index steps = divide_up(rows, kernels.part_step);
  const Index wanted = divide_up(tasks_per_thread * team.threads(), std::max<Index>(row_parts, 1));
  const Index panel_parts = std::min(all, std::max(divide_up(all, most_panels), team.threads() > 1 ? wanted : 1));
  // Consecutive tasks share rows, not panels: what they share is then in the caches of all threads.
  team.run(row_parts * panel_parts, [&](Index i, int) {
    const Range part = slice(all, panel_parts, in_walks(i % panel_parts, panel_parts, team.threads())),
                in_steps = slice(steps, row_parts, i / panel_parts);
    const Range in_rows{in_steps.begin * kernels.part_step, std::min(rows, in_steps.end * kernels.part_step)};
    kernels.run(op, in_rows, {panels.begin + part.begin, panels.begin + part.end});
  });
}

void linear_stage(const Dense& dense, const float* x, Index rows, Activation activation, float* out, float* operands,
                  bool made, Team& team) {
  linear_stage(dense, {0, dense.panels()}, x, rows, activation, out, dense.columns(), operands, made, team);
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
    const Index parts = std::clamp<Index>(divide_up(all.work(), share), 1, std::max<Index>(rows / least_queries, 1));
    for (Index part = 0; part < parts; ++part) {
      const Range own = slice(rows, parts, part);
      Piece& piece = part == 0 ? pieces_[i] : pieces_.emplace_back(all);
      piece.queries = {all.queries.begin + own.begin, all.queries.begin + own.end};
      piece.probabilities = all.probabilities + own.begin * keys;
    }
  }
  std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.work() > b.work(); });
}

void attention_stage(const AttentionKernels& kernels, const Attention& op, const AttentionPlan& plan, Scratch scratch,
                     float* probabilities, Team& team) {
  const Index heads = plan.heads();
  team.run(heads * static_cast<Index>(plan.pieces().size()), [&](Index i, int worker) {
    const AttentionPlan::Piece& piece = plan.pieces()[static_cast<std::size_t>(i / heads)];
    const Index head = i % heads;
    float* to = probabilities ? probabilities + piece.probabilities + head * piece.head_probabilities : nullptr;
    kernels.run(op, {head, piece.queries, piece.keys, to}, scratch.data + worker * scratch.stride);
  });
}

void add_layer_norm_stage(const Kernels& kernels, const Norm& norm, const float* x, const float* residual, Index rows,
                          float* out, Team& team, Next next) {
  const AddLayerNorm op{x, residual, norm.view(), out};
  in_row_slices(rows, team, [&](Range part) {
    kernels.add_layer_norm(op, part);
    make_operands(next, out, rows, part);
  });
}

}  // namespace distilfast
