// The kernels that the dot product of bytes adds (FEAT_DotProd); all others are NEON's. Everything but the table has
// internal linkage: see isa_neon.cpp.
#include "cpu/vec/neon.h"

#include "cpu/linear/int8.h"

namespace distilfast {

extern const LinearKernels linear_neon_dotprod = int8_linear_kernels<Int8Dot>("int8 dot product (sdot)");

}  // namespace distilfast
