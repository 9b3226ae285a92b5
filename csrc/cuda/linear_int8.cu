// linear of int8 operands: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], for more than most_weight_only_rows rows.
//
// Precision: as int8_groups.cuh has it. A group's products are exact; times both scales they are added in fp32 to the
// tile's sums, behind the wide channels' bf16 products. Reference: tests/cuda/elements.py, int8_linear.
//
// Tiles, stages and epilogue are those of linear.cuh, and W is in the same order, 8 columns and 64 bytes of a unit one
// after the other, with the unit's scales behind them. Few products of integers are made for each sum of a group (two
// instructions), so that what a group costs beside them counts. An integer of up to 22 bits becomes a float by what it
// is added to: the bits of 1.5 x 2^23 as an integer plus n are those of 1.5 x 2^23 + n. So the sums begin there, and a
// subtraction takes the place of a conversion, of which a multiprocessor makes fewer.
#include <cmath>

#include "cuda/int8_groups.cuh"
#include "cuda/linear.cuh"

namespace distilfast::cuda {
namespace {

constexpr std::int32_t float_offset_bits = 0x4b400000;
constexpr float float_offset = 12582912.0f;
static_assert(int8_group * 127 * 127 < 1 << 22);

// ---- packing

// W of one unit: what the matrix instruction reads, and of a group the eight columns' scales.
struct Groups {};
template <>
struct Packing<Groups> {
  static constexpr int units = 1, scales = packed_unit_bytes, bytes = scales + unit_columns * 2;
};
static_assert(int8_group == unit_bytes && Packing<Groups>::bytes % chunk_bytes == 0);

constexpr std::size_t front_bytes(const Int8Units& units) {
  return static_cast<std::size_t>(units.groups) * int8_group * sizeof(float) +
         static_cast<std::size_t>(units.wide) * wide_unit * (sizeof(std::int32_t) + sizeof(float));
}

struct Pack {
  const float *weight, *centre;
  const std::int32_t* wide;
  int n, k, num_wide;
  void* packed;
};

// One thread writes what is known of a number of the groups, and of a wide channel.
__global__ void pack_front_kernel(Pack op) {
  const Int8Units units(op.k);
  const Int8Front front(op.packed, units);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < units.groups * int8_group) {
    bool is_rounded = i < op.k;
    for (int j = 0; j < op.num_wide; ++j) is_rounded = is_rounded && load(op.wide + j) != i;
    store(const_cast<float*>(front.centre + i), is_rounded ? load(op.centre + i) : NAN);
  }
  if (i < units.wide * wide_unit) {
    const int channel = i < op.num_wide ? load(op.wide + i) : -1;
    store(const_cast<std::int32_t*>(front.wide + i), channel);
    store(const_cast<float*>(front.wide_centre + i), channel < 0 ? 0.0f : load(op.centre + channel));
  }
}

// The lane's 16 bytes of a wide unit: a row's channels in the order of pack_linear.
__device__ inline Word4 pack_wide(const Int8Front& front, int unit, const float* row) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  struct alignas(chunk_bytes) {
    BFloat16 element[8];
  } chunk;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int channel = load(front.wide + unit * wide_unit + i / 4 * 16 + (i / 2 % 2 * 4 + lane % 4) * 2 + i % 2);
    chunk.element[i] = from_float<BFloat16>(row && channel >= 0 ? load(row + channel) : 0.0f);
  }
  Word4 bytes;
  memcpy(&bytes, &chunk, sizeof(bytes));
  return bytes;
}

// The lane's 16 bytes of a group, and the row's scale. H Ht = 64 I, and x is turned by the whole of H.
__device__ inline RoundedGroup pack_group(const Int8Front& front, int group, const float* row) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  float numbers[lane_numbers];
#pragma unroll
  for (int i = 0; i < lane_numbers; ++i) {
    const int k = group * int8_group + i / 8 * 32 + (i / 4 % 2 * 4 + lane % 4) * 4 + i % 4;
    const bool there = row && load(front.centre + k) == load(front.centre + k);
    numbers[i] = there ? load(row + k) : 0.0f;
  }
  RoundedGroup made = round_group(numbers);
  made.scale /= int8_group;
  return made;
}

