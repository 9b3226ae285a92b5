// linear of int8 operands: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], for more than most_weight_only_rows rows.
//
// Precision: as int8_groups.cuh has it. A group's products are exact; times both scales they are added in fp32 to the
// tile's sums, behind the wide channels' bf16 products. Reference: tests/cuda/elements.py, Int8Linear.
//
// Tiles, stages and epilogue are those of linear.cuh, and W is in the same order: of 8 columns the two units of 64
// bytes of a stretch, and the scales behind them. Four matrix instructions make a group's sums, 128 of them, so that
// what a group costs beside them counts. An integer of up to 22 bits becomes a float by what it is added to: the bits
// of 1.5 x 2^23 as an integer plus n are those of 1.5 x 2^23 + n. So the sums begin there, and a subtraction takes the
// place of a conversion, of which a multiprocessor makes fewer.
#include <cmath>

#include "cuda/int8_groups.cuh"
#include "cuda/linear.cuh"

namespace distilfast::cuda {
namespace {

constexpr std::int32_t float_offset_bits = 0x4b400000;
constexpr float float_offset = 12582912.0f;
static_assert(int8_group * 127 * 127 < 1 << 22);

// ---- packing

// W of one stretch: what the matrix instruction reads, and of a group the eight columns' scales.
struct Groups {};
template <>
struct Packing<Groups> {
  static constexpr int units = int8_group / unit_bytes, scales = units * packed_unit_bytes;
  static constexpr int bytes = scales + unit_columns * 2;
};
static_assert(Packing<Groups>::bytes % chunk_bytes == 0);

constexpr std::size_t front_bytes(const Stretches& stretches) {
  return static_cast<std::size_t>(stretches.groups) * int8_group * sizeof(float) +
         static_cast<std::size_t>(stretches.wide) * wide_stretch * (sizeof(std::int32_t) + sizeof(float));
}

struct Pack {
  const float *weight, *centre;
  const std::int32_t* wide;
  int n, k, num_wide;
  void* packed;
};

// One thread writes what is known of a number of the groups, and of a wide channel.
__global__ void pack_front_kernel(Pack op) {
  const Stretches stretches(op.k);
  const Int8Front front(op.packed, stretches);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < stretches.groups * int8_group) {
    bool is_rounded = i < op.k;
    for (int j = 0; j < op.num_wide; ++j) is_rounded = is_rounded && load(op.wide + j) != i;
    store(const_cast<float*>(front.centre + i), is_rounded ? load(op.centre + i) : NAN);
  }
  if (i < stretches.wide * wide_stretch) {
    const int channel = i < op.num_wide ? load(op.wide + i) : -1;
    store(const_cast<std::int32_t*>(front.wide + i), channel);
    store(const_cast<float*>(front.wide_centre + i), channel < 0 ? 0.0f : load(op.centre + channel));
  }
}

// What a lane holds of a row of W in a stretch: four words of each unit, as in pack_linear.
constexpr int stretch_words = 4 * Packing<Groups>::units;

// Where in a unit the lane's word `word` begins, in bytes.
__device__ inline int word_offset(int word) {
  return word / 2 * step_bytes + (word % 2 * 4 + static_cast<int>(threadIdx.x) % 4) * 4;
}

__device__ inline void pack_wide(const Int8Front& front, int stretch, const float* row,
                                 std::uint32_t (&words)[stretch_words]) {
#pragma unroll
  for (int i = 0; i < 2 * stretch_words; ++i) {
    const int place = i / 8 * unit_bytes + word_offset(i / 2 % 4) + i % 2 * 2;  // in bytes, of the stretch
    const int channel = load(front.wide + stretch * wide_stretch + place / 2);
    const auto number = to_float(from_float<BFloat16>(row && channel >= 0 ? load(row + channel) : 0.0f));
    words[i / 2] |= bits_of(number) >> 16 << i % 2 * 16;
  }
}

// Returns the row's scale. H Ht = 128 I, and x is turned by the whole of H.
__device__ inline float pack_group(const Int8Front& front, int group, const float* row,
                                   std::uint32_t (&words)[stretch_words]) {
  float numbers[4 * stretch_words];
#pragma unroll
  for (int i = 0; i < 4 * stretch_words; ++i) {
    const int k = group * int8_group + i / 16 * unit_bytes + word_offset(i / 4 % 4) + i % 4;
    const float centre = load(front.centre + k);
    numbers[i] = row && centre == centre ? load(row + k) : 0.0f;
  }
  const auto made = round_group(numbers);
#pragma unroll
  for (int i = 0; i < stretch_words; ++i) words[i] = made.word[i];
  return made.scale / int8_group;
}

// One warp writes a block, eight rows of a stretch: four lanes for each row.
__global__ void pack_groups_kernel(Pack op) {
  using P = Packing<Groups>;
  const Stretches stretches(op.k);
  const Int8Front front(op.packed, stretches);
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int stretch = static_cast<int>(blockIdx.x * (blockDim.x / warp_size) + threadIdx.x / warp_size);
  const int n = static_cast<int>(blockIdx.y) * unit_columns + lane / 4;
  if (stretch >= stretches.all()) return;
  const float* row = n < op.n ? op.weight + static_cast<Index>(n) * op.k : nullptr;
  std::uint32_t words[stretch_words] = {};
  float scale = 0.0f;
  if (stretch < stretches.wide)
    pack_wide(front, stretch, row, words);
  else
    scale = pack_group(front, stretch - stretches.wide, row, words);
  char* to =
      const_cast<char*>(front.weight) + (static_cast<Index>(blockIdx.y) * stretches.all() + stretch) * Index{P::bytes};
#pragma unroll
  for (int unit = 0; unit < P::units; ++unit) {
    const Word4 bytes{{words[4 * unit], words[4 * unit + 1], words[4 * unit + 2], words[4 * unit + 3]}};
    store(reinterpret_cast<Word4*>(to + unit * packed_unit_bytes) + lane, bytes);
  }
  if (lane % 4 == 0) store(reinterpret_cast<BFloat16*>(to + P::scales) + lane / 4, from_float<BFloat16>(scale));
}

// ---- stages

// A stretch of x and W, and behind them the scales of x, [rows].
template <class Tile>
struct OperandSizes {
  static_assert(Tile::units == Packing<Groups>::units);
  static constexpr int scales_at = StageSizes<Groups, Tile>::stage_bytes;
  static constexpr int stage_bytes = scales_at + Tile::rows * 2;
  static constexpr int all_bytes = Tile::stages * stage_bytes;
  static constexpr int shared_bytes = all_bytes > Tile::sum_bytes ? all_bytes : Tile::sum_bytes;
  static_assert(shared_bytes <= 99 * 1024);
  static constexpr int blocks = 163 * 1024 / (shared_bytes + 1024);
};

struct LinearLaunch {
  Linear op;
  int most_rows;
};

// A stretch of the rows of x from `row0`, zeros behind the last row; and their scales, where it is a group.
template <class Tile>
__device__ inline void copy_operands(const LinearLaunch& launch, const Stretches& stretches, int row0, int rows,
                                     int stretch, char* stage) {
  const auto* x = static_cast<const char*>(launch.op.x);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows * Tile::row_chunks; i += Tile::threads) {
    const int row = i / Tile::row_chunks, chunk = i % Tile::row_chunks;
    const bool there = row0 + row < rows;
    const char* from = x;
    if (there)
      from += (row0 + row) * static_cast<Index>(stretches.row_bytes()) + stretch * int8_group + chunk * chunk_bytes;
    copy_async(stage + x_offset<Tile>(row, chunk), from, there ? chunk_bytes : 0);
  }
  if (stretch < stretches.wide) return;
  constexpr int chunk_scales = chunk_bytes / 2;
  const char* scales = x + launch.most_rows * static_cast<Index>(stretches.row_bytes()) +
                       (stretch - stretches.wide) * static_cast<Index>(row_stride(launch.most_rows)) * 2;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows / chunk_scales; i += Tile::threads) {
    const int row = row0 + i * chunk_scales, left = rows - row;
    const int count = left < 0 ? 0 : left < chunk_scales ? left : chunk_scales;
    copy_async(stage + OperandSizes<Tile>::scales_at + i * chunk_bytes, count ? scales + row * 2 : scales, count * 2);
  }
}

