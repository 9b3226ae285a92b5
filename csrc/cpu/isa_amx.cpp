// The linears of AMX; all other kernels are AVX-512's. Everything but the tables has internal linkage: see
// isa_avx512.cpp.
#include "cpu/vec/avx512.h"
#include "cpu/vec/tile_unit.h"

#include "cpu/linear/amx.h"
#include "cpu/linear/amx_int8.h"

namespace distilfast {

extern const LinearKernels linear_amx_fp32 = tile_linear_kernels<ThreeBf16>("fp32 as six bf16 products (tdpbf16ps)");
extern const LinearKernels linear_amx_bf16x3 = tile_linear_kernels<TwoBf16>("bf16x3 products (tdpbf16ps)");
extern const LinearKernels linear_amx_bf16 = tile_linear_kernels<OneBf16>("bf16 products (tdpbf16ps)");
extern const LinearKernels linear_amx_int8 = tile_int8_linear_kernels("int8 products (tdpbssd)");

}  // namespace distilfast