// One warp writes a block, eight rows of a unit: four lanes for each row.
__global__ void pack_groups_kernel(Pack op) {
  using P = Packing<Groups>;
  const Int8Units units(op.k);
  const Int8Front front(op.packed, units);
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int unit = static_cast<int>(blockIdx.x * (blockDim.x / warp_size) + threadIdx.x / warp_size);
  const int n = static_cast<int>(blockIdx.y) * unit_columns + lane / 4;
  if (unit >= units.all()) return;
  const float* row = n < op.n ? op.weight + static_cast<Index>(n) * op.k : nullptr;
  RoundedGroup made{};
  if (unit < units.wide)
    made.bytes = pack_wide(front, unit, row);
  else
    made = pack_group(front, unit - units.wide, row);
  char* to = const_cast<char*>(front.weight) + (static_cast<Index>(blockIdx.y) * units.all() + unit) * Index{P::bytes};
  store(reinterpret_cast<Word4*>(to) + lane, made.bytes);
  if (lane % 4 == 0) store(reinterpret_cast<BFloat16*>(to + P::scales) + lane / 4, from_float<BFloat16>(made.scale));
}

// ---- stages

// Units of x and W, and behind them the scales of x, [units][rows].
template <class Tile>
struct OperandSizes {
  static constexpr int scales_at = StageSizes<Groups, Tile>::stage_bytes;
  static constexpr int stage_bytes = scales_at + Tile::units * Tile::rows * 2;
  static constexpr int all_bytes = Tile::stages * stage_bytes;
  static constexpr int shared_bytes = all_bytes > Tile::sum_bytes ? all_bytes : Tile::sum_bytes;
  static_assert(shared_bytes <= 99 * 1024);
  static constexpr int blocks = 163 * 1024 / (shared_bytes + 1024);
};

struct LinearLaunch {
  Linear op;
  int most_rows;
};

// Rows of x from `row0`, `Units` units from `unit0`; zeros behind the last row and the last unit.
template <class Tile>
__device__ inline void copy_operands(const LinearLaunch& launch, int row0, int rows, int unit0, int unit_end,
                                     char* stage) {
  const Int8Units units(launch.op.packed.k);
  const auto* x = static_cast<const char*>(launch.op.x);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows * Tile::row_chunks; i += Tile::threads) {
    const int row = i / Tile::row_chunks, chunk = i % Tile::row_chunks;
    const bool there = row0 + row < rows && unit0 + chunk * chunk_bytes / unit_bytes < unit_end;
    const char* from = x;
    if (there) from += (row0 + row) * static_cast<Index>(units.row_bytes()) + unit0 * unit_bytes + chunk * chunk_bytes;
    copy_async(stage + x_offset<Tile>(row, chunk), from, there ? chunk_bytes : 0);
  }
  constexpr int chunk_scales = chunk_bytes / 2, unit_chunks = Tile::rows / chunk_scales;
  const char* scales = x + launch.most_rows * static_cast<Index>(units.row_bytes());
  for (int i = static_cast<int>(threadIdx.x); i < Tile::units * unit_chunks; i += Tile::threads) {
    const int unit = unit0 + i / unit_chunks, row = row0 + i % unit_chunks * chunk_scales;
    const int left = unit >= units.wide && unit < unit_end ? rows - row : 0;
    const char* from = scales;
    if (left > 0) from += ((unit - units.wide) * static_cast<Index>(row_stride(launch.most_rows)) + row) * 2;
    copy_async(stage + OperandSizes<Tile>::scales_at + i * chunk_bytes, from,
               left < 0              ? 0
               : left < chunk_scales ? left * 2
                                     : chunk_bytes);
  }
}

// ---- products

