// The kernels of one ISA. Everything but the table has internal linkage: an inline function that two units compile
// with different -m flags would be merged by the linker, and wide registers would reach narrow machines.
#include "cpu/add_layer_norm/ref.h"
#include "cpu/attention/ref.h"
#include "cpu/embed/ref.h"
#include "cpu/linear/ref.h"
#include "cpu/linear/ref_int8.h"

namespace distilfast {

extern const Kernels kernels_ref = {
    "ref",
    linear_kernels<AsItIs>("fp32 operands, summed in fp64"),
    linear_kernels<AsItIs>("bf16x3 by fp32 operands, summed in fp64, which is more exact"),
    linear_kernels<ToBf16>("bf16 operands, summed in fp64"),
    int8_linear_kernels("int8 operands, summed in fp64"),
    attention_kernels<AsItIs>("fp32 operands, summed in fp64"),
    attention_kernels<ToBf16>("bf16 operands, summed in fp64"),
    embed,
    add_layer_norm,
};

}  // namespace distilfast
