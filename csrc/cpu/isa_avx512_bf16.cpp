// The kernels that AVX512-BF16 adds; all others are AVX-512's. Everything but the tables has internal linkage: see
// isa_avx512.cpp.
#include "cpu/vec/avx512.h"

#include "cpu/attention/bf16.h"
#include "cpu/linear/bf16.h"

namespace distilfast {

extern const LinearKernels linear_avx512_bf16 = linear_kernels<Bf16Dot>("bf16 dot product (vdpbf16ps)");
extern const AttentionKernels attention_avx512_bf16 = attention_kernels<Bf16Attention>("bf16 dot product (vdpbf16ps)");

}  // namespace distilfast
