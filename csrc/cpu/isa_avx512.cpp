// The kernels of one ISA. Everything but the table has internal linkage: an inline function that two units compile
// with different -m flags would be merged by the linker, and wide registers would reach narrow machines.
#include "cpu/vec/avx512.h"

#include "cpu/add_layer_norm/vec.h"
#include "cpu/attention/vec.h"
#include "cpu/embed/vec.h"
#include "cpu/linear/vec.h"

namespace distilfast {

extern const Kernels kernels_avx512 = {
    "avx512", panel, attention_scratch, pack_linear, embed, linear, attention, add_layer_norm,
};

}  // namespace distilfast
