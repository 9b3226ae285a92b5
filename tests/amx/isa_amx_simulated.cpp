// csrc/cpu/isa_amx.cpp with the simulated tile unit.
#include "cpu/vec/avx512.h"
#include "tile_unit.h"

#include "cpu/linear/amx.h"
#include "cpu/linear/amx_int8.h"

namespace distilfast {

extern const LinearKernels linear_amx_simulated_fp32 =
    tile_linear_kernels<ThreeBf16>("fp32 as six bf16 products (simulated)");
extern const LinearKernels linear_amx_simulated_bf16x3 = tile_linear_kernels<TwoBf16>("bf16x3 products (simulated)");
extern const LinearKernels linear_amx_simulated_bf16 = tile_linear_kernels<OneBf16>("bf16 products (simulated)");
extern const LinearKernels linear_amx_simulated_int8 = tile_int8_linear_kernels("int8 products (simulated)");

}  // namespace distilfast
