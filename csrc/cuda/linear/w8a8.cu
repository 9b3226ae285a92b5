// W8A8: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], in int8 for more than max_w8a16_rows rows.
//
// Precision: see int8_groups.cuh. A group's products are exact in int32; times both scales they are added to fp32
// accumulators, after the outlier channels' bf16 products. Reference: tests/cuda/elements.py, Int8Linear.
//
// CTA tiles, pipeline and epilogue are those of linear.cuh, and W is packed in the same order: the two k-tiles of a
// k-block, followed by the scales. A group takes only four matrix instructions, so dequantisation must be cheap. It is
// a magic-number conversion: the bits of 1.5 x 2^23 as an integer, plus n, are those of the float 1.5 x 2^23 + n for
// |n| < 2^22. The int32 accumulators therefore start from these bits, and a subtraction replaces the integer-to-float
// conversion, which has a lower throughput.
#include <cmath>

#include "cuda/linear/int8_groups.cuh"
#include "cuda/linear/linear.cuh"

namespace distilfast::cuda {
namespace {

constexpr std::int32_t float_offset_bits = 0x4b400000;
constexpr float float_offset = 12582912.0f;
static_assert(int8_group * 127 * 127 < 1 << 22);

// ---- packing

// W of one k-block: two k-tiles, followed by the eight columns' scales of a group.
struct W8A8 {};
template <>
struct Packing<W8A8> {
  static constexpr int k_tiles = int8_group / k_tile_bytes, scales = k_tiles * packed_k_tile_bytes;
  static constexpr int bytes = scales + mma_columns * 2;
};
static_assert(Packing<W8A8>::bytes % chunk_bytes == 0);

constexpr std::size_t header_bytes(const KBlocks& k_blocks) {
  return static_cast<std::size_t>(k_blocks.groups) * int8_group * sizeof(float) +
         static_cast<std::size_t>(k_blocks.outliers) * outlier_block * (sizeof(std::int32_t) + sizeof(float));
}

struct W8A8Pack {
  const float *weight, *channel_shift;
  const std::int32_t* outlier_channels;
  int n, k, num_outliers;
  void* packed;
};

// One thread writes the shift of one channel in the groups, and one outlier channel.
__global__ void pack_header_kernel(W8A8Pack op) {
  const KBlocks k_blocks(op.k);
  const Int8Header header(op.packed, k_blocks);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < k_blocks.groups * int8_group) {
    bool is_quantized = i < op.k;
    for (int j = 0; j < op.num_outliers; ++j) is_quantized = is_quantized && load(op.outlier_channels + j) != i;
    store(const_cast<float*>(header.channel_shift + i), is_quantized ? load(op.channel_shift + i) : NAN);
  }
  if (i < k_blocks.outliers * outlier_block) {
    const int channel = i < op.num_outliers ? load(op.outlier_channels + i) : -1;
    store(const_cast<std::int32_t*>(header.outlier_channels + i), channel);
    store(const_cast<float*>(header.outlier_shift + i), channel < 0 ? 0.0f : load(op.channel_shift + channel));
  }
}

// Words that a lane holds of a row of W in a k-block: four of each k-tile, as in pack_linear.
constexpr int k_block_words = 4 * Packing<W8A8>::k_tiles;

// The offset in a k-tile of the lane's word `word`, in bytes.
__device__ inline int word_offset(int word) {
  return word / 2 * step_bytes + (word % 2 * 4 + static_cast<int>(threadIdx.x) % 4) * 4;
}

__device__ inline void pack_outliers(const Int8Header& header, int k_block, const float* row,
                                     std::uint32_t (&words)[k_block_words]) {
#pragma unroll
  for (int i = 0; i < 2 * k_block_words; ++i) {
    const int offset = i / 8 * k_tile_bytes + word_offset(i / 2 % 4) + i % 2 * 2;  // in bytes, in the k-block
    const int channel = load(header.outlier_channels + k_block * outlier_block + offset / 2);
    const auto value = to_float(from_float<BFloat16>(row && channel >= 0 ? load(row + channel) : 0.0f));
    words[i / 2] |= bits_of(value) >> 16 << i % 2 * 16;
  }
}

// Returns the row's scale, divided by 128: x and W are both multiplied by H, and H Ht = 128 I.
__device__ inline float pack_group(const Int8Header& header, int group, const float* row,
                                   std::uint32_t (&words)[k_block_words]) {
  float values[4 * k_block_words];
#pragma unroll
  for (int i = 0; i < 4 * k_block_words; ++i) {
    const int k = group * int8_group + i / 16 * k_tile_bytes + word_offset(i / 4 % 4) + i % 4;
    const float channel_shift = load(header.channel_shift + k);
    values[i] = row && channel_shift == channel_shift ? load(row + k) : 0.0f;
  }
  const auto quantized = quantize_group(values);
#pragma unroll
  for (int i = 0; i < k_block_words; ++i) words[i] = quantized.word[i];
  return quantized.scale / int8_group;
}

// One warp writes a k-block of eight rows: four lanes for each row.
__global__ void pack_groups_kernel(W8A8Pack op) {
  using P = Packing<W8A8>;
  const KBlocks k_blocks(op.k);
  const Int8Header header(op.packed, k_blocks);
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int k_block = static_cast<int>(blockIdx.x * (blockDim.x / warp_size) + threadIdx.x / warp_size);
  const int n = static_cast<int>(blockIdx.y) * mma_columns + lane / 4;
  if (k_block >= k_blocks.all()) return;
  const float* row = n < op.n ? op.weight + static_cast<Index>(n) * op.k : nullptr;
  std::uint32_t words[k_block_words] = {};
  float scale = 0.0f;
  if (k_block < k_blocks.outliers)
    pack_outliers(header, k_block, row, words);
  else
    scale = pack_group(header, k_block - k_blocks.outliers, row, words);
  char* to =
      const_cast<char*>(header.weight) + (static_cast<Index>(blockIdx.y) * k_blocks.all() + k_block) * Index{P::bytes};
#pragma unroll
  for (int k_tile = 0; k_tile < P::k_tiles; ++k_tile) {
    const Word4 bytes{{words[4 * k_tile], words[4 * k_tile + 1], words[4 * k_tile + 2], words[4 * k_tile + 3]}};
    store(reinterpret_cast<Word4*>(to + k_tile * packed_k_tile_bytes) + lane, bytes);
  }
  if (lane % 4 == 0) store(reinterpret_cast<BFloat16*>(to + P::scales) + lane / 4, from_float<BFloat16>(scale));
}

// ---- stages

// A pipeline stage: a k-block of x and W, followed by the scales of x, [rows].
template <class Tile>
struct W8A8StageSizes {
  static_assert(Tile::k_tiles == Packing<W8A8>::k_tiles);
  static constexpr int scales_at = StageSizes<W8A8, Tile>::stage_bytes;
  static constexpr int stage_bytes = scales_at + Tile::rows * 2;
  static constexpr int all_bytes = Tile::stages * stage_bytes;
  static constexpr int bias_at = all_bytes > Tile::accumulator_bytes ? all_bytes : Tile::accumulator_bytes;
  static constexpr int shared_bytes = bias_at + Tile::bias_bytes;
  static_assert(shared_bytes <= 99 * 1024);
  static constexpr int blocks = 163 * 1024 / (shared_bytes + 1024);
};

struct W8A8Launch {
  Linear op;
  int bucket_rows;
};

// One thread's copies of packed A, like CopiesOfX: a k-block of the rows from `row0`, with their scales where it is a
// group; zero-padded past the last row.
template <class Tile>
class CopiesOfPackedA {
 public:
  __device__ CopiesOfPackedA(const W8A8Launch& launch, const KBlocks& k_blocks, int row0, int rows, int k_block0)
      : first_group_(k_blocks.outliers - k_block0) {
    const int thread = static_cast<int>(threadIdx.x), row = thread / Tile::row_chunks,
              chunk = thread % Tile::row_chunks;
    const auto* x = static_cast<const char*>(launch.op.x);
    to_ = x_offset<Tile>(row, chunk);
    from_ = x + (row0 + row) * Index{k_blocks.row_bytes()} + k_block0 * int8_group + chunk * chunk_bytes;
    pass_bytes_ = pass_rows * Index{k_blocks.row_bytes()};
    left_ = rows - row0 - row;
    scales_stride_ = Index{row_stride(launch.bucket_rows)} * 2;
    const int scale_row = row0 + thread * chunk_scales, left = rows - scale_row;
    scales_ = x + launch.bucket_rows * Index{k_blocks.row_bytes()} - first_group_ * scales_stride_ + scale_row * 2;
    scale_bytes_ = (left < 0 ? 0 : left < chunk_scales ? left : chunk_scales) * 2;
  }

