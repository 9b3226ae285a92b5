// The four operations over all rows of a batch, shared out to a team. How the work is cut never changes a bit.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/model.h"
#include "cpu/threads.h"

namespace distilfast {

// Sequences of a batch as rows: keys of sequence b are rows key_ends[b]..key_ends[b + 1] of k and v; its queries are
// rows query_ends[b]..query_ends[b + 1] of q and out.
struct Sequences {
  const std::int32_t* key_ends;
  const std::int32_t* query_ends;
  Index count;
};

// The linear that reads what a stage writes, and where its operands go: they are made of each row while it is in L1.
// Nothing is done where `dense` is null or reads its input as it is.
struct Next {
  const Dense* dense = nullptr;
  float* operands = nullptr;
};

// How the attention of a batch is shared out: pieces, each the queries of a sequence or some of them, to be computed
// for every head. The most work comes first, so that no thread begins it when the others have nothing left.
class AttentionPlan {
 public:
  struct Piece {
    Range queries, keys;
    Index probabilities, head_probabilities;  // where those of head 0 begin, and how far behind them the next head's

    Index work() const { return (queries.end - queries.begin) * (keys.end - keys.begin); }
  };

  void cut(const Sequences& sequences, Index heads, int threads);

  const std::vector<Piece>& pieces() const { return pieces_; }
  Index heads() const { return heads_; }

 private:
  std::vector<Piece> pieces_;
  Index heads_ = 0;
};

void embed_stage(const Kernels& kernels, const Embed& op, Index rows, Team& team, Next next = {});

// What every thread of a team has for itself: `stride` floats each.
struct Scratch {
  float* data;
  Index stride;
};

// Panels of the columns of `dense`, all by default. `operands` is null or has room for dense.kernels().operands_size;
// they are made here unless the stage before has `made` them.
void linear_stage(const Dense& dense, Range panels, const float* x, Index rows, Activation activation, float* out,
                  Index out_stride, float* operands, bool made, Team& team);
void linear_stage(const Dense& dense, const float* x, Index rows, Activation activation, float* out, float* operands,
                  bool made, Team& team);

// A thread's scratch is kernels.scratch(head size, longest sequence); `probabilities` is null or has room for
// [H, queries, keys] of every sequence, end to end.
void attention_stage(const AttentionKernels& kernels, const Attention& op, const AttentionPlan& plan, Scratch scratch,
                     float* probabilities, Team& team);

// out = LN(x + residual); residual may be null.
void add_layer_norm_stage(const Kernels& kernels, const Norm& norm, const float* x, const float* residual, Index rows,
                          float* out, Team& team, Next next = {});

}  // namespace distilfast
