// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N]; split, the parts of x Wt over as many stretches of K.
//
// Precision: operands of T (fp32 as three tf32 products, see tile.cuh), sums in fp32, bias and activation in fp32; GELU
// in its exact form with erf. A sum's order is fixed by the tile and the splits, which are fixed by `most_rows`: equal
// from run to run, and for a row the same in every batch of the bucket. Reference: distilfast/reference.py, linear.
//
// int8 here is for at most 64 rows, where only the bytes of W count: x is bf16, and so is every product; W has 8 bits
// and a scale for each 64 of K in each column. A lane makes bf16 of the integers, exactly, before it multiplies, and
// what they add up to over 32 of K is scaled in fp32. More rows are multiplied as integers, in linear_int8.cu.
//
// W is packed in the order of the matrix instruction: a unit is 8 rows of W times 64 bytes of k, 512 bytes, of which
// lane l owns 16 in a row: its words of B for two steps. So a warp's read of W is one contiguous stretch, from device
// memory and from shared memory, and no bank conflicts. x comes as it is; its rows' 16-byte chunks are swapped by the
// row's number, so that the eight rows of a matrix lie in different banks.
//
// For few tokens a linear is a stream of W: small tiles spread it over all multiprocessors, the warps of a block take
// different units of the same tile, and K is split over blocks where even that leaves some idle. For many tokens W is
// read once per 64 or 128 rows, and the warps of a block share both operands.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/tile.cuh"

namespace distilfast::cuda {
namespace {

constexpr int unit_columns = 8, unit_bytes = 64, packed_unit_bytes = unit_columns * unit_bytes;

constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }

// ---- packing

struct Int8 {};  // W of 8 bits beside x of bf16

// A block of packed W: 8 columns and `units` units of K, in `bytes`.
template <class W>
struct Packing {
  static constexpr int units = 1, bytes = packed_unit_bytes;
};
// Of each unit a lane's 8 bytes: its two words of B for a step in one, bytes 0 and 2, and 1 and 3. Behind them the
// scale of each column. A unit is 64 bytes of x and so 32 of K.
template <>
struct Packing<Int8> {
  static constexpr int units = 2, unit = warp_size * static_cast<int>(sizeof(Word2)), scales = units * unit;
  static constexpr int bytes = scales + unit_columns * static_cast<int>(sizeof(float));
};

// ---- tiles

// A block computes Rows x Columns of out with RowWarps x ColumnWarps x DepthWarps warps, in stages of Units of K.
template <int Rows, int Columns, int RowWarps, int ColumnWarps, int DepthWarps, int Units, int Stages>
struct Tile {
  static constexpr int rows = Rows, columns = Columns, units = Units, stages = Stages, depth_warps = DepthWarps;
  static constexpr int column_warps = ColumnWarps, row_warps = RowWarps;
  static constexpr int threads = RowWarps * ColumnWarps * DepthWarps * warp_size;
  static constexpr int row_bytes = Units * unit_bytes, row_chunks = row_bytes / chunk_bytes;
  static constexpr int x_bytes = Rows * row_bytes;
  // 16-row and 8-column tiles of one warp.
  static constexpr int row_tiles = Rows / RowWarps / 16, column_tiles = Columns / ColumnWarps / unit_columns;
  // Eight floats more than a row has: two columns of four rows then lie in different banks.
  static constexpr int sum_stride = Columns + 8;
  static constexpr int sum_bytes = DepthWarps * Rows * sum_stride * static_cast<int>(sizeof(float));
};

// What a tile takes of shared memory with W packed so.
template <class W, class Tile>
struct StageSizes {
  static constexpr int group_bytes = Tile::units / Packing<W>::units * Packing<W>::bytes;  // of 8 columns
  static constexpr int stage_bytes = Tile::x_bytes + Tile::columns / unit_columns * group_bytes;
  static constexpr int all_bytes = Tile::stages * stage_bytes;
  static constexpr int shared_bytes = all_bytes > Tile::sum_bytes ? all_bytes : Tile::sum_bytes;
  // Blocks that the shared memory of compute capability 8.0 has room for: registers need be no scarcer than that.
  static constexpr int blocks = 163 * 1024 / (shared_bytes + 1024);
};

// No tile needs more than the 99 KB that a block of compute capability 8.6 can have.
using Few = Tile<16, 16, 1, 1, 4, 4, 4>;          // 1 to 16 tokens
using Some = Tile<64, 32, 2, 1, 2, 2, 4>;         // 17 to 64
using Many = Tile<64, 64, 2, 2, 1, 2, 4>;         // 65 to 256
using Countless = Tile<128, 128, 2, 4, 1, 2, 3>;  // more

// Calls run(tile) with the tile for so many rows.
template <class Run>
auto with_small_tile(int most_rows, Run run) {
  return most_rows <= Few::rows ? run(Few{}) : run(Some{});
}
template <class Run>
auto with_large_tile(int most_rows, Run run) {
  return most_rows <= 4 * Many::rows ? run(Many{}) : run(Countless{});
}

// Parts of `units` units that fill the device with tiles of [most_rows, n].
template <class Tile>
int splits_to_fill(int n, int units, int most_rows) {
  const int blocks = divide_up(n, Tile::columns) * divide_up(most_rows, Tile::rows);
  // A part that does not even fill the pipeline gains nothing more.
  const int most = units / (Tile::units * (Tile::stages - 1)), wanted = multiprocessors() / blocks;
  const int splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : splits;
}

template <class T>
constexpr int unit_depth = unit_bytes / static_cast<int>(sizeof(T));
// Whole blocks of packed W.
template <class T, class W>
constexpr int units_in(int k) {
  return divide_up(k, unit_depth<T> * Packing<W>::units) * Packing<W>::units;
}
template <class T, class W>
constexpr Index packed_bytes(int n, int k) {
  return Index{divide_up(n, unit_columns)} * (units_in<T, W>(k) / Packing<W>::units) * Packing<W>::bytes;
}
// Whole stages.
template <class Tile>
constexpr int units_per_split(int units, int splits) {
  return divide_up(divide_up(units, splits), Tile::units) * Tile::units;
}

// ---- to shared

// Where chunk `chunk` of row `row` of x lies in a stage.
template <class Tile>
__device__ inline int x_offset(int row, int chunk) {
  return row * Tile::row_bytes + (chunk ^ row % 8) * chunk_bytes;
}

// Rows of x from `row0`, `Units` units of K from `unit0`; zeros behind the last row and behind K.
template <class T, class Tile>
__device__ inline void copy_x(const Linear& op, int row0, int rows, int unit0, char* shared) {
  constexpr int chunk_depth = chunk_bytes / static_cast<int>(sizeof(T));
  const Index stride = row_stride(op.packed.k);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows * Tile::row_chunks; i += Tile::threads) {
    const int row = i / Tile::row_chunks, chunk = i % Tile::row_chunks;
    const int k = unit0 * unit_depth<T> + chunk * chunk_depth;
    const bool there = row0 + row < rows && k < op.packed.k;
    const int left = op.packed.k - k < chunk_depth ? op.packed.k - k : chunk_depth;
    const T* from = static_cast<const T*>(op.x);
    if (there) from += (op.gather ? load(op.gather + row0 + row) : row0 + row) * stride + k;
    copy_async(shared + x_offset<Tile>(row, chunk), from, there ? left * static_cast<int>(sizeof(T)) : 0);
  }
}

