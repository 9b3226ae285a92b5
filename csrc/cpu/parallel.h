// The four operations over all rows of a batch, split among the threads of a team. The split never changes a bit.
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

// The linear that reads an operation's output, and the buffer for its packed A: each row is packed while it is in L1.
// Nothing is packed where `dense` is null or reads its input unpacked.
struct Next {
  const Dense* dense = nullptr;
  std::byte* packed_a = nullptr;
};

// How the attention of a batch is split: into pieces, each all queries of a sequence or some of them, each computed for
// every head. The largest come first, so that no thread begins one when the others have nothing left.
class AttentionPlan {
 public:
  struct Piece {
    Range queries, keys;
    Index probabilities, head_probabilities;  // the offset of those of head 0, and from one head's to the next one's

    Index work() const { return (queries.end - queries.begin) * (keys.end - keys.begin); }
  };

  void cut(const Sequences& sequences, Index heads, int threads);

  const std::vector<Piece>& pieces() const { return pieces_; }
  Index heads() const { return heads_; }

 private:
  std::vector<Piece> pieces_;
  Index heads_ = 0;
};

void parallel_embed(const Kernels& kernels, const Embed& op, Index rows, Team& team, Next next = {});

// What every thread of a team has for itself: `stride` bytes each.
struct Scratch {
  std::byte* data;
  Index stride;
};

// The columns of some panels of `dense`, or of all. `packed_a` is null or has room for dense.kernels().packed_a_size;
// x is packed here unless the previous operation did (`is_packed`).
void parallel_linear(const Dense& dense, Range panels, ConstRows x, Index rows, Activation activation, Rows out,
                     std::byte* packed_a, bool is_packed, Team& team);
void parallel_linear(const Dense& dense, ConstRows x, Index rows, Activation activation, Rows out, std::byte* packed_a,
                     bool is_packed, Team& team);

// A thread's scratch is kernels.scratch(head size, longest sequence); `probabilities` is null or has room for
// [H, queries, keys] of every sequence, end to end.
void parallel_attention(const AttentionKernels& kernels, const Attention& op, const AttentionPlan& plan,
                        Scratch scratch, float* probabilities, Team& team);

// out = LN(x + residual); residual may be null.
void parallel_add_layer_norm(const Kernels& kernels, const Norm& norm, ConstRows x, const float* residual, Index rows,
                             float* out, Team& team, Next next = {});

}  // namespace distilfast
