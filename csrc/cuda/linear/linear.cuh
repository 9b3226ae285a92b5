// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N]; with split-K, each split's partial x Wt.
//
// Precision: operands of T; accumulators, bias and activation in fp32; GELU in its exact form with erf. int8 here is
// W8A16; for more than 64 rows it is W8A8 (w8a8.cu). Reference: distilfast/reference.py, linear.
#pragma once

#include "cuda/linear/epilogue.cuh"
#include "cuda/linear/mainloop.cuh"

namespace distilfast::cuda {
namespace {

// One CTA tile of out, of one split, by the whole block. What another kernel or block writes is read after
// wait_for_x().
template <class T, class W, class Tile, class WaitForX>
__device__ inline void linear_tile(const Linear& op, int column_tile, int row_tile, int split, WaitForX wait_for_x) {
  const int row0 = row_tile * Tile::rows, column0 = column_tile * Tile::columns;
  auto* bias = reinterpret_cast<float*>(shared_memory() + StageSizes<W, Tile>::bias_at);
  const MainLoop<T, W, Tile> main_loop(op, column0, split);
  copy_bias<Tile>(op, column0, bias);
  wait_for_x();
  const int rows = load(op.rows);
  if (row0 >= rows) return drop_copies();
  Accumulators<Tile> accumulators = {};
  main_loop.run(op, row0, rows, accumulators);
  stage_accumulators<Tile>(accumulators);
  epilogue<T, Tile>(op, row0, rows, column0, split, bias);
}

}  // namespace
}  // namespace distilfast::cuda
