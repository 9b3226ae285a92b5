// The four operations over all rows of a batch, shared out to a team. How the work is cut never changes a bit.
#pragma once

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

// A thread's scratch is kernels.attention_scratch(head size, longest sequence); `probabilities` is null or has room for
// [H, queries, keys] of every sequence, end to end.
void attention_stage(const Kernels& kernels, const Attention& op, Index heads, const Sequences& sequences,
                     Scratch scratch, float* probabilities, Team& team);

// out = LN(x + residual); residual may be null.
void add_layer_norm_stage(const Kernels& kernels, const Norm& norm, const float* x, const float* residual, Index rows,
                          float* out, Team& team, Next next = {});

}  // namespace distilfast
