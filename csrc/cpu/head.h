// The linears on top of the encoder, over rows of its last hidden state.
#pragma once

#include <vector>

#include "common/workspace_pool.h"
#include "cpu/model.h"

namespace distilfast {

// Where a head's result goes: all columns of its last linear, or the selected ones of `input`; see ForwardInput.
struct HeadOutput {
  const ForwardInput& input;
  float* out;  // [R, N] or [R, C]
};

// What a head needs for its intermediates, for R rows.
struct HeadScratch {
  float* between;       // two of [R, `widest`]
  Index widest;         // see `widest_intermediate`
  std::byte* packed_a;  // of its linears
};

// Columns of the widest output that does not go to the caller: the last linear's does unless columns are selected.
Index widest_intermediate(const std::vector<HeadLayer>& head, bool columns_are_selected);

// x [R, D] -> output. The last linear writes to the output itself unless only some of its columns are asked for.
void run_head(const Kernels& kernels, const std::vector<HeadLayer>& head, const float* x, Index rows,
              const HeadOutput& output, const HeadScratch& scratch, Team& team, const Trace& trace);

// A head by itself, for an encoder that has several. Its bits are those of an encoder with this head.
class Head {
 public:
  // `width`: D; for `find` and `precision` see Model.
  Head(int width, float eps, const std::vector<HeadLinear>& linears, const FindTensor& find, const Kernels& kernels,
       Precision precision, int threads);

  // x [rows, D]; of `input` only the selected columns are read. Safe to call from several threads at once.
  void forward(const float* x, Index rows, const HeadOutput& output) const;

 private:
  const Kernels& kernels_;
  int threads_;
  PackedWeights packed_weights_;
  std::vector<HeadLayer> layers_;
  mutable WorkspacePool<Arena> arenas_;
};

}  // namespace distilfast