// ---- products

// One group: four steps of the warp's tile in integers, then both scales.
template <class Tile>
__device__ inline void multiply_group(const char* stage, const Place<Tile>& at, Sums<Tile>& sums) {
  using P = Packing<Groups>;
  constexpr int unit_steps = unit_bytes / step_bytes;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Word4 packed[Tile::column_tiles][P::units];
  float column_scales[Tile::column_tiles][2];  // of the lane's columns
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    const char* block = stage + Tile::x_bytes + (at.column / unit_columns + j) * P::bytes;
#pragma unroll
    for (int unit = 0; unit < P::units; ++unit)
      packed[j][unit] = load(reinterpret_cast<const Word4*>(block + unit * packed_unit_bytes) + lane);
    const auto pair = load(reinterpret_cast<const std::uint32_t*>(block + P::scales) + lane % 4);
    column_scales[j][0] = float_of(pair << 16), column_scales[j][1] = float_of(pair & 0xffff0000u);
  }
  const std::int32_t offsets[4] = {float_offset_bits, float_offset_bits, float_offset_bits, float_offset_bits};
  const auto* row_scales = reinterpret_cast<const BFloat16*>(stage + OperandSizes<Tile>::scales_at) + at.row + lane / 4;
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i) {
    std::int32_t parts[Tile::column_tiles][4];
#pragma unroll
    for (int step = 0; step < P::units * unit_steps; ++step) {
      std::uint32_t a[4];
      load_matrices(a, stage + x_offset<Tile>(at.row + 16 * i + lane % 16, step * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j) {
        const Word4& words = packed[j][step / unit_steps];
        const int first = step % unit_steps * 2;
        const std::uint32_t b[2] = {words.word[first], words.word[first + 1]};
        if (step == 0)
          multiply_bytes(parts[j], a, b, offsets);
        else
          multiply_bytes(parts[j], a, b, parts[j]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float row_scale = to_float(load(row_scales + 16 * i + 8 * half));
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          sums[i][j][2 * half + c] += (float_of(static_cast<std::uint32_t>(parts[j][2 * half + c])) - float_offset) *
                                      (row_scale * column_scales[j][c]);
    }
  }
}

// The warp's sums over the split's stretches, the copies of some stages ahead of the products.
template <class Tile>
__device__ inline void multiply_operands(const LinearLaunch& launch, int row0, int rows, int column0, int split,
                                         Sums<Tile>& sums) {
  const Stretches stretches(launch.op.packed.k);
  const int share = divide_up(stretches.all(), launch.op.splits), first = split * share;
  const int end = first + share < stretches.all() ? first + share : stretches.all();
  const Place<Tile> at;
  // The packed W without its front is what copy_w reads.
  Linear weight = launch.op;
  weight.packed.weight = Int8Front(launch.op.packed.weight, stretches).weight;
  const auto stage_of = [&](int stretch) {
    return shared_memory() + (stretch - first) % Tile::stages * OperandSizes<Tile>::stage_bytes;
  };
  const auto copy_stage = [&](int stretch) {
    if (stretch < end) {
      copy_operands<Tile>(launch, stretches, row0, rows, stretch, stage_of(stretch));
      copy_w<Groups, Tile>(weight, stretches.all() * Tile::units, column0, stretch * Tile::units, end * Tile::units,
                           stage_of(stretch) + Tile::x_bytes);
    }
    commit_copies();  // empty behind the last one, so that the number of groups on their way stays the same
  };
  for (int i = 0; i < Tile::stages - 1; ++i) copy_stage(first + i);
  for (int stretch = first; stretch < end; ++stretch) {
    wait_copies<Tile::stages - 2>();
    sync_threads();  // everyone's copies have landed, and everyone is done with the stage that is filled next
    copy_stage(stretch + Tile::stages - 1);
    const char* stage = stage_of(stretch);
    if (stretch >= stretches.wide) {
      multiply_group<Tile>(stage, at, sums);
      continue;
    }
#pragma unroll
    for (int unit = 0; unit < Tile::units; ++unit)
      multiply_plain_unit<BFloat16, Groups, Tile>(stage, stage + Tile::x_bytes, at, unit, sums);
  }
  wait_copies<0>();
  sync_threads();  // what follows writes over the stages
}

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, OperandSizes<Tile>::blocks) linear_int8_kernel(LinearLaunch launch) {
  static_assert(Tile::depth_warps == 1);
  const int rows = load(launch.op.rows), row0 = static_cast<int>(blockIdx.y) * Tile::rows;
  const int column0 = static_cast<int>(blockIdx.x) * Tile::columns, split = static_cast<int>(blockIdx.z);
  if (row0 >= rows) return;
  Sums<Tile> sums = {};
  multiply_operands<Tile>(launch, row0, rows, column0, split, sums);
  share_sums<Tile>(sums);
  finish<BFloat16, Tile>(launch.op, row0, rows, column0, split);
}

}  // namespace

