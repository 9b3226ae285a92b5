// make_operands: rows of x -> int8 operands of a linear, as int8_groups.cuh has them. [T, K] bf16 -> [T, stretches] x
// 128 bytes, and the scale of each group, [groups, row_stride(T)] bf16.
//
// Eight lanes make a stretch of a row: 32 bytes of x for each in, 16 out, in accesses of 16. The stretches of a block
// are the same of its rows: their scales lie side by side, and what is known of the channels is the same for all of
// them. Reference: tests/cuda/elements.py, Int8Linear.operands.
#include "cuda/element.cuh"
#include "cuda/int8_groups.cuh"

namespace distilfast::cuda {
namespace {

constexpr int lane_numbers = 16, group_lanes = int8_group / lane_numbers;
constexpr int operand_threads = 128, operand_rows = operand_threads / group_lanes;
constexpr int vector_numbers = 8;  // bf16 in 16 bytes

struct alignas(16) Vector {
  BFloat16 element[vector_numbers];
};
struct alignas(16) Centres {
  float number[4];
};

// x[k] to x[k + 7] of a row of `depth`, zeros behind it.
__device__ inline void load_vector(const BFloat16* x, int k, int depth, float* numbers) {
  if (k + vector_numbers <= depth) {
    const auto vector = load(reinterpret_cast<const Vector*>(x + k));
#pragma unroll
    for (int i = 0; i < vector_numbers; ++i) numbers[i] = to_float(vector.element[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < vector_numbers; ++i) numbers[i] = k + i < depth ? to_float(load(x + k + i)) : 0.0f;
}

// The lane's 16 numbers of a group that begins at `first`; zeros where there is no row.
__device__ inline RoundedGroup<lane_numbers> make_group(const BFloat16* x, int first, int depth, const float* centre) {
  const int k = first + static_cast<int>(threadIdx.x) % group_lanes * lane_numbers;
  float numbers[lane_numbers] = {};
  if (x) {
    load_vector(x, k, depth, numbers);
    load_vector(x, k + vector_numbers, depth, numbers + vector_numbers);
#pragma unroll
    for (int i = 0; i < lane_numbers; i += 4) {
      const auto centres = load(reinterpret_cast<const Centres*>(centre + k + i));
#pragma unroll
      for (int j = 0; j < 4; ++j) numbers[i + j] = rounded_part(numbers[i + j], centres.number[j]);
    }
  }
  return round_group(numbers);
}

// The lane's 8 channels of a stretch of wide ones.
__device__ inline Vector make_wide(const BFloat16* x, const Int8Front& front, int stretch) {
  const int first = stretch * wide_stretch + static_cast<int>(threadIdx.x) % group_lanes * vector_numbers;
  Vector made;
#pragma unroll
  for (int i = 0; i < vector_numbers; ++i) {
    const int channel = load(front.wide + first + i);
    made.element[i] =
        from_float<BFloat16>(channel < 0 ? 0.0f : to_float(load(x + channel)) - load(front.wide_centre + first + i));
  }
  return made;
}

struct MakeLaunch {
  MakeOperands op;
  int most_rows;
};

__global__ void __launch_bounds__(operand_threads) make_operands_kernel(MakeLaunch launch) {
  const MakeOperands& op = launch.op;
  const int thread = static_cast<int>(threadIdx.x), rows = load(op.rows), stretch = static_cast<int>(blockIdx.y);
  const int row0 = static_cast<int>(blockIdx.x) * operand_rows, row = row0 + thread / group_lanes;
  if (row0 >= rows) return;
  const Stretches stretches(op.packed.k);
  const Int8Front front(op.packed.weight, stretches);
  const bool there = row < rows;
  const BFloat16* x = nullptr;
  if (there) {
    const Index from = op.gather ? load(op.gather + row) : row;
    x = static_cast<const BFloat16*>(op.x) + from * row_stride(op.packed.k);
  }
  char* to = static_cast<char*>(op.operands) + row * static_cast<Index>(stretches.row_bytes()) + stretch * int8_group +
             thread % group_lanes * lane_numbers;
  if (stretch < stretches.wide) {
    if (there) store(reinterpret_cast<Vector*>(to), make_wide(x, front, stretch));
    return;
  }
  const int group = stretch - stretches.wide;
  const auto made = make_group(x, group * int8_group, op.packed.k, front.centre);
  if (!there) return;
  store(reinterpret_cast<Word4*>(to), Word4{{made.word[0], made.word[1], made.word[2], made.word[3]}});
  auto* scales = reinterpret_cast<BFloat16*>(static_cast<char*>(op.operands) +
                                             launch.most_rows * static_cast<Index>(stretches.row_bytes()));
  if (thread % group_lanes == 0)
    store(scales + group * static_cast<Index>(row_stride(launch.most_rows)) + row, from_float<BFloat16>(made.scale));
}

}  // namespace

int operand_row_bytes(int k) { return Stretches(k).row_bytes(); }

std::size_t operand_bytes(int k, int most_rows) {
  const Stretches stretches(k);
  return static_cast<std::size_t>(most_rows) * static_cast<std::size_t>(stretches.row_bytes()) +
         static_cast<std::size_t>(stretches.groups) * static_cast<std::size_t>(row_stride(most_rows)) *
             sizeof(BFloat16);
}

int wide_channels(int k) {
  const int room = Stretches(k).wide * wide_stretch;
  return k < room ? k : room;
}

void make_operands(const MakeOperands& op, int most_rows, Stream& stream) {
  const Grid grid{static_cast<unsigned>((most_rows + operand_rows - 1) / operand_rows),
                  static_cast<unsigned>(Stretches(op.packed.k).all())};
  launch("make_operands", make_operands_kernel, grid, operand_threads, 0, stream, MakeLaunch{op, most_rows});
}

void load_make_operands() { load_kernel("make_operands", make_operands_kernel); }

}  // namespace distilfast::cuda
