#include "cpu/naive.h"

#include <algorithm>
#include <vector>

// Compiled for several instruction sets; the loader picks one. Lanes are independent elements of c, and nothing is
// contracted to fused multiply-adds, so all of them give the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define DISTILFAST_WIDEST __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define DISTILFAST_WIDEST
#endif

namespace distilfast {

namespace {

constexpr Index columns = 64;  // of c at a time

// c [rows, columns] = or += one block: a [rows, depth] times b [depth, columns].
template <int Rows>
inline __attribute__((always_inline)) void add_block(const float* a, Index a_stride, const float* b, Index depth,
                                                     float* c, bool first) {
  float sum[Rows][columns] = {};
  for (Index k = 0; k < depth; ++k)
    for (int i = 0; i < Rows; ++i) {
      const float x = a[i * a_stride + k];
      for (Index j = 0; j < columns; ++j) sum[i][j] += x * b[k * columns + j];
    }
  for (int i = 0; i < Rows; ++i)
    for (Index j = 0; j < columns; ++j) c[i * columns + j] = first ? sum[i][j] : c[i * columns + j] + sum[i][j];
}

DISTILFAST_WIDEST void add_blocks(const float* a, Index a_stride, Index rows, const float* b, Index depth, float* c,
                                  bool first) {
  Index row = 0;
  for (; row + 2 <= rows; row += 2) add_block<2>(a + row * a_stride, a_stride, b, depth, c + row * columns, first);
  if (row < rows) add_block<1>(a + row * a_stride, a_stride, b, depth, c + row * columns, first);
}

}  // namespace

void naive_matmul(const float* a, const float* b, float* c, Index m, Index n, Index k, Index block) {
  std::vector<float> transposed(static_cast<std::size_t>(block * columns)),
      panel(static_cast<std::size_t>(m * columns));
  for (Index column = 0; column < n; column += columns) {
    const Index count = std::min(n - column, columns);
    std::fill(panel.begin(), panel.end(), 0.0f);
    for (Index k0 = 0; k0 < k; k0 += block) {
      const Index depth = std::min(k - k0, block);
      for (Index i = 0; i < depth; ++i)
        for (Index j = 0; j < columns; ++j)
          transposed[i * columns + j] = j < count ? b[(column + j) * k + k0 + i] : 0.0f;
      add_blocks(a + k0, k, m, transposed.data(), depth, panel.data(), k0 == 0);
    }
    for (Index row = 0; row < m; ++row) std::copy_n(&panel[row * columns], count, c + row * n + column);
  }
}

}  // namespace distilfast
