// The kernels of one ISA. Everything but the table has internal linkage: the linker would merge an inline function that
// two units compile with different -m flags, and code for newer processors would run on others.
#include "cpu/vec/neon.h"

#include "cpu/add_layer_norm/vec.h"
#include "cpu/attention/vec.h"
#include "cpu/embed/vec.h"
#include "cpu/linear/bf16.h"
#include "cpu/linear/int8.h"

namespace distilfast {

extern const Kernels kernels_neon = {
    "neon",
    linear_kernels<Fp32Linear>("fp32 fma"),
    linear_kernels<Fp32Linear>("bf16x3 by fp32 fma, which is more exact"),
    linear_kernels<Bf16Widened>("bf16 operands, widened to fp32 fma"),
    int8_linear_kernels<Int8Pairs>("int8 operands, widened to int16 (smull)"),
    attention_kernels<Fp32Attention>("fp32 fma"),
    // bf16 operands would cost as many multiply-adds once widened, and the rounding.
    attention_kernels<Fp32Attention>("fp32 fma"),
    embed,
    add_layer_norm,
};

}  // namespace distilfast