std::size_t packed_int8_bytes(int n, int k) {
  const Stretches stretches(k);
  return front_bytes(stretches) + static_cast<std::size_t>(divide_up(n, unit_columns)) *
                                      static_cast<std::size_t>(stretches.all()) * Packing<Groups>::bytes;
}

void pack_int8(const float* weight, const float* centre, const std::int32_t* wide, int n, int k, void* packed,
               Stream& stream) {
  constexpr unsigned threads = 128;
  const Stretches stretches(k);
  const Pack op{weight, centre, wide, n, k, wide_channels(k), packed};
  launch("pack_int8", pack_front_kernel, {static_cast<unsigned>(divide_up(stretches.groups * int8_group, threads))},
         threads, 0, stream, op);
  const Grid grid{static_cast<unsigned>(divide_up(stretches.all(), threads / warp_size)),
                  static_cast<unsigned>(divide_up(n, unit_columns))};
  launch("pack_int8", pack_groups_kernel, grid, threads, 0, stream, op);
}

int linear_int8_splits(int n, int k, int most_rows) {
  return with_large_tile(most_rows, [&]<class Tile>(Tile) {
    return splits_to_fill<Tile>(n, Stretches(k).all() * Tile::units, most_rows);
  });
}

void linear_int8(const Linear& op, int most_rows, Stream& stream) {
  with_large_tile(most_rows, [&]<class Tile>(Tile) {
    const Grid grid{static_cast<unsigned>(divide_up(op.packed.n, Tile::columns)),
                    static_cast<unsigned>(divide_up(most_rows, Tile::rows)), static_cast<unsigned>(op.splits)};
    launch("linear", linear_int8_kernel<Tile>, grid, Tile::threads, OperandSizes<Tile>::shared_bytes, stream,
           LinearLaunch{op, most_rows});
  });
}

void load_linear_int8() {
  load_kernel("pack_int8", pack_front_kernel);
  load_kernel("pack_int8", pack_groups_kernel);
  load_kernel("linear", linear_int8_kernel<Many>);
  load_kernel("linear", linear_int8_kernel<Countless>);
}

}  // namespace distilfast::cuda