  __device__ void issue(int step, char* stage) const {
#pragma unroll
    for (int i = 0; i < copies; ++i)
      copy_async(stage + to_ + i * pass_rows * Tile::row_bytes, from_ + i * pass_bytes_ + step * int8_group,
                 i * pass_rows < left_ ? chunk_bytes : 0);
    if (step >= first_group_ && threadIdx.x < Tile::rows / chunk_scales)
      copy_async(stage + W8A8StageSizes<Tile>::scales_at + threadIdx.x * chunk_bytes, scales_ + step * scales_stride_,
                 scale_bytes_);
  }

 private:
  static constexpr int pass_rows = Tile::threads / Tile::row_chunks, copies = Tile::rows / pass_rows;
  static constexpr int chunk_scales = chunk_bytes / 2;
  static_assert(copies * pass_rows == Tile::rows && pass_rows % 8 == 0 && Tile::rows / chunk_scales <= Tile::threads);

  int first_group_;  // the step that copies it
  const char *from_, *scales_;
  Index pass_bytes_, scales_stride_;
  int to_, left_, scale_bytes_;  // in the stage; rows
};

// ---- products

// One group: four matrix instructions deep in int32, then dequantised.
template <class Tile>
__device__ inline void multiply_group(const char* stage, const WarpCoord<Tile>& at, Accumulators<Tile>& accumulators) {
  using P = Packing<W8A8>;
  constexpr int k_tile_steps = k_tile_bytes / step_bytes;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Word4 packed[Tile::column_tiles][P::k_tiles];
  float column_scales[Tile::column_tiles][2];  // of the lane's columns
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    const char* block = stage + Tile::x_bytes + (at.column / mma_columns + j) * P::bytes;
#pragma unroll
    for (int k_tile = 0; k_tile < P::k_tiles; ++k_tile)
      packed[j][k_tile] = load(reinterpret_cast<const Word4*>(block + k_tile * packed_k_tile_bytes) + lane);
    const auto pair = load(reinterpret_cast<const std::uint32_t*>(block + P::scales) + lane % 4);
    column_scales[j][0] = float_of(pair << 16), column_scales[j][1] = float_of(pair & 0xffff0000u);
  }
  const std::int32_t offsets[4] = {float_offset_bits, float_offset_bits, float_offset_bits, float_offset_bits};
  const auto* row_scales =
      reinterpret_cast<const BFloat16*>(stage + W8A8StageSizes<Tile>::scales_at) + at.row + lane / 4;
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i) {
    std::int32_t products[Tile::column_tiles][4];
#pragma unroll
    for (int step = 0; step < P::k_tiles * k_tile_steps; ++step) {
      std::uint32_t a[4];
      load_matrices(a, stage + x_offset<Tile>(at.row + 16 * i + lane % 16, step * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j) {
        const Word4& words = packed[j][step / k_tile_steps];
        const int first = step % k_tile_steps * 2;
        const std::uint32_t b[2] = {words.word[first], words.word[first + 1]};
        if (step == 0)
          multiply_bytes(products[j], a, b, offsets);
        else
          multiply_bytes(products[j], a, b, products[j]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float row_scale = to_float(load(row_scales + 16 * i + 8 * half));
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& sum = accumulators[i][j][2 * half + c];
          const float product = float_of(static_cast<std::uint32_t>(products[j][2 * half + c])) - float_offset;
          sum = fmaf(product, row_scale * column_scales[j][c], sum);
        }
    }
  }
}

// The main loop over the split's k-blocks, with the pipeline of mainloop.cuh.
template <class Tile>
class W8A8MainLoop {
 public:
  __device__ W8A8MainLoop(const Linear& op, int column0, int split)
      : k_blocks_(op.packed.k),
        first_(split * divide_up(k_blocks_.all(), op.split_k)),
        end_(end_of(first_ + divide_up(k_blocks_.all(), op.split_k))),
        w_(Int8Header(op.packed.weight, k_blocks_).weight, op.packed.n, k_blocks_.all() * Tile::k_tiles, column0,
           first_ * Tile::k_tiles, end_ * Tile::k_tiles) {
    for (int step = 0; step < Tile::stages - 1; ++step)
      if (first_ + step < end_) w_.issue(step, stage_of(step) + Tile::x_bytes);
  }

  __device__ void run(const W8A8Launch& launch, int row0, int rows, Accumulators<Tile>& accumulators) const {
    const WarpCoord<Tile> at;
    const CopiesOfPackedA<Tile> x(launch, k_blocks_, row0, rows, first_);
    const int steps = end_ - first_;
    for (int step = 0; step < Tile::stages - 1; ++step) {
      if (step < steps) x.issue(step, stage_of(step));
      commit_copies();  // the first group has the prologue's W too
    }
    for (int step = 0; step < steps; ++step) {
      wait_copies<Tile::stages - 2>();
      sync_threads();  // this stage is complete, and all warps have read the one that is filled next
      if (const int next = step + Tile::stages - 1; next < steps) {
        x.issue(next, stage_of(next));
        w_.issue(next, stage_of(next) + Tile::x_bytes);
      }
      commit_copies();  // an empty group past the last step keeps the number of pending groups constant
      const char* stage = stage_of(step);
      if (first_ + step >= k_blocks_.outliers) {
        multiply_group<Tile>(stage, at, accumulators);
        continue;
      }
#pragma unroll
      for (int k_tile = 0; k_tile < Tile::k_tiles; ++k_tile)
        multiply_k_tile<BFloat16, W8A8, Tile>(stage, stage + Tile::x_bytes, at, k_tile, accumulators);
    }
    wait_copies<0>();
    sync_threads();  // the epilogue reuses the stages
  }

 private:
  __device__ int end_of(int past) const { return past < k_blocks_.all() ? past : k_blocks_.all(); }
  static __device__ char* stage_of(int step) {
    return shared_memory() + step % Tile::stages * W8A8StageSizes<Tile>::stage_bytes;
  }

  const KBlocks k_blocks_;
  const int first_, end_;  // k-blocks
  const CopiesOfW<W8A8, Tile> w_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, W8A8StageSizes<Tile>::blocks) linear_w8a8_kernel(W8A8Launch launch) {
  static_assert(Tile::k_warps == 1);
  const int row0 = static_cast<int>(blockIdx.y) * Tile::rows, column0 = static_cast<int>(blockIdx.x) * Tile::columns;
  const int split = static_cast<int>(blockIdx.z);
  auto* bias = reinterpret_cast<float*>(shared_memory() + W8A8StageSizes<Tile>::bias_at);
  const W8A8MainLoop<Tile> main_loop(launch.op, column0, split);
  copy_bias<Tile>(launch.op, column0, bias);
  wait_for_predecessor();
  release_dependents();
  const int rows = load(launch.op.rows);
  if (row0 >= rows) return drop_copies();
  Accumulators<Tile> accumulators = {};
  main_loop.run(launch, row0, rows, accumulators);
  stage_accumulators<Tile>(accumulators);
  epilogue<BFloat16, Tile>(launch.op, row0, rows, column0, split, bias);
}

}  // namespace