// The same units of the tile's columns of W; zeros behind the last column and behind the last unit.
template <class W, class Tile>
__device__ inline void copy_w(const Linear& op, int units, int column0, int unit0, int unit_end, char* shared) {
  using P = Packing<W>;
  constexpr int block_chunks = P::bytes / chunk_bytes, group_chunks = StageSizes<W, Tile>::group_bytes / chunk_bytes;
  const int groups = divide_up(op.packed.n, unit_columns);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::columns / unit_columns * group_chunks; i += Tile::threads) {
    const int group = column0 / unit_columns + i / group_chunks;
    const int unit = unit0 + i % group_chunks / block_chunks * P::units;
    const bool there = group < groups && unit < unit_end;
    const char* from = static_cast<const char*>(op.packed.weight);
    if (there)
      from += (static_cast<Index>(group) * units + unit0) / P::units * P::bytes + i % group_chunks * chunk_bytes;
    copy_async(shared + i * chunk_bytes, from, there ? chunk_bytes : 0);
  }
}

// ---- products

// The warp's place in the tile.
template <class Tile>
struct Place {
  int row, column, depth;

  __device__ Place() {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    column = warp % Tile::column_warps * Tile::column_tiles * unit_columns;
    row = warp / Tile::column_warps % Tile::row_warps * Tile::row_tiles * 16;
    depth = warp / (Tile::column_warps * Tile::row_warps);
  }
};

template <class Tile>
using Sums = float[Tile::row_tiles][Tile::column_tiles][4];

