// The whole forward of a few tokens in one launch: every block walks through the same list of operations.
//
// An operation's parts (tiles, rows, heads) are shared out to the blocks, then all blocks wait for each other. Between
// operations nothing is launched, and while a block waits, the W of the next linear is on its way to the L2 cache.
// The parts are those of the kernels that run alone, so the bits are the same. The list travels as the kernel's
// argument, in the constant bank. With int8 the encoder's linears have W of 8 bits and the head's of bf16, so that each
// stage says which it is. fp32 is left to the graph: the halves of its operands and the walk itself are more
// than the registers of a thread. Whether it is faster than a graph of the same operations has not been measured on a
// GPU yet; a caller asks for it.
#include <algorithm>

#include "cuda/add_layer_norm.cuh"
#include "cuda/attention.cuh"
#include "cuda/embed.cuh"
#include "cuda/linear.cuh"
#include "cuda/program.h"

namespace distilfast::cuda {
namespace {

constexpr int block_threads = 128;
static_assert(row_threads == block_threads && attention_threads == block_threads);
static_assert(Few::threads == block_threads && Some::threads == block_threads);
static_assert(most_persistent_rows == Some::rows);

template <class T>
using PersistentHead = Head<T, most_persistent_head>;

// Calls part(i) for this block's share of 0 to count - 1.
template <class Part>
__device__ inline void share_out(int count, Part part) {
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    sync_threads();  // the part before is done with its shared memory
    part(i);
  }
}

template <class T, class W, class Tile>
__device__ inline void linear_part(const Linear& op, int i) {
  const int columns = divide_up(op.packed.n, Tile::columns);
  linear_tile<T, W, Tile>(op, i % columns, 0, i / columns);
}

template <class Tile>
__device__ inline int linear_parts(const Linear& op) {
  return divide_up(op.packed.n, Tile::columns) * op.splits;
}

template <class T, class W>
__device__ inline void run_linear(const Linear& op, int most_rows) {
  if (most_rows <= Few::rows) return share_out(linear_parts<Few>(op), [&](int i) { linear_part<T, W, Few>(op, i); });
  share_out(linear_parts<Some>(op), [&](int i) { linear_part<T, W, Some>(op, i); });
}

// T: of x and of the head's linears; W: of the encoder's.
template <class T, class W>
__device__ inline void run_stage(const Stage& stage) {
  switch (stage.kind) {
    case Stage::Kind::embed:
      return share_out(stage.most_rows, [&](int i) { embed_row<T>(stage.embed, i); });
    case Stage::Kind::add_layer_norm:
      return share_out(stage.most_rows, [&](int i) { add_layer_norm_row<T>(stage.add_layer_norm, i); });
    case Stage::Kind::attention:
      // A head's tiles are at most one for every 16 rows in the usual case; what there is more is walked over.
      return share_out(stage.attention.heads * divide_up(stage.most_rows, 16), [&](int i) {
        const int heads = stage.attention.heads;
        attention_tiles<T, PersistentHead<T>>(stage.attention, i % heads, i / heads, divide_up(stage.most_rows, 16));
      });
    case Stage::Kind::linear:
      if constexpr (std::is_same_v<W, Int8>)
        if (stage.linear.precision == Precision::int8) return run_linear<T, Int8>(stage.linear, stage.most_rows);
      return run_linear<T, T>(stage.linear, stage.most_rows);
  }
}

template <class T, class W>
__device__ inline Index weight_bytes(const Linear& op) {
  if constexpr (std::is_same_v<W, Int8>)
    if (op.precision == Precision::int8) return packed_bytes<T, Int8>(op.packed.n, op.packed.k);
  return packed_bytes<T, T>(op.packed.n, op.packed.k);
}

// A share of the next linear's W: all blocks' together are the whole.
template <class T, class W>
__device__ inline void prefetch_weight(const Program& program, int next) {
  constexpr int line_bytes = 128;
  while (next < program.count && program.stages[next].kind != Stage::Kind::linear) ++next;
  if (next == program.count) return;
  const Linear& op = program.stages[next].linear;
  const Index bytes = weight_bytes<T, W>(op);
  const Index first = (blockIdx.x * block_threads + threadIdx.x) * Index{line_bytes};
  for (Index at = first; at < bytes; at += static_cast<Index>(gridDim.x) * block_threads * line_bytes)
    prefetch(static_cast<const char*>(op.packed.weight) + at);
}

static_assert(sizeof(Program) <= 32764, "more than a kernel's arguments can be");

template <class T, class W>
__global__ void __launch_bounds__(block_threads, 1) persistent_kernel(const __grid_constant__ Program program) {
  prefetch_weight<T, W>(program, 0);
  for (int i = 0; i < program.count; ++i) {
    run_stage<T, W>(program.stages[i]);
    if (i + 1 == program.count) break;
    if (program.stages[i].kind == Stage::Kind::linear) prefetch_weight<T, W>(program, i + 1);
    sync_grid();
  }
}

// W of 8 bits takes no more than W of 16.
static_assert(StageSizes<Int8, Few>::shared_bytes <= StageSizes<BFloat16, Few>::shared_bytes &&
              StageSizes<Int8, Some>::shared_bytes <= StageSizes<BFloat16, Some>::shared_bytes);

std::size_t shared_bytes(Precision precision, const Program& program) {
  std::size_t bytes =
      std::max<std::size_t>(StageSizes<BFloat16, Few>::shared_bytes, StageSizes<BFloat16, Some>::shared_bytes);
  with_short_element(precision,
                     [&]<class T>() { bytes = std::max<std::size_t>(bytes, PersistentHead<T>::shared_bytes); });
  for (int i = 0; i < program.count; ++i) {
    const Stage& stage = program.stages[i];
    if (stage.kind == Stage::Kind::add_layer_norm)
      bytes = std::max(bytes, layer_norm_shared_bytes(stage.add_layer_norm.norm.width));
  }
  return bytes;
}

// Calls run(kernel).
template <class Run>
void with_kernel(Precision precision, Run run) {
  if (precision == Precision::int8) return run(persistent_kernel<BFloat16, Int8>);
  with_short_element(precision, [&]<class T>() { run(persistent_kernel<T, T>); });
}

}  // namespace

void run_persistent(Precision precision, const Program& program, Stream& stream) {
  with_kernel(precision, [&](auto kernel) {
    launch_cooperative("the persistent encoder", kernel, block_threads, shared_bytes(precision, program), stream,
                       program);
  });
}

void load_persistent(Precision precision) {
  with_kernel(precision, [](auto kernel) { load_kernel("the persistent encoder", kernel); });
}

}  // namespace distilfast::cuda
