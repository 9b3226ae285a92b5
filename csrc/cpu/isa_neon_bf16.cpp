// The kernels that the products of bf16 add (FEAT_BF16); all others are NEON's. Everything but the tables has internal
// linkage: see isa_neon.cpp.
#include "cpu/vec/neon.h"

#include "cpu/attention/bf16.h"
#include "cpu/linear/neon_matrix.h"

namespace distilfast {

extern const LinearKernels linear_neon_bf16 = linear_kernels<Bf16Matrix>("bf16 matrix product (bfmmla)");
extern const AttentionKernels attention_neon_bf16 = attention_kernels<Bf16Attention>("bf16 dot product (bfdot)");

}  // namespace distilfast
