// The kernels that AVX512-VNNI adds; all others are AVX-512's. Everything but the table has internal linkage: see
// isa_avx512.cpp.
#include "cpu/vec/avx512.h"

#include "cpu/linear/int8.h"

namespace distilfast {

extern const LinearKernels linear_avx512_vnni = int8_linear_kernels<Int8Dot>("int8 dot product (vpdpbusd)");

}  // namespace distilfast
