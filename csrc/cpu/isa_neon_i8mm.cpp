// The kernels that the matrix product of bytes adds (FEAT_I8MM); all others are NEON's. Everything but the table has
// internal linkage: see isa_neon.cpp.
#include "cpu/vec/neon.h"

#include "cpu/linear/neon_matrix.h"

namespace distilfast {

extern const LinearKernels linear_neon_i8mm = int8_linear_kernels<Int8Matrix>("int8 matrix product (smmla)");

}  // namespace distilfast