// One group: two steps of the warp's tile in integers, then both scales.
template <class Tile>
__device__ inline void multiply_group(const char* stage, const Place<Tile>& at, int unit, Sums<Tile>& sums) {
  using P = Packing<Groups>;
  constexpr int steps = unit_bytes / step_bytes;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Word4 packed[Tile::column_tiles];
  float column_scales[Tile::column_tiles][2];  // of the lane's columns
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    const int group = at.column / unit_columns + j;
    const char* block = stage + Tile::x_bytes + (group * Tile::units + unit) * P::bytes;
    packed[j] = load(reinterpret_cast<const Word4*>(block) + lane);
    const auto pair = load(reinterpret_cast<const std::uint32_t*>(block + P::scales) + lane % 4);
    column_scales[j][0] = float_of(pair << 16), column_scales[j][1] = float_of(pair & 0xffff0000u);
  }
  const std::int32_t offsets[4] = {float_offset_bits, float_offset_bits, float_offset_bits, float_offset_bits};
  const auto* row_scales =
      reinterpret_cast<const BFloat16*>(stage + OperandSizes<Tile>::scales_at) + unit * Tile::rows + at.row + lane / 4;
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i) {
    std::int32_t parts[Tile::column_tiles][4];
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      std::uint32_t a[4];
      load_matrices(a, stage + x_offset<Tile>(at.row + 16 * i + lane % 16, (steps * unit + step) * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j) {
        const std::uint32_t b[2] = {packed[j].word[2 * step], packed[j].word[2 * step + 1]};
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

// The warp's sums over the split's units, the copies of some stages ahead of the products.
template <class Tile>
__device__ inline void multiply_operands(const LinearLaunch& launch, const Int8Units& units, int row0, int rows,
                                         int column0, int split, Sums<Tile>& sums) {
  const int share = units_per_split<Tile>(units.all(), launch.op.splits);
  const int unit0 = split * share, unit_end = unit0 + share < units.all() ? unit0 + share : units.all();
  const Place<Tile> at;
  const int steps = divide_up(unit_end - unit0, Tile::units);
  // The packed W without its front is what copy_w reads.
  Linear weight = launch.op;
  weight.packed.weight = Int8Front(launch.op.packed.weight, units).weight;
  const auto stage_of = [&](int step) {
    return shared_memory() + step % Tile::stages * OperandSizes<Tile>::stage_bytes;
  };
  const auto copy_stage = [&](int step) {
    const int unit = unit0 + step * Tile::units;
    if (step < steps) {
      copy_operands<Tile>(launch, row0, rows, unit, unit_end, stage_of(step));
      copy_w<Groups, Tile>(weight, units.all(), column0, unit, unit_end, stage_of(step) + Tile::x_bytes);
    }
    commit_copies();  // empty behind the last step, so that the number of groups on their way stays the same
  };
  for (int step = 0; step < Tile::stages - 1; ++step) copy_stage(step);
  for (int step = 0; step < steps; ++step) {
    wait_copies<Tile::stages - 2>();
    sync_threads();  // everyone's copies have landed, and everyone is done with the stage that is filled next
    copy_stage(step + Tile::stages - 1);
    const char* stage = stage_of(step);
#pragma unroll 1  // two units at once would not fit the registers of the largest tile
    for (int i = 0; i < Tile::units; ++i)
      if (unit0 + step * Tile::units + i < units.wide)
        multiply_plain_unit<BFloat16, Groups, Tile>(stage, stage + Tile::x_bytes, at, i, sums);
      else
        multiply_group<Tile>(stage, at, i, sums);
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
  multiply_operands<Tile>(launch, Int8Units(launch.op.packed.k), row0, rows, column0, split, sums);
  share_sums<Tile>(sums);
  finish<BFloat16, Tile>(launch.op, row0, rows, column0, split);
}

}  // namespace

std::size_t packed_int8_bytes(int n, int k) {
  const Int8Units units(k);
  return front_bytes(units) + static_cast<std::size_t>(divide_up(n, unit_columns)) *
                                  static_cast<std::size_t>(units.all()) * Packing<Groups>::bytes;
}

void pack_int8(const float* weight, const float* centre, const std::int32_t* wide, int n, int k, void* packed,
               Stream& stream) {
  constexpr unsigned threads = 128;
  const Int8Units units(k);
  const Pack op{weight, centre, wide, n, k, wide_channels(k), packed};
  launch("pack_int8", pack_front_kernel, {static_cast<unsigned>(divide_up(units.groups * int8_group, threads))},
         threads, 0, stream, op);
  const Grid grid{static_cast<unsigned>(divide_up(units.all(), threads / warp_size)),
                  static_cast<unsigned>(divide_up(n, unit_columns))};
  launch("pack_int8", pack_groups_kernel, grid, threads, 0, stream, op);
}

int linear_int8_splits(int n, int k, int most_rows) {
  return with_large_tile(most_rows,
                         [&]<class Tile>(Tile) { return splits_to_fill<Tile>(n, Int8Units(k).all(), most_rows); });
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