// Where a unit of 8 columns is in a stage's W, in a packing with units of 512 bytes.
template <class W, class Tile>
__device__ inline int unit_offset(int group, int unit) {
  using P = Packing<W>;
  return (group * (Tile::units / P::units) + unit / P::units) * P::bytes + unit % P::units * packed_unit_bytes;
}

// One unit of K: two steps of the warp's tile, with W of x's type in the blocks of Packing<W>.
template <class T, class W, class Tile>
__device__ inline void multiply_plain_unit(const char* x, const char* w, const Place<Tile>& at, int unit,
                                           Sums<Tile>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Word4 packed[Tile::column_tiles];
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    const int offset = unit_offset<W, Tile>(at.column / unit_columns + j, unit) + lane * chunk_bytes;
    packed[j] = load(reinterpret_cast<const Word4*>(w + offset));
  }
#pragma unroll
  for (int step = 0; step < unit_bytes / step_bytes; ++step) {
    Operand<T, 2> b[Tile::column_tiles];
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j) {
      b[j].set(0, packed[j].word[2 * step]);
      b[j].set(1, packed[j].word[2 * step + 1]);
    }
#pragma unroll
    for (int i = 0; i < Tile::row_tiles; ++i) {
      const Operand<T, 4> a = load_operand_a<T>(
          [&](int row, int chunk) { return x + x_offset<Tile>(at.row + 16 * i + row, (2 * unit + step) * 2 + chunk); });
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j) multiply_add(sums[i][j], a, b[j]);
    }
  }
}

// Bytes 0 and 2 of a word, integers from -128 to 127, as two bf16. Behind 0x43 the lower seven bits of a bf16 count in
// ones from 128 on: the lower seven bits of an integer there are 128 too much, and its sign bit alone, worth 128 there
// too, is what has to be taken off.
__device__ inline std::uint32_t widen_int8_pair(std::uint32_t bytes) {
  return subtract_pairs((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0x43004300u);
}

// One unit of K with W of 8 bits: each column's products are summed apart and scaled.
template <class Tile>
__device__ inline void multiply_int8_unit(const char* x, const char* w, const Place<Tile>& at, int unit,
                                          Sums<Tile>& sums) {
  using P = Packing<Int8>;
  constexpr int steps = unit_bytes / step_bytes;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Operand<BFloat16, 2> b[Tile::column_tiles][steps];
  Float2 scales[Tile::column_tiles];  // of the lane's columns
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    const int group = at.column / unit_columns + j;
    const char* block = w + group * StageSizes<Int8, Tile>::group_bytes + unit / P::units * P::bytes;
    const auto bytes = load(reinterpret_cast<const Word2*>(block + unit % P::units * P::unit) + lane);
    scales[j] = load(reinterpret_cast<const Float2*>(block + P::scales) + lane % 4);
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      b[j][step].set(0, widen_int8_pair(bytes.word[step]));
      b[j][step].set(1, widen_int8_pair(bytes.word[step] >> 8));
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i) {
    float parts[Tile::column_tiles][4] = {};
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const Operand<BFloat16, 4> a = load_operand_a<BFloat16>([&](int row, int chunk) {
        return x + x_offset<Tile>(at.row + 16 * i + row, (steps * unit + step) * 2 + chunk);
      });
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j) multiply_add(parts[j], a, b[j][step]);
    }
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[i][j][c] += parts[j][c] * (c % 2 ? scales[j].y : scales[j].x);
  }
}

template <class T, class W, class Tile>
__device__ inline void multiply_unit(const char* x, const char* w, const Place<Tile>& at, int unit, Sums<Tile>& sums) {
  if constexpr (std::is_same_v<W, Int8>)
    multiply_int8_unit<Tile>(x, w, at, unit, sums);
  else
    multiply_plain_unit<T, T, Tile>(x, w, at, unit, sums);
}

