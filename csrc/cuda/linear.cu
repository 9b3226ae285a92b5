// The launches of linear.cuh, and the packing of W.
#include "cuda/linear.cuh"

namespace distilfast::cuda {
namespace {

struct Pack {
  const float* weight;
  int n, k, units;
  void* packed;
};

// One thread writes one lane's 16 bytes of one unit.
template <class T>
__global__ void pack_kernel(Pack op) {
  constexpr int word_depth = 4 / static_cast<int>(sizeof(T)), step_depth = step_bytes / static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int unit = static_cast<int>(blockIdx.x * (blockDim.x / warp_size) + threadIdx.x / warp_size);
  const int row = static_cast<int>(blockIdx.y) * unit_columns + lane / 4;
  if (unit >= op.units) return;
  struct alignas(chunk_bytes) Chunk {
    T element[4 * word_depth];
  } chunk;
#pragma unroll
  for (int word = 0; word < 4; ++word)
#pragma unroll
    for (int i = 0; i < word_depth; ++i) {
      const int k = unit * unit_depth<T> + word / 2 * step_depth + (word % 2 * 4 + lane % 4) * word_depth + i;
      const bool there = row < op.n && k < op.k;
      chunk.element[word * word_depth + i] =
          from_float<T>(there ? load(op.weight + static_cast<Index>(row) * op.k + k) : 0.0f);
    }
  const Index at = (static_cast<Index>(blockIdx.y) * op.units + unit) * warp_size + lane;
  store(static_cast<Chunk*>(op.packed) + at, chunk);
}

int units_of(Precision precision, int k) {
  return divide_up(k * static_cast<int>(element_size(precision)), unit_bytes);
}

// Calls run.operator()<Tile>() with the tile for so many rows.
template <class Run>
auto with_tile(int most_rows, Run run) {
  if (most_rows <= 16) return run(Few{});
  if (most_rows <= 64) return run(Some{});
  if (most_rows <= 256) return run(Many{});
  return run(Countless{});
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks) linear_kernel(Linear op) {
  linear_tile<T, Tile>(op, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
}

template <class T, class Tile>
void launch_linear(const Linear& op, int most_rows, Stream& stream) {
  const Grid grid{static_cast<unsigned>(divide_up(op.packed.n, Tile::columns)),
                  static_cast<unsigned>(divide_up(most_rows, Tile::rows)), static_cast<unsigned>(op.splits)};
  launch("linear", linear_kernel<T, Tile>, grid, Tile::threads, Tile::shared_bytes, stream, op);
}

}  // namespace

std::size_t packed_linear_bytes(Precision precision, int n, int k) {
  return static_cast<std::size_t>(divide_up(n, unit_columns)) * units_of(precision, k) * packed_unit_bytes;
}

void pack_linear(Precision precision, const float* weight, int n, int k, void* packed, Stream& stream) {
  constexpr unsigned threads = 128;
  const int units = units_of(precision, k);
  const Grid grid{static_cast<unsigned>(divide_up(units, threads / warp_size)),
                  static_cast<unsigned>(divide_up(n, unit_columns))};
  with_element(precision, [&]<class T>() {
    launch("pack_linear", pack_kernel<T>, grid, threads, 0, stream, Pack{weight, n, k, units, packed});
  });
}

int linear_splits(Precision precision, int n, int k, int most_rows) {
  return with_tile(most_rows, [&](auto tile) {
    const int blocks = divide_up(n, tile.columns) * divide_up(most_rows, tile.rows);
    // A part that does not even fill the pipeline gains nothing more.
    const int most = units_of(precision, k) / (tile.units * (tile.stages - 1)), wanted = multiprocessors() / blocks;
    const int splits = wanted < most ? wanted : most;
    return splits < 1 ? 1 : splits;
  });
}

void linear(const Linear& op, int most_rows, Stream& stream) {
  with_element(op.precision, [&]<class T>() {
    with_tile(most_rows, [&]<class Tile>(Tile) { launch_linear<T, Tile>(op, most_rows, stream); });
  });
}

void load_linear(Precision precision) {
  with_element(precision, [&]<class T>() {
    load_kernel("pack_linear", pack_kernel<T>);
    load_kernel("linear", linear_kernel<T, Few>);
    load_kernel("linear", linear_kernel<T, Some>);
    load_kernel("linear", linear_kernel<T, Many>);
    load_kernel("linear", linear_kernel<T, Countless>);
  });
}

}  // namespace distilfast::cuda
