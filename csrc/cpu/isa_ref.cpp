// The kernels of one ISA. Everything but the table has internal linkage: the linker would merge an inline function that
// two units compile with different -m flags, and AVX-512 code would run on machines without it.
#include "cpu/add_layer_norm/ref.h"
#include "cpu/attention/ref.h"
#include "cpu/embed/ref.h"
#include "cpu/linear/ref.h"
#include "cpu/linear/ref_int8.h"

namespace distilfast {

extern const Kernels kernels_ref = {
    "ref",
    linear_kernels<Fp32>("fp32 operands, summed in fp64"),
    linear_kernels<Fp32>("bf16x3 by fp32 operands, summed in fp64, which is more exact"),
    linear_kernels<Bf16>("bf16 operands, summed in fp64"),
    int8_linear_kernels("int8 operands, summed in fp64"),
    attention_kernels<Fp32>("fp32 operands, summed in fp64"),
    attention_kernels<Bf16>("bf16 operands, summed in fp64"),
    embed,
    add_layer_norm,
};

}  // namespace distilfast
