// A persistent kernel: the whole forward of a few tokens in one cooperative launch; every block executes the same list
// of operations.
//
// The tasks of an operation (CTA tiles, rows, heads) are distributed over the blocks, followed by a grid barrier.
// Nothing is launched between operations, and before a block waits it prefetches its share of the next linear's W into
// the L2 cache. The tasks are those of the separate kernels, so the results are equal bit for bit. The list is the
// kernel's argument, in constant memory. With int8 the encoder's linears are W8A16 and the head's bf16, so each
// operation has its own precision. fp32 is left to the graph: its split operands and the loop over the list need more
// registers than a thread has. Whether this beats a graph of the same operations has not been measured on a GPU, so it
// is off by default.
#include <algorithm>

#include "cuda/add_layer_norm.cuh"
#include "cuda/attention.cuh"
#include "cuda/embed.cuh"
#include "cuda/linear/linear.cuh"
#include "cuda/op_list.h"

namespace distilfast::cuda {
namespace {

constexpr int block_threads = 128;
static_assert(row_threads == block_threads && attention_threads == block_threads);
static_assert(CtaTile16x16::threads == block_threads && CtaTile64x32::threads == block_threads);
static_assert(max_persistent_rows == CtaTile64x32::rows);

template <class T>
using PersistentHead = HeadTraits<T, max_persistent_head>;

// A grid-stride loop over tasks: calls task(i) for this block's share of 0 to count - 1. A function of its own: of the
// operations of an inlined one the compiler keeps so many addresses across the loop over the list that they spill.
template <class Task>
[[gnu::noinline]] __device__ void for_each_task(int count, Task task) {
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    sync_threads();  // the previous task no longer uses the shared memory
    task(i);
  }
}

template <class T, class W, class Tile>
__device__ inline void linear_task(const Linear& op, int i) {
  const int columns = divide_up(op.packed.n, Tile::columns);
  linear_tile<T, W, Tile>(op, i % columns, 0, i / columns, [] {});  // a grid barrier came before
}

template <class Tile>
__device__ inline int linear_tasks(const Linear& op) {
  return divide_up(op.packed.n, Tile::columns) * op.split_k;
}

template <class T, class W>
__device__ inline void run_linear(const Linear& op, int bucket_rows) {
  if (bucket_rows <= CtaTile16x16::rows)
    return for_each_task(linear_tasks<CtaTile16x16>(op), [&](int i) { linear_task<T, W, CtaTile16x16>(op, i); });
  for_each_task(linear_tasks<CtaTile64x32>(op), [&](int i) { linear_task<T, W, CtaTile64x32>(op, i); });
}

// T: the type of x and of the head's W; W: that of the encoder's.
template <class T, class W>
__device__ inline void run_op(const Op& op) {
  switch (op.kind) {
    case Op::Kind::embed:
      return for_each_task(op.bucket_rows, [&](int i) { embed_row<T>(op.embed, i); });
    case Op::Kind::add_layer_norm:
      return for_each_task(op.bucket_rows, [&](int i) { add_layer_norm_row<T>(op.add_layer_norm, i); });
    case Op::Kind::attention:
      // One tile for each task where sequences have at least 16 tokens; with shorter ones a task loops over several.
      return for_each_task(op.attention.heads * divide_up(op.bucket_rows, 16), [&](int i) {
        const int heads = op.attention.heads;
        attention_tiles<T, PersistentHead<T>>(op.attention, i % heads, i / heads, divide_up(op.bucket_rows, 16));
      });
    case Op::Kind::linear:
      if constexpr (std::is_same_v<W, W8A16>)
        if (op.linear.precision == Precision::int8) return run_linear<T, W8A16>(op.linear, op.bucket_rows);
      return run_linear<T, T>(op.linear, op.bucket_rows);
  }
}

template <class T, class W>
__device__ inline Index weight_bytes(const Linear& op) {
  if constexpr (std::is_same_v<W, W8A16>)
    if (op.precision == Precision::int8) return packed_bytes<T, W8A16>(op.packed.n, op.packed.k);
  return packed_bytes<T, T>(op.packed.n, op.packed.k);
}

// Prefetches this block's share of the next linear's W.
template <class T, class W>
__device__ inline void prefetch_weight(const OpList& op_list, int next) {
  constexpr int piece_bytes = 4096;
  while (next < op_list.count && op_list.ops[next].kind != Op::Kind::linear) ++next;
  if (next == op_list.count) return;
  const Linear& op = op_list.ops[next].linear;
  const Index bytes = weight_bytes<T, W>(op);
  // Neighbouring pieces to different blocks, so that all of them prefetch a small W.
  for (Index i = threadIdx.x * Index{gridDim.x} + blockIdx.x; i * piece_bytes < bytes;
       i += Index{gridDim.x} * block_threads) {
    const Index left = bytes - i * piece_bytes;
    prefetch(static_cast<const char*>(op.packed.weight) + i * piece_bytes,
             left < piece_bytes ? static_cast<int>(left) : piece_bytes);
  }
}

static_assert(sizeof(OpList) <= 32764, "exceeds what a kernel's arguments may take");

template <class T, class W>
__global__ void __launch_bounds__(block_threads, 2) persistent_kernel(const __grid_constant__ OpList op_list) {
  prefetch_weight<T, W>(op_list, 0);
  for (int i = 0; i < op_list.count; ++i) {
    run_op<T, W>(op_list.ops[i]);
    if (i + 1 == op_list.count) break;
    if (op_list.ops[i].kind == Op::Kind::linear) prefetch_weight<T, W>(op_list, i + 1);
    sync_grid();
  }
}

// shared_bytes counts bf16 stages: those of W8A16 must not be larger.
static_assert(StageSizes<W8A16, CtaTile16x16>::shared_bytes <= StageSizes<BFloat16, CtaTile16x16>::shared_bytes &&
              StageSizes<W8A16, CtaTile64x32>::shared_bytes <= StageSizes<BFloat16, CtaTile64x32>::shared_bytes);

std::size_t shared_bytes(Precision precision, const OpList& op_list) {
  std::size_t bytes = std::max<std::size_t>(StageSizes<BFloat16, CtaTile16x16>::shared_bytes,
                                            StageSizes<BFloat16, CtaTile64x32>::shared_bytes);
  with_16_bit_element(precision,
                      [&]<class T>() { bytes = std::max<std::size_t>(bytes, PersistentHead<T>::shared_bytes); });
  for (int i = 0; i < op_list.count; ++i) {
    const Op& op = op_list.ops[i];
    if (op.kind == Op::Kind::add_layer_norm)
      bytes = std::max(bytes, layer_norm_shared_bytes(op.add_layer_norm.norm.width));
  }
  return bytes;
}

// Calls run(kernel).
template <class Run>
void with_kernel(Precision precision, Run run) {
  if (precision == Precision::int8) return run(persistent_kernel<BFloat16, W8A16>);
  with_16_bit_element(precision, [&]<class T>() { run(persistent_kernel<T, T>); });
}

}  // namespace

void run_persistent(Precision precision, const OpList& op_list, Stream& stream) {
  with_kernel(precision, [&](auto kernel) {
    launch_cooperative("the persistent encoder", kernel, block_threads, shared_bytes(precision, op_list), stream,
                       op_list);
  });
}

void load_persistent(Precision precision) {
  with_kernel(precision, [](auto kernel) { load_kernel("the persistent encoder", kernel); });
}

}  // namespace distilfast::cuda
