// quantize_activations: rows of x -> packed A of a W8A8 linear, see int8_groups.cuh. [T, K] bf16 -> [T, k_blocks] x 128
// bytes, followed by the scale of each group, [groups, row_stride(T)] bf16.
//
// Eight lanes write a k-block of a row: each reads 32 bytes of x and writes 16, in accesses of 16. A thread block takes
// one k-block of 16 rows: their scales are contiguous, and the header is read into the cache once for all of them.
// Reference: tests/cuda/elements.py, Int8Linear.quantize_activations.
#include "cuda/element.cuh"
#include "cuda/linear/int8_groups.cuh"

namespace distilfast::cuda {
namespace {

constexpr int lane_values = 16, group_lanes = int8_group / lane_values;
constexpr int quantize_threads = 128, quantize_rows = quantize_threads / group_lanes;
constexpr int vector_values = 8;  // bf16 in 16 bytes

using Values = Vector<BFloat16, vector_values>;
struct alignas(16) Shifts {
  float value[4];
};

// x[k] to x[k + 7] of a row of `depth`, zero-padded past it.
__device__ inline void load_vector(const BFloat16* x, int k, int depth, float* values) {
  if (k + vector_values <= depth) {
    const auto vector = load(reinterpret_cast<const Values*>(x + k));
#pragma unroll
    for (int i = 0; i < vector_values; ++i) values[i] = to_float(vector.element[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < vector_values; ++i) values[i] = k + i < depth ? to_float(load(x + k + i)) : 0.0f;
}

// The lane's 16 values of the group that begins at `first`; zeros where x is null.
__device__ inline QuantizedGroup<lane_values> load_group(const BFloat16* x, int first, int depth,
                                                         const float* channel_shift) {
  const int k = first + static_cast<int>(threadIdx.x) % group_lanes * lane_values;
  float values[lane_values] = {};
  if (x) {
    load_vector(x, k, depth, values);
    load_vector(x, k + vector_values, depth, values + vector_values);
#pragma unroll
    for (int i = 0; i < lane_values; i += 4) {
      const auto shifts = load(reinterpret_cast<const Shifts*>(channel_shift + k + i));
#pragma unroll
      for (int j = 0; j < 4; ++j) values[i + j] = shifted_or_zero(values[i + j], shifts.value[j]);
    }
  }
  return quantize_group(values);
}

// The lane's 8 outlier channels of a k-block.
__device__ inline Values gather_outliers(const BFloat16* x, const Int8Header& header, int k_block) {
  const int first = k_block * outlier_block + static_cast<int>(threadIdx.x) % group_lanes * vector_values;
  Values outliers;
#pragma unroll
  for (int i = 0; i < vector_values; ++i) {
    const int channel = load(header.outlier_channels + first + i);
    outliers.element[i] =
        from_float<BFloat16>(channel < 0 ? 0.0f : to_float(load(x + channel)) - load(header.outlier_shift + first + i));
  }
  return outliers;
}

struct QuantizeLaunch {
  QuantizeActivations op;
  int bucket_rows;
};

__global__ void __launch_bounds__(quantize_threads) quantize_activations_kernel(QuantizeLaunch launch) {
  wait_for_predecessor();
  release_dependents();
  const QuantizeActivations& op = launch.op;
  const int thread = static_cast<int>(threadIdx.x), rows = load(op.rows), k_block = static_cast<int>(blockIdx.y);
  const int row0 = static_cast<int>(blockIdx.x) * quantize_rows, row = row0 + thread / group_lanes;
  if (row0 >= rows) return;
  const KBlocks k_blocks(op.packed.k);
  const Int8Header header(op.packed.weight, k_blocks);
  const bool in_bounds = row < rows;
  const BFloat16* x = nullptr;
  if (in_bounds) {
    const Index from = op.gather ? load(op.gather + row) : row;
    x = static_cast<const BFloat16*>(op.x) + from * row_stride(op.packed.k);
  }
  char* to = static_cast<char*>(op.packed_a) + row * static_cast<Index>(k_blocks.row_bytes()) + k_block * int8_group +
             thread % group_lanes * lane_values;
  if (k_block < k_blocks.outliers) {
    if (in_bounds) store(reinterpret_cast<Values*>(to), gather_outliers(x, header, k_block));
    return;
  }
  const int group = k_block - k_blocks.outliers;
  const auto quantized = load_group(x, group * int8_group, op.packed.k, header.channel_shift);
  if (!in_bounds) return;
  store(reinterpret_cast<Word4*>(to),
        Word4{{quantized.word[0], quantized.word[1], quantized.word[2], quantized.word[3]}});
  auto* scales = reinterpret_cast<BFloat16*>(static_cast<char*>(op.packed_a) +
                                             launch.bucket_rows * static_cast<Index>(k_blocks.row_bytes()));
  if (thread % group_lanes == 0)
    store(scales + group * static_cast<Index>(row_stride(launch.bucket_rows)) + row,
          from_float<BFloat16>(quantized.scale));
}

}  // namespace

int packed_a_row_bytes(int k) { return KBlocks(k).row_bytes(); }

std::size_t packed_a_bytes(int k, int bucket_rows) {
  const KBlocks k_blocks(k);
  return static_cast<std::size_t>(bucket_rows) * static_cast<std::size_t>(k_blocks.row_bytes()) +
         static_cast<std::size_t>(k_blocks.groups) * static_cast<std::size_t>(row_stride(bucket_rows)) *
             sizeof(BFloat16);
}

int outlier_channels(int k) {
  const int room = KBlocks(k).outliers * outlier_block;
  return k < room ? k : room;
}

void quantize_activations(const QuantizeActivations& op, int bucket_rows, Stream& stream) {
  const Grid grid{static_cast<unsigned>((bucket_rows + quantize_rows - 1) / quantize_rows),
                  static_cast<unsigned>(KBlocks(op.packed.k).all())};
  launch("quantize_activations", quantize_activations_kernel, grid, quantize_threads, 0, stream,
         QuantizeLaunch{op, bucket_rows});
}

void load_quantize_activations() { load_kernel("quantize_activations", quantize_activations_kernel); }

}  // namespace distilfast::cuda
