// The kernels that AVX-VNNI adds; all others are AVX2's. Everything but the table has internal linkage: see
// isa_avx2.cpp.
#include "cpu/vec/avx2.h"

#include "cpu/linear/int8.h"

namespace distilfast {

extern const LinearKernels linear_avx2_vnni = int8_linear_kernels<Int8Dot>("int8 dot product (vpdpbusd)");

}  // namespace distilfast