std::size_t packed_w8a8_bytes(int n, int k) {
  const KBlocks k_blocks(k);
  return header_bytes(k_blocks) + static_cast<std::size_t>(divide_up(n, mma_columns)) *
                                      static_cast<std::size_t>(k_blocks.all()) * Packing<W8A8>::bytes;
}

void pack_w8a8(const float* weight, const float* channel_shift, const std::int32_t* outliers, int n, int k,
               void* packed, Stream& stream) {
  constexpr unsigned threads = 128;
  const KBlocks k_blocks(k);
  const W8A8Pack op{weight, channel_shift, outliers, n, k, outlier_channels(k), packed};
  launch("pack_w8a8", pack_header_kernel, {static_cast<unsigned>(divide_up(k_blocks.groups * int8_group, threads))},
         threads, 0, stream, op);
  const Grid grid{static_cast<unsigned>(divide_up(k_blocks.all(), threads / warp_size)),
                  static_cast<unsigned>(divide_up(n, mma_columns))};
  launch("pack_w8a8", pack_groups_kernel, grid, threads, 0, stream, op);
}

int linear_w8a8_split_k(int n, int k, int bucket_rows) {
  return with_large_tile(bucket_rows, [&]<class Tile>(Tile) {
    return split_k_to_fill<Tile>(n, KBlocks(k).all() * Tile::k_tiles, bucket_rows);
  });
}

void linear_w8a8(const Linear& op, int bucket_rows, Stream& stream) {
  with_large_tile(bucket_rows, [&]<class Tile>(Tile) {
    const Grid grid{static_cast<unsigned>(divide_up(op.packed.n, Tile::columns)),
                    static_cast<unsigned>(divide_up(bucket_rows, Tile::rows)), static_cast<unsigned>(op.split_k)};
    launch("linear", linear_w8a8_kernel<Tile>, grid, Tile::threads, W8A8StageSizes<Tile>::shared_bytes, stream,
           W8A8Launch{op, bucket_rows});
  });
}

void load_linear_w8a8() {
  load_kernel("pack_w8a8", pack_header_kernel);
  load_kernel("pack_w8a8", pack_groups_kernel);
  load_kernel("linear", linear_w8a8_kernel<CtaTile64x64>);
  load_kernel("linear", linear_w8a8_kernel<CtaTile128x128>);
}

}  // namespace distilfast::cuda
