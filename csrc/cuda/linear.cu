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

// One warp writes a block: a lane has of one column what it will be given of it.
__global__ void pack_int8_kernel(Pack op) {
  using P = Packing<Int8>;
  constexpr int pair = 2, steps = unit_bytes / step_bytes, words = P::units * steps;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int block = static_cast<int>(blockIdx.x * (blockDim.x / warp_size) + threadIdx.x / warp_size);
  const int row = static_cast<int>(blockIdx.y) * unit_columns + lane / 4;
  if (block >= op.units / P::units) return;
  float values[words][2 * pair];  // of a word's bytes 0, 2, 1 and 3
  float most = 0.0f;
#pragma unroll
  for (int word = 0; word < words; ++word)
#pragma unroll
    for (int i = 0; i < 2 * pair; ++i) {
      const int k = (block * words + word) * 16 + i / pair * 8 + lane % 4 * pair + i % pair;
      const bool there = row < op.n && k < op.k;
      values[word][i] = there ? load(op.weight + static_cast<Index>(row) * op.k + k) : 0.0f;
      most = fmaxf(most, fabsf(values[word][i]));
    }
  most = fmaxf(most, shuffle_xor(most, 1));
  most = fmaxf(most, shuffle_xor(most, 2));
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
  char* to = static_cast<char*>(op.packed) +
             (static_cast<Index>(blockIdx.y) * (op.units / P::units) + block) * static_cast<Index>(P::bytes);
#pragma unroll
  for (int unit = 0; unit < P::units; ++unit) {
    Word2 both{};
#pragma unroll
    for (int step = 0; step < steps; ++step)
#pragma unroll
      for (int i = 0; i < 2 * pair; ++i) {
        const auto integer = static_cast<int>(rintf(values[unit * steps + step][i] * inverse));
        both.word[step] |= (static_cast<std::uint32_t>(integer) & 0xffu) << (i % pair * 16 + i / pair * 8);
      }
    store(reinterpret_cast<Word2*>(to + unit * P::unit) + lane, both);
  }
  if (lane % 4 == 0) store(reinterpret_cast<float*>(to + P::scales) + lane / 4, most / 127.0f);
}

// Calls run.operator()<T, W>() with the types of x and of packed W.
template <class Run>
auto with_types(Precision precision, Run run) {
  switch (precision) {
    case Precision::fp32:
      return run.template operator()<float, float>();
    case Precision::fp16:
      return run.template operator()<Half, Half>();
    case Precision::int8:
      return run.template operator()<BFloat16, Int8>();
    case Precision::bf16x3:  // the CPU's; see common/types.h
    case Precision::bf16:
      break;
  }
  return run.template operator()<BFloat16, BFloat16>();
}

int units_of(Precision precision, int k) {
  return with_types(precision, [&]<class T, class W>() { return units_in<T, W>(k); });
}

template <class T, class W>
constexpr auto packer() {
  if constexpr (std::is_same_v<W, Int8>)
    return pack_int8_kernel;
  else
    return pack_kernel<T>;
}

// Calls run(tile) with the tile for so many rows and W packed so.
template <class W, class Run>
auto with_tile(int most_rows, Run run) {
  if constexpr (!std::is_same_v<W, Int8>)
    if (most_rows > Some::rows) return with_large_tile(most_rows, run);
  return with_small_tile(most_rows, run);
}

bool is_of_operands(Precision precision, int most_rows) {
  return precision == Precision::int8 && most_rows > most_weight_only_rows;
}
static_assert(most_weight_only_rows == Some::rows);

template <class T, class W, class Tile>
__global__ void __launch_bounds__(Tile::threads, StageSizes<W, Tile>::blocks) linear_kernel(Linear op) {
  linear_tile<T, W, Tile>(op, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
}

template <class T, class W, class Tile>
void launch_linear(const Linear& op, int most_rows, Stream& stream) {
  const Grid grid{static_cast<unsigned>(divide_up(op.packed.n, Tile::columns)),
                  static_cast<unsigned>(divide_up(most_rows, Tile::rows)), static_cast<unsigned>(op.splits)};
  launch("linear", linear_kernel<T, W, Tile>, grid, Tile::threads, StageSizes<W, Tile>::shared_bytes, stream, op);
}

}  // namespace

std::size_t packed_linear_bytes(Precision precision, int n, int k) {
  return with_types(precision, [&]<class T, class W>() { return static_cast<std::size_t>(packed_bytes<T, W>(n, k)); });
}

void pack_linear(Precision precision, const float* weight, int n, int k, void* packed, Stream& stream) {
  constexpr unsigned threads = 128;
  const int units = units_of(precision, k);
  const Grid grid{static_cast<unsigned>(divide_up(units, threads / warp_size)),
                  static_cast<unsigned>(divide_up(n, unit_columns))};
  const Pack op{weight, n, k, units, packed};
  with_types(precision,
             [&]<class T, class W>() { launch("pack_linear", packer<T, W>(), grid, threads, 0, stream, op); });
}

int linear_splits(Precision precision, int n, int k, int most_rows) {
  if (is_of_operands(precision, most_rows)) return linear_int8_splits(n, k, most_rows);
  return with_types(precision, [&]<class T, class W>() {
    return with_tile<W>(most_rows,
                        [&]<class Tile>(Tile) { return splits_to_fill<Tile>(n, units_in<T, W>(k), most_rows); });
  });
}

void linear(const Linear& op, int most_rows, Stream& stream) {
  if (is_of_operands(op.precision, most_rows)) return linear_int8(op, most_rows, stream);
  with_types(op.precision, [&]<class T, class W>() {
    with_tile<W>(most_rows, [&]<class Tile>(Tile) { launch_linear<T, W, Tile>(op, most_rows, stream); });
  });
}

void load_linear(Precision precision) {
  with_types(precision, [&]<class T, class W>() {
    load_kernel("pack_linear", packer<T, W>());
    load_kernel("linear", linear_kernel<T, W, Few>);
    load_kernel("linear", linear_kernel<T, W, Some>);
    if constexpr (std::is_same_v<W, Int8>) {
      load_linear_int8();
    } else {
      load_kernel("linear", linear_kernel<T, W, Many>);
      load_kernel("linear", linear_kernel<T, W, Countless>);
    }
  });
}

}  // namespace distilfast::cuda
