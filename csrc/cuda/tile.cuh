// Products of register fragments, in the arithmetic of each precision.
//
// fp16 and bf16 operands go to the matrix instruction as they are. An fp32 operand is split into two tf32 terms,
// x = big + small, which keep 22 of its 24 bits, and a product takes three: big big + big small + small big (3xTF32).
// Tensor cores truncate when they accumulate, an error of one sign that grows with K; the three products of a step
// therefore start from zero, and an ordinary addition, which rounds, adds them to the accumulators. Source: Ootomo and
// Yokota, Recovering single precision accuracy from Tensor Cores, arXiv 2203.03341.
#pragma once

#include "cuda/device.cuh"

namespace distilfast::cuda {

constexpr int step_bytes = 32;   // of K, in one matrix instruction
constexpr int chunk_bytes = 16;  // the widest access

// A lane's fragment of an operand: 4 words of A or 2 of B.
template <class T, int Words>
struct Fragment {
  std::uint32_t word[Words];

  __device__ void set(int i, std::uint32_t value) { word[i] = value; }
};

template <int Words>
struct Fragment<float, Words> {
  std::uint32_t big[Words], small[Words];

  __device__ void set(int i, std::uint32_t value) {
    const float x = float_of(value);
    big[i] = round_to_tf32(x);
    small[i] = round_to_tf32(x - float_of(big[i]));
  }
};

// c += A B.
template <class T>
__device__ inline void multiply_add(float (&c)[4], const Fragment<T, 4>& a, const Fragment<T, 2>& b) {
  multiply_matrices<T>(c, a.word, b.word);
}

template <>
__device__ inline void multiply_add<float>(float (&c)[4], const Fragment<float, 4>& a, const Fragment<float, 2>& b) {
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  multiply_matrices<float>(sum, a.small, b.big);
  multiply_matrices<float>(sum, a.big, b.small);
  multiply_matrices<float>(sum, a.big, b.big);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += sum[i];
}

// The fragment of an A [16, 32 bytes] in shared memory; `row_address(row, chunk)`: where 16 bytes of it lie, rows 0 to
// 15, chunks 0 and 1.
template <class T, class RowAddress>
__device__ inline Fragment<T, 4> load_fragment_a(RowAddress row_address) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  std::uint32_t words[4];
  load_matrices(words, row_address(lane % 16, lane / 16));
  Fragment<T, 4> a;
#pragma unroll
  for (int i = 0; i < 4; ++i) a.set(i, words[i]);
  return a;
}

}  // namespace distilfast::cuda