// The warp's sums over units unit0 to unit_end, the copies of some stages ahead of the products.
template <class T, class W, class Tile>
__device__ inline void multiply(const Linear& op, int row0, int rows, int column0, int split, Sums<Tile>& sums) {
  const int units = units_in<T, W>(op.packed.k), share = units_per_split<Tile>(units, op.splits);
  const int unit0 = split * share, unit_end = unit0 + share < units ? unit0 + share : units;
  char* shared = shared_memory();
  const Place<Tile> at;
  const int steps = divide_up(unit_end - unit0, Tile::units);
  const auto copy_stage = [&](int step) {
    char* stage = shared + step % Tile::stages * StageSizes<W, Tile>::stage_bytes;
    const int unit = unit0 + step * Tile::units;
    if (step < steps) {
      copy_x<T, Tile>(op, row0, rows, unit, stage);
      copy_w<W, Tile>(op, units, column0, unit, unit_end, stage + Tile::x_bytes);
    }
    commit_copies();  // empty behind the last step, so that the number of groups on their way stays the same
  };
  for (int step = 0; step < Tile::stages - 1; ++step) copy_stage(step);
  for (int step = 0; step < steps; ++step) {
    wait_copies<Tile::stages - 2>();
    sync_threads();  // everyone's copies have landed, and everyone is done with the stage that is filled next
    copy_stage(step + Tile::stages - 1);
    const char* stage = shared + step % Tile::stages * StageSizes<W, Tile>::stage_bytes;
#pragma unroll 1  // two units at once would not fit the registers of the largest fp32 tile
    for (int unit = 0; unit < Tile::units / Tile::depth_warps; ++unit)
      multiply_unit<T, W, Tile>(stage, stage + Tile::x_bytes, at, unit * Tile::depth_warps + at.depth, sums);
  }
  wait_copies<0>();
  sync_threads();  // what follows writes over the stages
}

// ---- epilogue

// All warps' sums to shared memory, [depth_warps][rows][sum_stride].
template <class Tile>
__device__ inline void share_sums(const Sums<Tile>& sums) {
  const Place<Tile> at;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  auto* shared = reinterpret_cast<float*>(shared_memory()) + at.depth * Tile::rows * Tile::sum_stride;
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i)
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = at.row + 16 * i + 8 * half + lane / 4, column = at.column + 8 * j + lane % 4 * 2;
        store(reinterpret_cast<Float2*>(shared + row * Tile::sum_stride + column),
              Float2{sums[i][j][2 * half], sums[i][j][2 * half + 1]});
      }
  sync_threads();
}

__device__ inline float apply(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;  // and a NaN stays one
    case Activation::tanh:
      return tanhf(x);
    case Activation::none:
      break;
  }
  return x;
}

// `count` of eight values to consecutive elements, 16 bytes at a time where that is all eight.
template <class T>
__device__ inline void store_row(T* to, const float (&values)[8], int count) {
  constexpr int vector = chunk_bytes / static_cast<int>(sizeof(T));
  struct alignas(chunk_bytes) Vector {
    T element[vector];
  };
  if (count >= 8 && reinterpret_cast<std::uintptr_t>(to) % chunk_bytes == 0) {
#pragma unroll
    for (int i = 0; i < 8; i += vector) {
      Vector all;
#pragma unroll
      for (int j = 0; j < vector; ++j) all.element[j] = from_float<T>(values[i + j]);
      store(reinterpret_cast<Vector*>(to + i), all);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) store(to + i, from_float<T>(values[i]));
}

// From the sums in shared memory to out: the depth warps' in their order, then bias and activation.
template <class T, class Tile>
__device__ inline void finish(const Linear& op, int row0, int rows, int column0, int split) {
  const auto* shared = reinterpret_cast<const float*>(shared_memory());
  constexpr int groups = Tile::columns / 8;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows * groups; i += Tile::threads) {
    const int row = i / groups, column = i % groups * 8, left = op.packed.n - column0 - column;
    if (row0 + row >= rows || left <= 0) continue;
    float values[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float* sum = shared + row * Tile::sum_stride + column + j;
      values[j] = load(sum);
#pragma unroll
      for (int depth = 1; depth < Tile::depth_warps; ++depth)
        values[j] += load(sum + depth * Tile::rows * Tile::sum_stride);
      if (op.splits == 1 && j < left)
        values[j] = apply(op.activation, values[j] + load(op.packed.bias + column0 + column + j));
    }
    const Index at = row0 + row;
    if (op.out) store_row(op.out + split * op.plane + at * op.packed.n + column0 + column, values, left);
    if (op.out_low)
      store_row(static_cast<T*>(op.out_low) + at * row_stride(op.packed.n) + column0 + column, values, left);
  }
}

// One tile of out, of one split, by the whole block.
template <class T, class W, class Tile>
__device__ inline void linear_tile(const Linear& op, int column_tile, int row_tile, int split) {
  const int rows = load(op.rows), row0 = row_tile * Tile::rows, column0 = column_tile * Tile::columns;
  if (row0 >= rows) return;
  Sums<Tile> sums = {};
  multiply<T, W, Tile>(op, row0, rows, column0, split, sums);
  share_sums<Tile>(sums);
  finish<T, Tile>(op, row0, rows, column0, split);
}

}  // namespace
}  // namespace distilfast::cuda
