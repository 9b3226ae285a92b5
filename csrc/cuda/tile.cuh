// Products of register tiles, in the arithmetic of a precision.
//
// For fp16 and bf16 an operand is what the matrix instruction takes. An fp32 operand is split into two tf32 numbers,
// x = big + small, 22 of its 24 bits, and a product is three: big big + big small + small big. Tensor cores truncate
// when they accumulate, an error of one sign that grows with K; each step's three products are therefore accumulated
// separately and added to the tile's accumulators by an ordinary, rounding addition. Source: Ootomo
// and Yokota, Recovering single precision accuracy from Tensor Cores, arXiv 2203.03341.
#pragma once

#include "cuda/device.cuh"

namespace distilfast::cuda {

constexpr int step_bytes = 32;   // of k, in one matrix instruction
constexpr int chunk_bytes = 16;  // the widest access

// Words of one operand, 4 of A or 2 of B, ready to be multiplied.
template <class T, int Words>
struct Operand {
  std::uint32_t word[Words];

  __device__ void set(int i, std::uint32_t value) { word[i] = value; }
};

template <int Words>
struct Operand<float, Words> {
  std::uint32_t big[Words], small[Words];

  __device__ void set(int i, std::uint32_t value) {
    const float x = float_of(value);
    big[i] = round_to_tf32(x);
    small[i] = round_to_tf32(x - float_of(big[i]));
  }
};

// c += A B.
template <class T>
__device__ inline void multiply_add(float (&c)[4], const Operand<T, 4>& a, const Operand<T, 2>& b) {
  multiply_matrices<T>(c, a.word, b.word);
}

template <>
__device__ inline void multiply_add<float>(float (&c)[4], const Operand<float, 4>& a, const Operand<float, 2>& b) {
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  multiply_matrices<float>(sum, a.small, b.big);
  multiply_matrices<float>(sum, a.big, b.small);
  multiply_matrices<float>(sum, a.big, b.big);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += sum[i];
}

// A [16, step] of rows in shared memory; `row_address(row, chunk)` says where 16 bytes of it lie, rows 0 to 15, chunks
// 0 and 1.
template <class T, class RowAddress>
__device__ inline Operand<T, 4> load_operand_a(RowAddress row_address) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  std::uint32_t words[4];
  load_matrices(words, row_address(lane % 16, lane / 16));
  Operand<T, 4> a;
#pragma unroll
  for (int i = 0; i < 4; ++i) a.set(i, words[i]);
  return a;
}

}  // namespace distilfast::cuda
