// The naive fp32 matrix product, whose own error is what the kernels' errors are measured by: see
// distilfast/arithmetic.py.
#pragma once

#include "cpu/kernels.h"

namespace distilfast {

// c[m, n] = sum over k of a[m, k] b[n, k], one rounding for each multiplication and each addition. Terms are added one
// after the other in blocks of `block`, and the sums of the blocks likewise: the bits of c follow from that alone, on
// every processor and with every compiler.
void naive_matmul(const float* a, const float* b, float* c, Index m, Index n, Index k, Index block);

}  // namespace distilfast
